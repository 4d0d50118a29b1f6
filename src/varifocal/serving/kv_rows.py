"""The key-value cache of a batch whose rows come and go.

Rows are left-padded to one length T. A row that joins is padded, or the others are; the columns
that are padding in every row are cut away when one leaves.

Letters: B rows, H key-value heads, T tokens, D width of a head, L layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
    for one in (scaling, *nested):
        if one.get("rope_type") in _LENGTH_DEPENDENT:
            return f"its {one['rope_type']} positions depend on the longest row of a batch"
    return None


def read(cache: Any, row: int, start: int = 0, stop: int | None = None) -> Keys:
    """Copy the columns of one row out of a cache, [1, H, stop - start, D] each."""
    part = (slice(row, row + 1), slice(None), slice(start, stop))
    return [(layer.keys[part].clone(), layer.values[part].clone()) for layer in cache.layers]


def filled(keys: Keys) -> DynamicCache:
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
    masks = [F.pad(one, (length - one.shape[1], 0)) for one in (mask, other_mask)]
    return cache, torch.cat(masks)


def keep(cache: Any, mask: Tensor, rows: Sequence[int]) -> tuple[Any, Tensor]:
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
