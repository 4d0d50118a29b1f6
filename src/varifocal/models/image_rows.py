"""Which rows and segments hold images, and what that means for tensors next to the ids.

Letters: B rows, T tokens, N images, V visual tokens per image.
"""

import torch
from torch import Tensor

from varifocal.errors import ModelError

ROUTING_INPUTS = ("modality_ids", "segment_ids", "prompt_mask")
"""Per-token marks [B, T] that a model hands on to its tuners."""


def segments_from_positions(position_ids: Tensor) -> Tensor:
    """Number the segments of packed rows, where `position_ids` restart.

    >>> segments_from_positions(torch.tensor([[0, 1, 2, 0, 1, 0]]))
    tensor([[0, 0, 0, 1, 1, 2]])
    """
    restarts = position_ids[:, 1:] != position_ids[:, :-1] + 1
    first = restarts.new_zeros(position_ids.shape[0], 1)
    return torch.cat([first, restarts], dim=1).cumsum(dim=1)


def row_modality(
    is_image: Tensor,
    segment_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
) -> Tensor:
    """Mark every token of a sample that holds an image.

    A sample is a segment where rows are packed (segment ids, or positions without an attention
    mask, say where it ends), and a whole row where they are not.

    Args:
        is_image: [B, T] bool, True at image placeholders.
        segment_ids: [B, T] or None.
        position_ids: [B, T] (or [1, T], shared by all rows) or None.
        attention_mask: given for padded rows, never for packed ones.

    Returns:
        [B, T] int64: 1 in samples with an image, 0 elsewhere.

    >>> row_modality(torch.tensor([[0, 1, 0, 0, 0]]).bool(), torch.tensor([[0, 0, 0, 1, 1]]))
    tensor([[1, 1, 1, 0, 0]])
    """
    if segment_ids is None and position_ids is not None and attention_mask is None:
        segment_ids = segments_from_positions(position_ids)
    if segment_ids is None:
        return is_image.any(dim=1, keepdim=True).expand_as(is_image).long()
    segment_ids = segment_ids.long().expand_as(is_image)
    images = torch.zeros_like(is_image, dtype=torch.long)  # a row has at most T segments
    images.scatter_add_(1, segment_ids, is_image.long())
    return (images.gather(1, segment_ids) > 0).long()


def fit_length(mark: Tensor, length: int) -> Tensor:
    """Extend a prompt's marks [B, T] to the tokens generated since, [B, length].

    A generated token belongs to the last token's segment and modality. It is no prompt token, so
    boolean marks (`prompt_mask`) are extended by False.
    """
    missing = length - mark.shape[1]
    if missing <= 0:
        return mark
    last = mark[:, -1:].expand(-1, missing)
    return torch.cat([mark, torch.zeros_like(last) if mark.dtype == torch.bool else last], dim=1)


def check_row_images(num_placeholders: int, num_images: int, tokens_per_image: int) -> None:
    """Raise `ModelError` unless the placeholders are exactly the images' tokens."""
    if num_placeholders == num_images * tokens_per_image:
        return
    raise ModelError(
        f"the text holds {num_placeholders} image placeholders and {num_images} images were given,"
        f" which take {num_images * tokens_per_image} ({tokens_per_image} each); let the processor"
        " write the placeholders, and give every image of the text once, in its order"
    )


def expand_images(images: Tensor, is_image: Tensor, tokens_per_image: int, copies: int) -> Tensor:
    """Repeat each row's images as generation repeats the rows for beams and samples.

    Rows become a, a, b, b; so with two images in row a the images become a1, a2, a1, a2, b1, b1:
    repeating them one by one, as is done with other tensors, would swap them.

    Args:
        images: [N, ...] pixel values or features, in the order of their placeholders.
        is_image: [B, T] bool, before the rows are repeated.
        tokens_per_image: V.
        copies: how often each row is repeated.

    Returns:
        [N x copies, ...].
    """
    per_row = is_image.sum(dim=1)
    check_row_images(int(per_row.sum()), images.shape[0], tokens_per_image)
    rows = images.split((per_row // tokens_per_image).tolist())
    return torch.cat([row for row in rows for _ in range(copies)])


def images_within(
    images: Tensor, is_image: Tensor, tokens_per_image: int, num_tokens: int
) -> Tensor:
    """Keep the images whose placeholders lie in the last `num_tokens` columns.

    A conversation continued from a cache gives all its images again; those of earlier turns are
    in the cache already. Images given for the new turn alone are returned as they are.
    """
    if images.shape[0] * tokens_per_image != int(is_image.sum()):
        return images
    order = is_image.flatten().long().cumsum(0).view_as(is_image) - 1  # which placeholder it is
    new = is_image.clone()
    new[:, : is_image.shape[1] - num_tokens] = False
    return images[(order[new] // tokens_per_image).unique()]
