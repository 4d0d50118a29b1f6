"""Which factors which task uses: MMA's branches, MixLoRA's pools, LoRA experts.

A router spreads each example over E factors: MMA's two branches by softmax weights that depend on
the modality alone, MixLoRA's pools by choosing r of E, LoRA experts by softmax weights of each
token or prompt. `FactorUsage` sums that up by task, in the same words for all.

Legend: n tasks, E factors of a router.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from varifocal.analysis.gradients import block_of, group_names
from varifocal.data.encoding.encoder import Encoded
from varifocal.data.rows.packing import Collator, ImageLoader
from varifocal.errors import ModelError
from varifocal.progress import StepProgress
from varifocal.tuners import (
    LoraExpertsConfig,
    RoutingRecord,
    record_routing,
    routing_table,
    text_is_base,
)
from varifocal.tuners.plugin import evaluating

BRANCHES, POOL_A, POOL_B, EXPERTS = "branches", "A", "B", "experts"


@dataclass(frozen=True)
class FactorUsage:
    """How the tasks' examples spread over one router's factors.

    Attributes:
        shares: [n, E], each row adding up to 1: the mean weight (MMA, LoRA experts), or the
            share of choices (MixLoRA).
    """

    shares: Tensor

    @property
    def load(self) -> Tensor:
        """Share of each factor, [E], every task counting alike."""
        return self.shares.mean(0)

    @property
    def entropy(self) -> float:
        """Entropy of the load, 0 (one factor does all) to 1 (all are used alike)."""
        terms = torch.special.entr(self.load).sum()
        return float(terms / math.log(len(self.load))) if len(self.load) > 1 else 0.0

    @property
    def overlap(self) -> Tensor:
        """What two tasks share, [n, n]: 1 the same factors alike, 0 none in common."""
        return torch.minimum(self.shares[:, None], self.shares[None]).sum(2)

    @property
    def mean_overlap(self) -> float:
        """Overlap of two different tasks, on average."""
        n = len(self.shares)
        return float((self.overlap.sum() - self.overlap.trace()) / (n * (n - 1)))

    def as_json(self) -> dict[str, Any]:
        """Return plain lists and numbers."""
        return {
            "usage": self.shares.tolist(),
            "load": self.load.tolist(),
            "entropy": self.entropy,
            "overlap": self.overlap.tolist(),
            "mean_overlap": self.mean_overlap,
        }


@dataclass(frozen=True)
class TaskRouting:
    """How tasks are routed through an adapter.

    Attributes:
        method: "mma", "mixlora" or "lora_experts".
        tasks: n names.
        counts: examples looked at, of each.
        routers: by the adapted module's name and the pool's, in the model's order.
        tables: MMA's weights [2 modalities, 2 branches] by the adapted norm's name.
    """

    method: str
    tasks: Sequence[str]
    counts: Sequence[int]
    routers: Mapping[tuple[str, str], FactorUsage]
    tables: Mapping[str, Tensor]

    @property
    def overlap(self) -> Tensor:
        """What two tasks share, [n, n], on average over all routers."""
        return torch.stack([usage.overlap for usage in self.routers.values()]).mean(0)

    def by_layer(self) -> dict[str, dict[tuple[str, str], FactorUsage]]:
        """Sort the routers into their decoder layers, and what is none under its part's name."""
        blocks = {key: block_of(f".{key[0]}.") for key in self.routers}
        numbers = sorted({block for block in blocks.values() if isinstance(block, int)})
        names = group_names(numbers, None)
        layers: dict[str, dict[tuple[str, str], FactorUsage]] = {}
        for key, block in blocks.items():
            name = names[block] if isinstance(block, int) else block
            layers.setdefault(name, {})[key] = self.routers[key]
        return layers

    def as_json(self) -> dict[str, Any]:
        """Return plain lists and numbers; rows are tasks, columns factors."""
        modules: dict[str, dict[str, Any]] = {}
        for (module, pool), usage in self.routers.items():
            modules.setdefault(module, {})[pool] = usage.as_json()
        return {
            "method": self.method,
            "tasks": list(self.tasks),
            "examples": dict(zip(self.tasks, self.counts, strict=True)),
            "overlap": self.overlap.tolist(),
            "modules": modules,
            "tables": {name: table.tolist() for name, table in self.tables.items()},
        }


