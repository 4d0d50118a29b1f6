"""The loss of supervised tokens, for training and for looking into a trained model.

Legend: B rows, T tokens, S positions where any row is supervised, P supervised (row, position)
pairs, R of them with a reference, D width, V vocabulary, K likeliest tokens of a reference.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from varifocal.errors import ModelError
from varifocal.models.divergence import reference_divergence

IGNORED = -100
"""The label of a token without a loss."""

LossKernel = Literal["liger"]
"""Where a fused product of head and cross-entropy comes from."""

_Total = Callable[..., Tensor]  # states [P, D], what they are compared with -> their loss, summed
_HEADS_ALONE: "WeakSet[nn.Module]" = WeakSet()  # heads whose product was seen to be the logits


@dataclass(frozen=True)
class _Targets:
    """What the model is to say at S positions.

    Attributes:
        tokens: [B, S] ids of the next tokens, -100 where there is no loss or another one.
        has_reference: [B, S] bool, where a reference takes the token's place.
        reference: ids [R, K] and log probabilities [R, K + 1] there, in order; () without any.
        weight: factor on the divergence from a reference.
    """

    tokens: Tensor
    has_reference: Tensor
    reference: tuple[Tensor, ...]
    weight: float


def supervised_loss(
    model: nn.Module,
    batch: Mapping[str, Any],
    num_items: torch.Tensor | int | None = None,
    *,
    chunk: int | None = None,
    kernel: LossKernel | None = None,
    reference_weight: float = 1.0,
) -> torch.Tensor:
    """Cross-entropy of the next token at supervised positions; no other logits are computed.

    Where the batch has a reference for a token, its loss is the divergence from the reference
    (`reference_divergence`), times a weight, instead. Every supervised token counts as one, either
    way, so the sum over micro-batches and processes is the loss of the whole.

    Args:
        model: any causal language model of transformers; its `logits_to_keep` takes an index.
        batch: what the model's forward takes, and `labels` [B, T], -100 where there is no loss; and
            for references `reference_mask`, `reference_ids` and `reference_log_probs`, as
            `Collator` has them.
        num_items: what the sum is divided by; the batch's own supervised tokens when None.
        chunk: of more supervised tokens than so many, logits are computed for at most so many at
            once, and again in the backward pass; all are computed at once when None.
        kernel: `liger` never holds logits at all (CUDA), but at tokens with a reference.
        reference_weight: factor on the divergence.

    Returns:
        the loss, a scalar in float32 (float64 of a float64 model).

    Raises:
        ModelError: the head's product is not the logits (a soft cap, a scale) or, for a kernel,
            no plain linear; or `kernel` was asked for on a CPU.
    """
    inputs = dict(batch)
    given = [inputs.pop(name) for name in _REFERENCE if name in inputs]
    labels = inputs.pop("labels")[:, 1:]
    positions = (labels != IGNORED).any(0).nonzero().squeeze(1)  # [S], of any row
    tokens = labels[:, positions]
    count = num_items if num_items is not None else (tokens != IGNORED).sum().clamp_min(1)
    has_reference = torch.zeros_like(tokens, dtype=torch.bool)
    if given:
        has_reference = given[0][:, 1:][:, positions]
        tokens = tokens.masked_fill(has_reference, IGNORED)
    targets = _Targets(tokens, has_reference, tuple(given[1:]), reference_weight)
    inputs |= {"logits_to_keep": positions, "use_cache": False}
    pairs = ((tokens != IGNORED) | has_reference).flatten().nonzero().squeeze(1)
    if kernel is None and (chunk is None or len(pairs) <= chunk):
        total = _total_of_logits(model, inputs, targets, pairs)
    else:
        total = _total_of_pairs(model, inputs, targets, chunk, kernel)
    return total / count


_REFERENCE = ("reference_mask", "reference_ids", "reference_log_probs")


def _total_of_logits(
    model: nn.Module, inputs: Mapping[str, Any], targets: _Targets, pairs: Tensor
) -> Tensor:
    """Sum the loss of `targets` over logits that are all computed at once, those of pairs alone.

    Args:
        model: as `supervised_loss` takes it.
        inputs: what its forward takes.
        targets: of [B, S].
        pairs: [P], which of the B * S have a target, in order.
    """
    with _states_selected(_head(model), pairs):
        logits = model(**inputs).logits[0]  # [P, V]
    total = _cross_entropy(logits, targets.tokens.flatten()[pairs])
    if targets.reference:
        held = targets.has_reference.flatten()[pairs]
        apart = reference_divergence(logits[held], *targets.reference)
        total = total + targets.weight * apart
    return total


@contextmanager
def _states_selected(head: nn.Module, pairs: Tensor) -> Iterator[None]:
    """Let a head read the states of pairs alone: [1, P, D] of [B, S, D]."""

    def select(head: nn.Module, args: tuple[Tensor]) -> Tensor:
        return args[0].flatten(0, 1).index_select(0, pairs.to(args[0].device))[None]

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum")


def _total_of_pairs(
    model: nn.Module,
    inputs: Mapping[str, Any],
    targets: _Targets,
    chunk: int | None,
    kernel: LossKernel | None,
) -> Tensor:
    """Sum the loss of `targets` inside the head, so that no wrapper of the model sees more.

    Under FSDP, ZeRO and DDP the head's weight is whole only while the model's forward runs.
    """
    head = _head(model)
    plain = _chunked_total(head, chunk, _cross_entropy)
    total_of = _liger_total(head) if kernel == "liger" else plain
    apart_of = _chunked_total(head, chunk, reference_divergence)
    rows, places = (targets.tokens != IGNORED).nonzero(as_tuple=True)  # [P] each
    wanted = targets.tokens[rows, places]

    def total(states: Tensor) -> Tensor:  # [B, S, D]
        if not targets.reference:
            return total_of(states[rows, places], wanted)
        apart = apart_of(states[targets.has_reference], *targets.reference) * targets.weight
        return apart + total_of(states[rows, places], wanted) if len(rows) else apart

    with _loss_for_logits(head, total) as totals:
        returned = model(**inputs).logits
    if head not in _HEADS_ALONE:
        _check_head_alone(head, totals[0].detach(), returned.detach())
    return returned


def _head(model: nn.Module) -> nn.Module:
    """Return the head inside wrappers of PEFT and of launchers."""
    base = next(part for part in model.modules() if hasattr(part, "get_output_embeddings"))
    return cast(Any, base).get_output_embeddings()


@contextmanager
def _loss_for_logits(head: Any, total: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Let a head return the summed loss in the place of logits; the list receives it."""
    totals: list[Tensor] = []

    def forward(states: Tensor) -> Tensor:  # [B, S, D]
        totals.append(total(states))
        return totals[-1]

    own = head.__dict__.get("forward")
    head.forward = forward
    try:
        yield totals
    finally:
        del head.forward
        if own is not None:  # a launcher's
            head.forward = own


