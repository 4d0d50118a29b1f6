"""Which tokens decide together, and which tokens follow their decision.

A routing group is a turn: a run of prompt tokens and the answer after it, inside one segment. Its
tokens follow the choice made from the prompt tokens of its segment up to and including its own. So
no token's choice has read an answer, or anything after its own turn. With the scope "token" each
token is a group of its own.

Dimensions: B rows, T tokens, G groups of the row with the most.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .config import RoutedConfig


@dataclass(frozen=True)
class Groups:
    """The routing groups of a batch.

    Attributes:
        members: [B, G, T] bool, the tokens whose mean decides for a group; None where each token
            decides for itself, and G is T.
        of_token: [B, T], each token's group; None where G is 1 or T.
        segments: [B, G], the segment a group lies in; -1 where a row has no such group, or its
            choice is of no account.
        last: [B], the group of each row's last valid token; None where G is 1 or T.
    """

    members: Tensor | None
    of_token: Tensor | None
    segments: Tensor
    last: Tensor | None

    @property
    def counts(self) -> Tensor:
        """Count the members of each group, [B, G]."""
        if self.members is None:
            return torch.ones_like(self.segments)
        return self.members.sum(dim=-1)

    @property
    def decided(self) -> Tensor:
        """Tell which groups exist and have a member, [B, G] bool."""
        return (self.counts > 0) & (self.segments >= 0)

    def per_token(self, values: Tensor) -> Tensor:
        """Look values of groups [B, G, R] up for their tokens, [B, T, R]."""
        if self.members is None:
            return values
        if self.of_token is None:
            return values.expand(-1, self.members.shape[-1], -1)
        return values.gather(1, self.of_token[..., None].expand(-1, -1, values.shape[-1]))

    def at_last(self, values: Tensor) -> Tensor:
        """Take what holds at each row's end: values of groups [B, G, ...] to [B, 1, ...]."""
        if self.last is None:
            return values
        return values[torch.arange(len(values), device=values.device), self.last][:, None]


def group_rows_whole(valid: Tensor) -> Groups:
    """Make one group of each row, decided by its valid tokens [B, T]."""
    segments = torch.zeros(len(valid), 1, dtype=torch.long, device=valid.device)
    return Groups(valid[:, None], None, segments, None)


def leave_out(groups: Groups, is_image: Tensor) -> Groups:
    """Take the groups without an image token [B, T] off the list: their choice is of no account."""
    with_image = is_image  # [B, G]
    if groups.members is not None:
        with_image = (groups.members & is_image[:, None]).any(dim=-1)
    return replace(groups, segments=groups.segments.masked_fill(~with_image, -1))


def find_groups(
    config: RoutedConfig, marks: Mapping[str, Tensor], valid: Tensor, *, past: int
) -> Groups | None:
    """Find the routing groups of a batch.

    Args:
        config: its `routing_scope` is read.
        marks: `segment_ids` and `prompt_mask` [B, T], as far as they are known.
        valid: [B, T] bool, False on padding.
        past: tokens a cache holds. If there are any, each row goes on with its own instance, and
            group 0 is the turn it was in.

    Returns:
        The groups; None where no token after a cache is a prompt's, and all keep their choice.

    Raises:
        ValueError: if a mark does not have the tokens' shape.
    """
    fitted = {name: _fit(name, mark, valid, past) for name, mark in marks.items()}
    prompt, segments = fitted.get("prompt_mask"), fitted.get("segment_ids")
    if config.routing_scope == "token":
        segments = torch.zeros_like(valid, dtype=torch.long) if segments is None else segments
        return Groups(None, None, segments.long().masked_fill(~valid, -1), None)
    if config.routing_scope == "sequence":
        if segments is None or past:
            return group_rows_whole(valid)
        return _grouped(valid, segments, _changes(segments), valid, past=0)
    if past:
        if prompt is None or not (prompt := prompt.bool() & valid).any():
            return None
        segments = None
    elif prompt is None and segments is None:
        return group_rows_whole(valid)
    prompt = valid if prompt is None else prompt.bool() & valid
    if segments is None:
        segments = torch.zeros_like(prompt, dtype=torch.long)
    changes = _changes(segments)
    starts = changes | (prompt & ~_shifted(prompt, changes))
    return _grouped(prompt, segments, starts, valid, past=past)


def valid_tokens(attention_mask: Any, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Read [B, T] bool, False on padding, from any attention mask a decoder may get.

    Args:
        attention_mask: None; [B, T] or, after a cache, [B, past + T]; transformers' prepared
            [B, 1, T, keys] (bool, or 0 where visible), or a mapping of them by layer type.
        shape: B and T.
        device: where the tokens are.
    """
    rows, length = shape
    if isinstance(attention_mask, Mapping):
        attention_mask = attention_mask.get("full_attention")
    if not isinstance(attention_mask, Tensor):
        return torch.ones(shape, dtype=torch.bool, device=device)
    if attention_mask.dim() == 4:  # a key is no padding if the row's last token may see it
        is_valid = attention_mask[:, 0, -1, :]
        is_valid = is_valid if is_valid.dtype == torch.bool else is_valid == 0
        return is_valid[:, -length:].expand(rows, length)
    return attention_mask[:, -length:].to(device).bool()


def _fit(name: str, mark: Tensor, valid: Tensor, past: int) -> Tensor:
    """Check a mark against the tokens; one that spans the cached ones too is cut to the new."""
    rows, length = valid.shape
    if past and mark.dim() == 2 and mark.shape == (rows, past + length):
        mark = mark[:, -length:]
    if mark.shape != valid.shape:
        raise ValueError(
            f"{name} must be {list(valid.shape)} like the tokens; got {list(mark.shape)}"
        )
    return mark.to(valid.device)


def _changes(segments: Tensor) -> Tensor:
    """Mark the first token of each segment, [B, T] bool."""
    changes = torch.ones_like(segments, dtype=torch.bool)
    changes[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return changes


def _shifted(prompt: Tensor, changes: Tensor) -> Tensor:
    """Tell of each token whether the one before it, in its segment, is the prompt's."""
    before = torch.zeros_like(prompt)
    before[:, 1:] = prompt[:, :-1]
    return before & ~changes


def _grouped(
    deciding: Tensor, segments: Tensor, starts: Tensor, valid: Tensor, *, past: int
) -> Groups:
    """Build the groups from the tokens that decide and the tokens that start a group."""
    if past:
        starts = starts.clone()
        starts[:, 0] = deciding[:, 0]  # an answer's token goes on with the turn in the cache
    of_token = starts.long().cumsum(dim=1) - (0 if past else 1)  # [B, T]
    num_groups = int(of_token.max()) + 1
    groups = torch.arange(num_groups, device=of_token.device)
    lies_in = torch.full((len(of_token), num_groups), -1, device=of_token.device)
    lies_in = lies_in.scatter(1, of_token, segments.long())  # [B, G]
    if past:
        lies_in[:, 0] = 0
    earlier = of_token[:, None] <= groups[:, None]  # [B, G, T]
    members = earlier & (segments[:, None] == lies_in[..., None]) & deciding[:, None]
    last = torch.where(valid, of_token, 0).amax(dim=1)
    if num_groups == 1:
        return Groups(members, None, lies_in, None)
    return Groups(members, of_token, lies_in, last)
