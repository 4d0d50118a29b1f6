"""Keys and values of conversations that were read before, for their next turn.

A prefix fits a prompt as far as their token ids and their images are the same, the same lane
read both and the same client sent both: the time to an answer tells nobody of others' prompts.
Of two prompts that share their beginning, both can go on from it.

Letters: T tokens, V tokens an image takes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

Keys = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, [B, H, T, D] both."""

_LENGTH_DEPENDENT = ("dynamic", "longrope")  # rotary scalings that look at the longest row


def rows_can_join(config: Any) -> str | None:
    """Say why requests of a model cannot share a batch or a prefix; None where they can.

    Args:
        config: the language model's.
    """
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return f"its cache cannot be laid out beforehand ({error})"
    kinds = {type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}
    if kinds:
        return f"its cache holds other than plain keys and values ({', '.join(sorted(kinds))})"
    scaling = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in scaling.values() if isinstance(value, dict)]
    for section in (scaling, *nested):
        if section.get("rope_type") in _LENGTH_DEPENDENT:
            return f"its {section['rope_type']} positions depend on the longest row of a batch"
    return None


def read_columns(cache: Any, row: int, start: int = 0, stop: int | None = None) -> Keys:
    """Copy the columns of one row out of a cache, [1, H, stop - start, D] each."""
    part = (slice(row, row + 1), slice(None), slice(start, stop))
    return [(layer.keys[part].clone(), layer.values[part].clone()) for layer in cache.layers]


def filled_cache(keys: Keys) -> DynamicCache:
    """Make a cache that starts with what was read; the tensors are not written to."""
    cache = DynamicCache()
    for index, (key, value) in enumerate(keys):
        cache.update(key, value, index)
    return cache


def join(cache: Any, mask: Tensor, other: Any, other_mask: Tensor) -> tuple[Any, Tensor]:
    """Append the rows of another cache, padding the shorter rows on the left.

    Args:
        cache: of B rows; changed and returned.
        mask: [B, T], 1 where a row has a token.
        other: of C rows.
        other_mask: [C, T'].

    Returns:
        The cache of B + C rows, and their mask.
    """
    length = max(mask.shape[1], other_mask.shape[1])
    for layer, more in zip(cache.layers, other.layers, strict=True):
        layer.keys = torch.cat([_pad(layer.keys, length), _pad(more.keys, length)])
        layer.values = torch.cat([_pad(layer.values, length), _pad(more.values, length)])
    masks = [F.pad(tensor, (length - tensor.shape[1], 0)) for tensor in (mask, other_mask)]
    return cache, torch.cat(masks)


def keep_rows(cache: Any, mask: Tensor, rows: Sequence[int]) -> tuple[Any, Tensor]:
    """Keep some rows, in that order, and cut what is padding in all of them.

    Returns:
        The same cache, changed, and the rows' mask.
    """
    index = torch.tensor(rows, device=mask.device)
    mask = mask[index]
    start = int(mask.argmax(dim=1).min())
    for layer in cache.layers:
        layer.keys = layer.keys[index, :, start:]
        layer.values = layer.values[index, :, start:]
    return cache, mask[:, start:]


def _pad(states: Tensor, length: int) -> Tensor:
    return F.pad(states, (0, 0, length - states.shape[2], 0))


@dataclass(frozen=True)
class Seen:
    """What a model has read.

    Attributes:
        reader: whose weights read it, and for which client.
        ids: [T] token ids.
        images: for each image its first token's place and its content's fingerprint.
        tokens_per_image: V.
    """

    reader: tuple[str, str]
    ids: npt.NDArray[np.int64]
    images: tuple[tuple[int, str], ...]
    tokens_per_image: int

    def shared_with(self, other: Seen) -> int:
        """Count the tokens at the beginning that are the same for both; no image is split."""
        if self.reader != other.reader:
            return 0
        shortest = min(len(self.ids), len(other.ids))
        differs = self.ids[:shortest] != other.ids[:shortest]
        common = int(differs.argmax()) if differs.any() else shortest
        for mine, theirs in zip(self.images, other.images, strict=False):
            if mine != theirs:
                common = min(common, mine[0], theirs[0])
        return self.at_image_border(common)

    def at_image_border(self, length: int) -> int:
        """Shorten a length that would end inside an image to where the image begins."""
        for start, _ in self.images:
            if start < length < start + self.tokens_per_image:
                return start
        return length


@dataclass(frozen=True)
class Found:
    """A prefix of a prompt.

    Attributes:
        length: tokens; 0 where nothing fits.
        keys: keys and values of that length, views of what is held.
        is_vlm: whether it is all that was read then, the answer too, and not a beginning of it.
    """

    length: int = 0
    keys: Keys = field(default_factory=list)
    is_vlm: bool = False


class PrefixCache:
    """The prefixes used last, up to a number of bytes.

    Args:
        max_bytes: of keys and values together.

    Attributes:
        num_bytes: what is held.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[int, tuple[Seen, Keys]] = OrderedDict()
        self._next = 0

    def find(self, wanted: Seen) -> Found:
        """Find the longest prefix of a prompt, short of its last token, whose logits are needed."""
        best, longest = None, 0
        for name, (known, _) in self._entries.items():
            shared = wanted.at_image_border(min(wanted.shared_with(known), len(wanted.ids) - 1))
            if shared > longest:
                best, longest = name, shared
        if best is None:
            return Found()
        self._entries.move_to_end(best)
        known, keys = self._entries[best]
        shorter = [(key[:, :, :longest], value[:, :, :longest]) for key, value in keys]
        return Found(longest, shorter, is_vlm=longest == len(known.ids))

    def holds(self, tokens: Seen) -> bool:
        """Say whether all of it is held already."""
        return any(
            tokens.shared_with(known) == len(tokens.ids) for known, _ in self._entries.values()
        )

    def put(self, tokens: Seen, keys: Keys) -> None:
        """Hold what was read; what it continues goes, and then what was used longest ago."""
        size = _num_bytes(keys)
        if size > self.max_bytes:
            return
        for name, (known, _) in list(self._entries.items()):
            if tokens.shared_with(known) == len(known.ids):
                self._drop(name)
        self._entries[self._next] = (tokens, keys)
        self._next += 1
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, name: int) -> None:
        self.num_bytes -= _num_bytes(self._entries.pop(name)[1])


def _num_bytes(keys: Keys) -> int:
    return sum(part.numel() * part.element_size() for pair in keys for part in pair)
