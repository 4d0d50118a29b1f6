"""The loss of supervised tokens, for training and for looking into a trained model.

Legend: B rows, T tokens, S positions where any row is supervised, P supervised (row, position)
pairs, D width, V vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from varifocal.errors import ModelError

IGNORED = -100
"""The label of a token without a loss."""

LossKernel = Literal["liger"]
"""Where a fused product of head and cross-entropy comes from."""

_Total = Callable[[Tensor, Tensor], Tensor]  # states [P, D], targets [P] -> their loss, summed
_HEADS_ALONE: "WeakSet[nn.Module]" = WeakSet()  # heads whose product was seen to be the logits


def supervised_loss(
    model: nn.Module,
    batch: Mapping[str, Any],
    num_items: torch.Tensor | int | None = None,
    *,
    chunk: int | None = None,
    kernel: LossKernel | None = None,
) -> torch.Tensor:
    """Cross-entropy of the next token at supervised positions; no other logits are computed.

    Args:
        model: any causal language model of transformers; its `logits_to_keep` takes an index.
        batch: what the model's forward takes, and `labels` [B, T], -100 where there is no loss.
        num_items: what the sum is divided by; the batch's own supervised tokens when None.
        chunk: where [B, S] are more tokens than so many, logits are computed for the P supervised
            ones alone, at most so many at once; of several chunks the backward pass computes
            each again. [B, S, V] is always computed whole when None.
        kernel: `liger` never holds logits at all (CUDA).

    Returns:
        the loss, a scalar in float32 (float64 of a float64 model).

    Raises:
        ModelError: the head's product is not the logits (a soft cap, a scale) or, for a kernel,
            no plain linear; or `kernel` was asked for on a CPU.
    """
    inputs = dict(batch)
    targets = inputs.pop("labels")[:, 1:]
    positions = (targets != IGNORED).any(0).nonzero().squeeze(1)  # [S], of any row
    kept = targets[:, positions]
    inputs |= {"logits_to_keep": positions, "use_cache": False}
    if kernel is None and (chunk is None or kept.numel() <= chunk):
        logits = model(**inputs).logits  # [B, S, V]
        total = _cross_entropy(logits.flatten(0, 1), kept.flatten())
    else:
        total = _total_of_pairs(model, inputs, kept, chunk, kernel)
    return total / (num_items if num_items is not None else (kept != IGNORED).sum().clamp_min(1))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def _total_of_pairs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    targets: Tensor,
    chunk: int | None,
    kernel: LossKernel | None,
) -> Tensor:
    """Sum the loss of `targets` [B, S] inside the head, so that no wrapper of the model sees more.

    Under FSDP, ZeRO and DDP the head's weight is whole only while the model's forward runs.
    """
    head = _head(model)
    total_of = _liger_total(head) if kernel == "liger" else _chunked_total(head, chunk)
    with _loss_for_logits(head, targets, total_of) as made:
        total = model(**inputs).logits
    if head not in _HEADS_ALONE:
        _check_head_alone(head, made[0].detach(), total.detach())
    return total


def _head(model: nn.Module) -> nn.Module:
    """Return the head inside wrappers of PEFT and of launchers."""
    base = next(part for part in model.modules() if isinstance(part, PreTrainedModel))
    return cast(nn.Module, base.get_output_embeddings())


@contextmanager
def _loss_for_logits(head: Any, targets: Tensor, total_of: _Total) -> Iterator[list[Tensor]]:
    """Let a head return the summed loss in the place of logits; the list receives it."""
    rows, places = (targets != IGNORED).nonzero(as_tuple=True)  # [P] each
    wanted = targets[rows, places]
    made: list[Tensor] = []

    def forward(states: Tensor) -> Tensor:  # [B, S, D]
        made.append(total_of(states[rows, places], wanted))
        return made[-1]

    own = head.__dict__.get("forward")
    head.forward = forward
    try:
        yield made
    finally:
        del head.forward
        if own is not None:  # a launcher's
            head.forward = own


def _chunked_total(head: nn.Module, chunk: int | None) -> _Total:
    """Make a function that sums the loss by chunks, whose logits live one at a time."""
    plain = head.forward

    def part(states: Tensor, targets: Tensor) -> Tensor:
        # in the backward pass the head is itself again, and its hooks gather a sharded weight
        inside = head.__dict__.get("forward") not in (None, plain)
        return _cross_entropy((plain if inside else head)(states), targets)

    def total(states: Tensor, targets: Tensor) -> Tensor:
        if chunk is None or len(targets) <= chunk:
            return part(states, targets)
        pieces = zip(states.split(chunk), targets.split(chunk), strict=True)
        each = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
        return torch.stack([one for one in each if one is not None]).sum()

    return total


def _liger_total(head: nn.Module) -> _Total:
    """Make a function that calls Liger's fused linear cross-entropy."""
    if type(head) is not nn.Linear:
        raise ModelError(
            "training.loss_kernel: liger multiplies by the head's weight itself, and this head is "
            f"a {type(head).__name__}: leave it out of tuner.target_modules, or set loss_kernel "
            "to null"
        )
    fused = load_liger()(ignore_index=IGNORED, reduction="sum")

    def total(states: Tensor, targets: Tensor) -> Tensor:
        return fused(head.weight, states, targets, head.bias).float()

    return total


def load_liger() -> Any:
    """Import Liger's fused loss.

    Raises:
        ModelError: there is no CUDA device, or liger-kernel is not installed.
    """
    if not torch.cuda.is_available():
        raise ModelError(
            "training.loss_kernel: liger runs on CUDA devices only, and there is none here; set "
            "training.loss_kernel to null: training.loss_chunk bounds the logits everywhere"
        )
    try:
        from liger_kernel.transformers import (  # pyright: ignore[reportMissingImports]
            LigerFusedLinearCrossEntropyLoss,
        )
    except ImportError as error:
        raise ModelError(
            "training.loss_kernel: liger needs liger-kernel; run: pip install liger-kernel, or set "
            "training.loss_kernel to null"
        ) from error
    return LigerFusedLinearCrossEntropyLoss


def _check_head_alone(head: nn.Module, made: Tensor, returned: Tensor) -> None:
    """Once a head: what it gave came out of the model untouched, so it gives the logits."""
    if returned.shape != made.shape or not torch.equal(returned, made):
        raise ModelError(
            "this model changes its head's product before it is the logits (a soft cap, a scale), "
            "which a loss in chunks or of a kernel would leave out; set training.loss_chunk and "
            "training.loss_kernel to null"
        )
    if made.any():
        _HEADS_ALONE.add(head)
