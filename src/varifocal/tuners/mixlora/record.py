"""Which factors were chosen: written down while a model runs, and summed up as load and entropy."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .layer import MixLoraLayer
from .model import routed_decoders
from .routing import Chosen


@dataclass(frozen=True)
class RoutingRecord:
    """What the groups of one batch chose at one linear; N groups (segments, turns), on the CPU.

    Attributes:
        layer: the linear's name in the base model.
        rows: [N], the batch row each group lies in.
        segments: [N], the segment of that row (`segment_ids`; 0 without marks). A conversation has
            one group for each turn, in order.
        factors_a: [N, r], indices into A's pool, best first.
        factors_b: [N, r], indices into B's pool; the i-th is paired with the i-th of `factors_a`.
        weights: [N, r], factor on each pair; 1 in "hard", "straight_through" and "random".
        scores_a: [N, E], p_A, adding up to 1; None in "random".
        scores_b: [N, E], p_B divided by its sum; None in "random".
    """

    layer: str
    rows: Tensor
    segments: Tensor
    factors_a: Tensor
    factors_b: Tensor
    weights: Tensor
    scores_a: Tensor | None
    scores_b: Tensor | None


@dataclass(frozen=True)
class Load:
    """How the choices at one linear spread over a pool.

    Attributes:
        shares: [E], share of all choices that fell on each factor; they add up to 1.
        entropy: of the shares, 0 to 1: 1 where all factors are used alike; log r / log E where
            every instance chooses the same r.
        sharpness: 1 minus the mean entropy of the scores, 0 (no preference) to 1; None where
            factors are drawn.
    """

    shares: Tensor
    entropy: float
    sharpness: float | None


@contextmanager
def record_routing(model: nn.Module) -> Iterator[list[RoutingRecord]]:
    """Collect what every forward pass inside the block chooses afresh, without changing it.

    After a cache only new turns choose; tokens that go on with a choice add no record. Groups
    that nobody decides for, such as padding, are left out. In a vision tower a row is an image.

    Args:
        model: a model with a MixLoRA adapter, as a `PeftModel` or not.

    Yields:
        The records: one a linear and forward pass, in the order in which they run.

    Raises:
        ValueError: if the model holds no MixLoRA adapter.

    Example:
        with record_routing(model) as records:
            model(**batch)
        factor_load(records, num_factors=16)["model.layers.0.mlp.up_proj"]
    """
    records: list[RoutingRecord] = []
    with listening(model, lambda chosen: records.append(_record(chosen))):
        yield records


@contextmanager
def listening(model: nn.Module, listener: Callable[[Chosen], None]) -> Iterator[None]:
    """Call a function with every fresh choice; see `record_routing`."""
    outside = [m for m in model.modules() if isinstance(m, MixLoraLayer) and not m.in_decoder]
    places = [*(routing for _, routing in routed_decoders(model)), *outside]
    if not places:
        raise ValueError("no module of this model holds a MixLoRA adapter")
    for place in places:
        place.listeners.append(listener)
    try:
        yield
    finally:
        for place in places:
            place.listeners.remove(listener)


def factor_load(
    records: Sequence[RoutingRecord], num_factors: int, *, weighted: bool = False
) -> dict[str, tuple[Load, Load]]:
    """Sum records up by linear.

    Args:
        records: of one or more forward passes.
        num_factors: E.
        weighted: count a choice by its weight, as of whole LoRAs, which all may be chosen.

    Returns:
        For each linear, in order, the load of A's pool and of B's.
    """
    layers: dict[str, list[RoutingRecord]] = {}
    for record in records:
        layers.setdefault(record.layer, []).append(record)
    return {
        layer: (
            _load([r.factors_a for r in own], [r.scores_a for r in own], weights, num_factors),
            _load([r.factors_b for r in own], [r.scores_b for r in own], weights, num_factors),
        )
        for layer, own in layers.items()
        for weights in (torch.cat([r.weights for r in own]).flatten() if weighted else None,)
    }


def _record(chosen: Chosen) -> RoutingRecord:
    choice, groups = chosen.choice, chosen.groups
    rows, numbers = torch.nonzero(groups.decided, as_tuple=True)  # [N]

    def pick(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[rows, numbers].float().cpu()

    factors_a, factors_b = (f[rows, numbers].cpu() for f in (choice.factors_a, choice.factors_b))
    weights = pick(choice.weights)
    scores_b = pick(choice.scores_b)
    return RoutingRecord(
        chosen.layer,
        rows.cpu(),
        groups.segments[rows, numbers].cpu(),
        factors_a,
        factors_b,
        torch.ones(factors_a.shape) if weights is None else weights,
        pick(choice.scores_a),
        None if scores_b is None else scores_b / scores_b.sum(dim=-1, keepdim=True),
    )


def _load(
    factors: list[Tensor], scores: list[Tensor | None], weights: Tensor | None, num_factors: int
) -> Load:
    counts = torch.bincount(torch.cat(factors).flatten(), weights, num_factors).double()
    shares = counts / counts.sum().clamp(min=1)
    known = [score.double() for score in scores if score is not None]
    sharpness = None
    if known and counts.any():
        sharpness = 1 - float(_entropy(torch.cat(known)).mean())
    return Load(shares.float(), float(_entropy(shares)), sharpness)


def _entropy(shares: Tensor) -> Tensor:
    """Entropy over the last dimension, divided by its greatest value; 0 for a single factor."""
    terms = torch.special.entr(shares).sum(dim=-1)
    return terms / math.log(shares.shape[-1]) if shares.shape[-1] > 1 else terms
