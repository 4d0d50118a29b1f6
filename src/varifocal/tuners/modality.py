"""Which tokens belong to samples with an image, and what that leaves of a tuner on text.

A sample is a segment of a packed row, or a whole row. What a decoder's forward pass knows of its
tokens comes from three places: `modality_ids` among its arguments; else the image placeholders
among the ids that the vision-language model around it reads, and what a cache's rows hold already.
A sample with an image is an image sample from its first token to its last.

Dimensions: B rows, T tokens.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from .plugin import cached_length, token_shape
from .sites import ancestors, image_token_ids, is_in_vision_tower, token_embedding

TextRoute = Literal["trained", "base"]
"""What tokens of samples without an image run through: the adapter, or the base model alone."""

_REMEMBERED = "_modality_of_rows"  # a deep copy of a cache, as for prefix reuse, keeps it


class RowModality:
    """Reads each token's modality (0 text, 1 image) in a decoder's forward pass.

    Args:
        reader: the vision-language model around the decoder that reads `input_ids`, hooked here;
            None for a plain language model, whose tokens are text unless `modality_ids` say more.
    """

    def __init__(self, reader: nn.Module | None) -> None:
        self._derived: Tensor | None = None
        self._is_hidden = False
        self._latest: Tensor | None = None
        self._hooks: list[Any] = []
        if reader is not None:
            before = reader.register_forward_pre_hook(
                self._before_reader, with_kwargs=True, prepend=True
            )
            after = reader.register_forward_hook(self._after_reader, always_call=True)
            self._hooks = [before, after]

    def remove_hooks(self) -> None:
        """Leave the reader as it was found."""
        for hook in self._hooks:
            hook.remove()

    def read(
        self, given: Tensor | None, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Tensor | None:
        """Return the tokens' modality [B, T]; None where nothing is known of it, so all are text.

        Args:
            given: `modality_ids` of the forward pass, or None.
            args: the decoder's positional arguments.
            kwargs: its keyword arguments.

        Raises:
            ValueError: `given` does not fit the tokens, or there are images and no ids.
        """
        shape = token_shape(args, kwargs)
        cache = kwargs.get("past_key_values")
        past = cached_length(cache)
        if given is None and self._is_hidden:
            raise ValueError(
                "cannot tell which rows hold an image: pass input_ids or modality_ids with "
                "pixel_values"
            )
        if given is not None:
            ids = _fit(given, shape, past)
        else:
            ids = _combine(
                getattr(cache, _REMEMBERED, None) if past else None, self._derived, shape
            )
        self._latest = None if ids is None else ids[:, -1].detach()
        return ids

    def remember(self, output: Any) -> None:
        """Note the rows' modality with the cache that a forward pass filled."""
        cache = getattr(output, "past_key_values", None)
        if cache is not None and self._latest is not None:
            setattr(cache, _REMEMBERED, self._latest)
        self._latest = None

    def _before_reader(
        self, reader: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if kwargs.get("modality_ids") is not None:
            return
        input_ids = kwargs.get("input_ids", args[0] if args else None)
        if input_ids is None:
            self._is_hidden = kwargs.get("pixel_values") is not None
            return
        images = torch.tensor(image_token_ids(reader), device=input_ids.device)
        self._derived = _by_sample(torch.isin(input_ids, images), kwargs)

    def _after_reader(self, reader: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._derived, self._is_hidden = None, False


def reader_of(model: nn.Module, owner: str) -> nn.Module | None:
    """Find the nearest model around a decoder, or the decoder itself, that knows image tokens.

    Args:
        model: the whole model.
        owner: the decoder's name in it.
    """
    outer = [module for name, module in ancestors(model, owner) if name != owner]
    return next((m for m in (*outer, model.get_submodule(owner)) if image_token_ids(m)), None)


def check_text_route(text_route: str) -> None:
    """Refuse anything but "trained" and "base".

    Raises:
        ValueError: naming the value.
    """
    if text_route not in ("trained", "base"):
        raise ValueError(f"text_route must be one of trained, base; got '{text_route}'")


def check_text_is_untouched(model: nn.Module, modules_to_save: Collection[str] | None) -> None:
    """Refuse to train modules whole that text passes through, where text is the base model's.

    Raises:
        ValueError: naming the module.
    """
    for name, module in model.named_modules():
        if any(f".{name}".endswith(f".{each}") for each in modules_to_save or ()) and (
            _reads_text(model, name, module)
        ):
            raise ValueError(
                f"text_route='base' leaves text to the base model, but modules_to_save trains "
                f"{name}, which text passes through; take it out, or set text_route='trained'"
            )


def check_reads_images_only(model: nn.Module, name: str) -> None:
    """Refuse to adapt a module outside the decoder's layers that may read text.

    Raises:
        ValueError: it is in no vision tower.
    """
    if not is_in_vision_tower(model, name):
        raise ValueError(
            f"text_route='base' leaves text to the base model, and {name} is neither in a language "
            "model's decoder layers nor in a vision tower; take it out of target_modules"
        )


def text_is_base(model: nn.Module) -> bool:
    """Tell whether a model is a `PeftModel` whose active adapter leaves text to the base model."""
    if not isinstance(model, PeftModel):
        return False
    configs = [model.peft_config.get(name) for name in model.active_adapters]
    return any(getattr(config, "text_route", "trained") == "base" for config in configs)


def segments_of_positions(position_ids: Any, shape: Sequence[int]) -> Tensor | None:
    """Number segments [B, T] by where positions start again; None where they never do."""
    if not isinstance(position_ids, Tensor) or position_ids.dim() != 2:
        return None
    positions = position_ids.expand(*shape)
    restarts = positions[:, 1:] <= positions[:, :-1]
    if not restarts.any():
        return None
    return torch.nn.functional.pad(restarts.long().cumsum(dim=1), (1, 0))


def has_no_image(ids: Tensor | None) -> bool:
    """Tell whether every token [B, T] is text; False where nobody can say, on the meta device."""
    return ids is None or (not ids.is_meta and not ids.any())


def _reads_text(model: nn.Module, name: str, module: nn.Module) -> bool:
    """Tell whether a module is in a language model, holds one, or turns its states to words."""
    if module is getattr(model, "get_output_embeddings", lambda: None)():
        return True
    inside = [f"{decoder}." if decoder else "" for decoder in _decoders(model)]
    return any(f"{name}.".startswith(each) or each.startswith(f"{name}.") for each in inside)


def _decoders(model: nn.Module) -> Iterator[str]:
    """Name the innermost models that own a token embedding."""
    owners = [name for name, module in model.named_modules() if token_embedding(module) is not None]
    for name in owners:
        inside = f"{name}." if name else ""
        if not any(other != name and other.startswith(inside) for other in owners):
            yield name


def _by_sample(is_image: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    """Mark every token [B, T] of a sample that holds an image token [B, T]."""
    segments = kwargs.get("segment_ids")
    if segments is None and kwargs.get("attention_mask") is None:
        segments = segments_of_positions(kwargs.get("position_ids"), is_image.shape)
    if segments is None or segments.shape != is_image.shape:
        return is_image.any(dim=1, keepdim=True).expand_as(is_image).long()
    changes = segments[:, 1:] != segments[:, :-1]
    number = torch.nn.functional.pad(changes.long().cumsum(dim=1), (1, 0))  # below T
    images = torch.zeros_like(number).scatter_add_(1, number, is_image.long())
    return (images.gather(1, number) > 0).long()


def _fit(given: Tensor, shape: tuple[int, int], past: int) -> Tensor:
    """Check `modality_ids` against the tokens; after `past` cached ones, extend the last column."""
    if given.device.type == "cpu" and ((given < 0) | (given > 1)).any():
        raise ValueError(
            f"modality_ids must be 0 (text) or 1 (image); got {given.unique().tolist()}"
        )
    if given.shape == shape:
        return given
    if past and given.dim() == 2 and given.shape[0] == shape[0]:
        if given.shape[1] == past + shape[1]:
            return given[:, -shape[1] :]
        if given.shape[1] <= past:
            return given[:, -1:].expand(shape)
    raise ValueError(f"modality_ids must be {list(shape)} like the tokens; got {list(given.shape)}")


def _combine(
    remembered: Tensor | None, derived: Tensor | None, shape: tuple[int, int]
) -> Tensor | None:
    """Join what is known of rows and of their new tokens; None where nothing is.

    Args:
        remembered: [B], modality of what a cache holds.
        derived: [B, T], 1 where the new tokens' sample holds an image.
        shape: B and T.
    """
    before = None if remembered is None else remembered[:, None]
    known = [ids for ids in (before, derived) if ids is not None]
    for ids in known:
        if ids.shape[0] != shape[0]:
            raise ValueError(
                f"the batch has {shape[0]} rows, but {ids.shape[0]} are known to hold an image or "
                "not: pass modality_ids"
            )
    if not known:
        return None
    ids = known[0] if len(known) == 1 else torch.maximum(known[0], known[1])
    return ids.expand(shape)