def _chunked_total(head: nn.Module, chunk: int | None, loss: _Total) -> _Total:
    """Make a function that sums a loss by chunks, whose logits live one at a time."""
    plain = head.forward

    def part(states: Tensor, *targets: Tensor) -> Tensor:
        # in the backward pass the head is itself again, and its hooks gather a sharded weight
        inside = head.__dict__.get("forward") not in (None, plain)
        return loss((plain if inside else head)(states), *targets)

    def total(states: Tensor, *targets: Tensor) -> Tensor:
        if chunk is None or len(states) <= chunk:
            return part(states, *targets)
        pieces = zip(*(each.split(chunk) for each in (states, *targets)), strict=True)
        each = [checkpoint(part, *piece, use_reentrant=False) for piece in pieces]
        return torch.stack([pair for pair in each if pair is not None]).sum()

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


def _check_head_alone(head: nn.Module, own: Tensor, returned: Tensor) -> None:
    """Once a head: what it gave came out of the model untouched, so it gives the logits."""
    if returned.shape != own.shape or not torch.equal(returned, own):
        raise ModelError(
            "this model changes its head's product before it is the logits (a soft cap, a scale), "
            "which a loss in chunks or of a kernel would leave out; set training.loss_chunk and "
            "training.loss_kernel to null"
        )
    if own.any():
        _HEADS_ALONE.add(head)