def measure_routing(
    model: nn.Module,
    samples: Mapping[str, Sequence[Encoded]],
    load_images: ImageLoader | None = None,
    progress: StepProgress | None = None,
) -> TaskRouting:
    """Find out which factors the examples of each task use.

    Args:
        model: with an adapter of MMA, MixLoRA or LoRA experts; MMA's is not run, its weights are a
            table.
        samples: encoded examples by task, with their answers as in training. Where text is left to
            the base model, those without an image are passed over, and tasks of text alone.
        load_images: images -> the model's image tensors.
        progress: called with (examples done, in all).

    Raises:
        ModelError: the model has no adapter that routes, or none of the examples is routed.
    """
    method = _method(model)
    if text_is_base(model):
        samples = _with_images(samples)
    counts = [len(own) for own in samples.values()]
    if method == "mma":
        tables = routing_table(model)
        image_shares = [
            sum(sample.modality for sample in own) / len(own) for own in samples.values()
        ]
        return TaskRouting(
            method, list(samples), counts, usage_of_tables(tables, image_shares), tables
        )
    routers = _usage_of_choices(cast(PeftModel, model), samples, load_images, progress)
    return TaskRouting(method, list(samples), counts, routers, {})


def _with_images(samples: Mapping[str, Sequence[Encoded]]) -> dict[str, Sequence[Encoded]]:
    """Leave out what the base model answers alone."""
    with_images = {
        task: [sample for sample in own if sample.modality] for task, own in samples.items()
    }
    if not any(with_images.values()):
        raise ModelError(
            "no example has an image, and tuner.text_route: base leaves text to the base model, so "
            "nothing is routed; analyze data with images"
        )
    return {task: own for task, own in with_images.items() if own}


def _method(model: nn.Module) -> str:
    if isinstance(model, PeftModel):
        name = str(model.active_peft_config.peft_type.value).lower()  # type: ignore[union-attr]
        if not getattr(model.active_peft_config, "router", True):
            raise ModelError(f"this {name} adapter was made without a router (router: false)")
        if name in ("mma", "mixlora", "lora_experts"):
            return name
        raise ModelError(
            f"a {name} adapter has no router: every example uses all of it; routing is that of "
            "mma, mixlora and lora_experts"
        )
    raise ModelError(
        "the model has no adapter; routing is that of an mma, mixlora or lora_experts adapter"
    )


def usage_of_tables(
    tables: Mapping[str, Tensor], image_shares: Sequence[float]
) -> dict[tuple[str, str], FactorUsage]:
    """Turn MMA's weights by modality into weights by task.

    Args:
        tables: [2 modalities, 2 branches] by name.
        image_shares: for each task, the share of its examples that have an image.

    >>> table = torch.tensor([[0.9, 0.1], [0.5, 0.5]])
    >>> usage_of_tables({"norm": table}, [0.0, 1.0])["norm", "branches"].shares[:, 0].tolist()
    [0.8999999761581421, 0.5]
    """
    share = torch.tensor(image_shares)[:, None]  # [n, 1]
    return {
        (name, BRANCHES): FactorUsage((1 - share) * table[0] + share * table[1])
        for name, table in tables.items()
    }


def _usage_of_choices(
    model: PeftModel,
    samples: Mapping[str, Sequence[Encoded]],
    load_images: ImageLoader | None,
    progress: StepProgress | None,
) -> dict[tuple[str, str], FactorUsage]:
    """Run every example and count the factors that it chooses at each linear."""
    collate = Collator(pad_id=0, load_images=load_images)
    config = model.active_peft_config
    size = cast(int, getattr(config, "num_factors", None) or getattr(config, "num_experts", None))
    counts: dict[tuple[str, str], Tensor] = {}
    total, done = sum(map(len, samples.values())), 0
    device = next(model.parameters()).device
    for task, own in enumerate(samples.values()):
        for sample in own:
            batch = collate([_until_trained(sample)])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            batch.pop("labels")
            with torch.no_grad(), evaluating(model), record_routing(model) as records:
                model(**batch, logits_to_keep=1, use_cache=False)
            for record in records:
                for pool, shares in _shares(record, size, isinstance(config, LoraExpertsConfig)):
                    place = counts.setdefault((record.layer, pool), torch.zeros(len(samples), size))
                    place[task] += shares
            done += 1
            if progress is not None:
                progress(done, total)
    return {key: FactorUsage(count / count.sum(1, keepdim=True)) for key, count in counts.items()}


def _shares(record: RoutingRecord, size: int, are_experts: bool) -> Iterator[tuple[str, Tensor]]:
    """Yield each pool's name and what a record adds to its factors, [E]."""
    if are_experts:
        yield EXPERTS, torch.bincount(record.factors_a.flatten(), record.weights.flatten(), size)
        return
    for pool, factors in ((POOL_A, record.factors_a), (POOL_B, record.factors_b)):
        yield pool, torch.bincount(factors.flatten(), minlength=size)


def _until_trained(sample: Encoded) -> Encoded:
    """Leave out what follows the last answer: the template's end would count as one more turn."""
    stop = int(np.flatnonzero(~sample.prompt_mask)[-1]) + 1
    return replace(sample, input_ids=sample.input_ids[:stop], prompt_mask=sample.prompt_mask[:stop])
