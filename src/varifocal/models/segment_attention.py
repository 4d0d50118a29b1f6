"""Attention inside each segment of a packed row, by transformers' name `segments`.

A mask over the whole row makes attention compute every pair of tokens and throw most away. On GPUs
flash attention reads the segments off `position_ids` instead; on a CPU nothing does, so this does:
each segment alone, scores in the inputs' own format, softmax in float32, the probabilities computed
again in the backward pass. One opaque operator, so that compiled layers stay whole.

Letters: B rows, T tokens, H heads, G key-value heads, C width of a head, L tokens of a segment.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "segments"


def segment_attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' attention functions do.

    In training, whole rows go by segment: where a token's position is not one more than its
    neighbour's, a segment begins. Everything else (evaluation, a sliding window, dropout, a tower)
    goes through SDPA with its mask.

    Args:
        module: the attention layer.
        query: [B, H, T, C].
        key: [B, G, T, C].
        value: [B, G, T, C].
        attention_mask: as SDPA takes it.
        dropout: probability of dropping a pair.
        scaling: factor on the scores; by default 1 / sqrt(C).
        **kwargs: `position_ids` [B or 1, T], and what SDPA takes.

    Returns:
        [B, T, H, C], and None for the weights.
    """
    positions = kwargs.get("position_ids")
    plain = kwargs.get("sliding_window") is None and dropout == 0.0
    whole = query.shape[2] == key.shape[2] > 1 and query.device.type == "cpu"
    trains = module.training and bool(getattr(module, "is_causal", False))
    if positions is None or positions.dim() != 2 or not (plain and whole and trains):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    positions = positions.expand(query.shape[0], -1)
    output = torch.ops.varifocal.segment_attention(query, key, value, positions, scale)
    return output.transpose(1, 2).contiguous(), None


def segments_of(positions: Tensor) -> list[list[tuple[int, int]]]:
    """List each row's segments as (first token, one past the last).

    >>> segments_of(torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]]))
    [[(0, 3), (3, 5)], [(0, 1), (1, 5)]]
    """
    begins = positions[:, 1:] != positions[:, :-1] + 1
    spans = []
    for row in begins.tolist():
        starts = [0, *(at + 1 for at, begin in enumerate(row) if begin)]
        spans.append(list(zip(starts, [*starts[1:], positions.shape[1]], strict=True)))
    return spans


@torch.library.custom_op("varifocal::segment_attention", mutates_args=())
def segment_attention(
    query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scale: float
) -> Tensor:
    """Attend inside segments: [B, H, T, C]."""
    output = torch.empty_like(query, memory_format=torch.contiguous_format)
    for row, spans in enumerate(segments_of(positions)):
        for first, end in spans:
            q, k, v = _cut(row, first, end, query, key, value)
            output[row, :, first:end] = torch.bmm(_weights(q, k, scale).to(v.dtype), v)
    return output


@segment_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scale: float) -> Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.custom_op("varifocal::segment_attention_backward", mutates_args=())
def segment_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value."""
    grads = [_zeros(part) for part in (query, key, value)]
    shares = key.shape[1]
    for row, spans in enumerate(segments_of(positions)):
        for first, end in spans:
            q, k, v = _cut(row, first, end, query, key, value)
            g = grad[row, :, first:end].contiguous()
            weights = _weights(q, k, scale)
            pulled = torch.bmm(g, v.transpose(1, 2)).to(weights.dtype)
            pulled = torch.ops.aten._softmax_backward_data(pulled, weights, -1, weights.dtype)
            pulled = pulled.mul_(scale).to(q.dtype)
            weights = weights.to(v.dtype)
            parts = (
                torch.bmm(pulled, k),
                torch.bmm(pulled.transpose(1, 2), q).unflatten(0, (shares, -1)).sum(1),
                torch.bmm(weights.transpose(1, 2), g).unflatten(0, (shares, -1)).sum(1),
            )
            for whole, part in zip(grads, parts, strict=True):
                whole[row, :, first:end] = part
    return grads[0], grads[1], grads[2]


@segment_attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, positions: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return _zeros(query), _zeros(key), _zeros(value)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = torch.ops.varifocal.segment_attention_backward(grad, *ctx.saved_tensors, ctx.scale)
    return (*grads, None, None)


segment_attention.register_autograd(_backward, setup_context=_remember)


def _zeros(part: Tensor) -> Tensor:
    return torch.zeros_like(part, memory_format=torch.contiguous_format)


def _cut(
    row: int, first: int, end: int, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Take a segment: [H, L, C] each, key-value heads repeated for the heads that share them."""
    shared = query.shape[1] // key.shape[1]
    k, v = (part[row, :, first:end].repeat_interleave(shared, 0) for part in (key, value))
    return query[row, :, first:end].contiguous(), k, v


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Probabilities of each pair, 0 where a token would look ahead: [H, L, L], float32 at least."""
    ahead = q.new_full((q.shape[1], q.shape[1]), float("-inf")).triu_(1)
    scores = torch.baddbmm(ahead.expand(len(q), -1, -1), q, k.transpose(1, 2), alpha=scale)
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(q.dtype, torch.float32))


AttentionInterface.register(NAME, segment_attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)
