"""What one layer's attention costs over packed rows, by the way it is computed.

    python benchmarks/attention_forms.py

Two rows of 512 tokens, two segments each (300 and 212), nine heads of 64, bfloat16, one thread.
Prints CPU milliseconds of forward and backward, the best of four.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

import varifocal.models.segment_attention  # noqa: F401  (it brings the operator)

SHAPE = (2, 9, 512, 64)  # rows, heads, tokens, width of a head
SEGMENTS = (slice(0, 300), slice(300, 512))
POSITIONS = torch.cat([torch.arange(at.stop - at.start) for at in SEGMENTS]).expand(SHAPE[0], -1)
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def mask() -> Tensor:
    """Which token sees which, [T, T]."""
    segment = torch.arange(SHAPE[2]) >= SEGMENTS[0].stop
    return (segment[:, None] == segment[None, :]).tril()


SEES = mask()
ADDED = torch.zeros(SEES.shape, dtype=torch.bfloat16).masked_fill(~SEES, float("-inf"))


def eager(q: Tensor, k: Tensor, v: Tensor, added: Tensor = ADDED) -> Tensor:
    """As transformers' eager attention."""
    scores = q @ k.transpose(2, 3) * SHAPE[3] ** -0.5 + added
    return F.softmax(scores, -1, dtype=torch.float32).to(q.dtype) @ v


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With the mask of segments."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=SEES)


def sdpa_causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Over the whole row, as if it were one segment."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sdpa_by_segment(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float32, each segment alone."""
    q, k, v = q.float(), k.float(), v.float()
    parts = [sdpa_causal(q[:, :, at], k[:, :, at], v[:, :, at]) for at in SEGMENTS]
    return torch.cat(parts, 2).bfloat16()


def eager_by_segment(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Each segment alone."""
    parts = [eager(q[:, :, at], k[:, :, at], v[:, :, at], ADDED[at, at]) for at in SEGMENTS]
    return torch.cat(parts, 2)


def segments(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Ours, `model.attn_implementation: segments`."""
    return torch.ops.varifocal.segment_attention(q, k, v, POSITIONS, SHAPE[3] ** -0.5)


def cpu_seconds(attention: Attention) -> float:
    """One forward and backward pass."""
    tensors = [torch.randn(SHAPE, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    started = time.process_time()
    attention(*tensors).sum().backward()
    return time.process_time() - started


def main() -> None:
    """Measure, print."""
    torch.set_num_threads(1)
    for form in (eager, sdpa, sdpa_causal, sdpa_by_segment, eager_by_segment, segments):
        print(f"{form.__name__:18} {1000 * min(cpu_seconds(form) for _ in range(4)):6.1f} CPU ms")


if __name__ == "__main__":
    main()
