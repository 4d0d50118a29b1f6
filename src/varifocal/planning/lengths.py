"""What a run reads: its tokens, its padding and its images, by the data itself.

Little data is encoded whole, as the run would, into the same tables, and every batch of every
epoch is known; of much data the first window is encoded and stands for the rest; without data,
every example is taken to be as long as it may be.

Legend: B rows, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from varifocal.data.encoding.encoder import Encoded, Encoder
from varifocal.data.rows.packing import Collator, PackedDataset
from varifocal.errors import ChatTemplateError, ModelError
from varifocal.models.families.base import MetaImages
from varifocal.planning.shapes import Shapes, encoder_of
from varifocal.recipe import HubSection, Recipe, leaves_text
from varifocal.training.cost import Spent
from varifocal.training.examples import TrainingData, load_training_data
from varifocal.training.flops import FlopFormula
from varifocal.training.keep import assumed_replay, pass_flops

COLLATED = 64
"""Batches whose operations are counted one by one; more are estimated by these."""

Batch = Mapping[str, Tensor]
Row = Sequence[Encoded]


@dataclass(frozen=True)
class Workload:
    """What a run goes through, all devices together.

    Attributes:
        batch: the largest batch, as a device gets it.
        exact: whether every token was counted, none estimated.
        steps: optimiser steps; None where the data are unknown, like all numbers that follow.
        examples: of an epoch.
        tokens: without padding.
        tokens_trained: of them, those with a loss.
        tokens_padding: what fills up rows.
        vision_passes: images through the tower.
        vision_lookups: images whose features are looked up.
        flops: operations, the tower's included; those on padding are `flops_masked`.
        flops_keep: of them, those of the base's answers before the first step.
        num_dropped, num_cut: examples over the limit that were left out, and cut.
        notes: what was assumed, one sentence each.
    """

    batch: Batch
    exact: bool = False
    steps: int | None = None
    examples: int | None = None
    tokens: int | None = None
    tokens_trained: int | None = None
    tokens_padding: int | None = None
    vision_passes: int | None = None
    vision_lookups: int | None = None
    flops: int | None = None
    flops_keep: int | None = None
    flops_masked: int | None = None
    num_dropped: int = 0
    num_cut: int = 0
    notes: list[str] = field(default_factory=list)


def num_steps(recipe: Recipe, num_rows: int, num_devices: int) -> int:
    """Count a run's optimiser steps, as transformers' Trainer does.

    Args:
        recipe: its batch sizes and epochs.
        num_rows: of an epoch.
        num_devices: that share them.

    >>> from varifocal.recipe import load_recipe
    >>> lavin = load_recipe("lavin-7b-scienceqa", check_paths=False)  # 4 rows x 8 a step
    >>> num_steps(lavin, num_rows=12726, num_devices=1)
    7960
    """
    training = recipe.training
    if training.max_steps >= 0:
        return training.max_steps
    return math.ceil(training.num_train_epochs * _steps_per_epoch(recipe, num_rows, num_devices))


def _steps_per_epoch(recipe: Recipe, num_rows: int, num_devices: int) -> int:
    training = recipe.training
    batches = math.ceil(num_rows / training.per_device_train_batch_size)
    own = math.ceil(batches / num_devices)
    return max(math.ceil(own / training.gradient_accumulation_steps), 1)


def work_of(
    recipe: Recipe, shapes: Shapes, data: TrainingData | None, num_devices: int
) -> Workload:
    """Count what is read; without tokenizer or data, assume it."""
    if data is not None:
        return count_work(recipe, data, shapes, num_devices)
    try:
        encoder = encoder_of(recipe)
    except ChatTemplateError:  # `train` would refuse it, too
        raise
    except ModelError:
        reason = "the tokenizer cannot be had"
        return assume_work(recipe, shapes.formula, shapes.images, num_devices, reason)
    missing = _missing_data(recipe)
    if missing:
        return assume_work(recipe, shapes.formula, shapes.images, num_devices, missing)
    opened, num_over = _open(recipe, encoder, num_devices)
    work = count_work(recipe, opened, shapes, num_devices)
    return replace(work, num_dropped=num_over) if num_over else work


def _missing_data(recipe: Recipe) -> str:
    """Say why data cannot be read from here; empty where they can."""
    if not recipe.data.train:
        return "data.train names no source"
    for source in recipe.data.train:
        if source.streaming:
            return f"{source.place} is a stream"
        if isinstance(source, HubSection):
            return f"{source.hub} is on a hub and nothing is downloaded for a plan"
        if not any(mark in source.path for mark in "*?[") and not Path(source.path).exists():
            return f"there is no '{source.path}'"
    return ""


def _open(recipe: Recipe, encoder: Encoder, num_devices: int) -> tuple[TrainingData, int]:
    """Open data as the run does; one over the limit is counted here where the run would stop."""
    training = recipe.training
    rows = training.per_device_train_batch_size * training.gradient_accumulation_steps
    wanted = training.max_steps * rows * num_devices if training.max_steps > 0 else None
    lenient = encoder
    if encoder.overflow == "error":
        data = recipe.data.model_copy(update={"overflow": "drop"})
        lenient = encoder_of(recipe.model_copy(update={"data": data}))
    opened = load_training_data(
        recipe.data,
        lenient,
        seed=recipe.seed,
        num_rows=wanted,
        replay=assumed_replay(recipe, encoder),
        images_only=leaves_text(recipe.tuner),
    )
    return opened, len(opened.tally.dropped) if lenient is not encoder else 0


def count_work(
    recipe: Recipe, data: TrainingData, shapes: Shapes, num_devices: int = 1
) -> Workload:
    """Count what a run on known data goes through.

    Args:
        recipe: its batch sizes, row length and epochs.
        data: opened as the run opens it.
        shapes: of its model: operations of a step, and how images come into a batch.
        num_devices: that share the rows.
    """
    formula, images = shapes.formula, shapes.images
    steps = num_steps(recipe, len(data.rows), num_devices)
    collate = _collator(recipe, images)
    if not steps or data.samples is None or not isinstance(data.rows, PackedDataset):
        counted, share = _sampled(recipe, data, steps, num_devices), None
    else:
        counted, share = _all(recipe, data, steps, num_devices), data.samples
    batches = counted.batches
    chosen = batches[:: max(1, -(-len(batches) // COLLATED))]
    spent = Spent()
    for rows in chosen:
        spent.add(collate(counted.rows(rows)), formula, images.token_id)
    scale = counted.tokens / max(spent.tokens, 1)
    looked_up = round(spent.vision_lookups * scale)
    num_images = round(_images(spent, formula, counted, chosen, collate, images) * scale)
    if images.by_table:
        num_images = len({image.fingerprint() for image in data.images()}) if share else looked_up
    answers = 0
    if data.replay is not None and recipe.training.keep is not None:
        answers = pass_flops(data.replay.samples, recipe.training.keep, shapes.decoder)
    return Workload(
        batch=collate(counted.rows(counted.largest(formula))),
        exact=share is not None or not steps,
        steps=steps,
        examples=counted.examples,
        tokens=counted.tokens,
        tokens_trained=round(spent.tokens_trained * scale),
        tokens_padding=counted.padding,
        vision_passes=num_images,
        vision_lookups=looked_up,
        flops=round(spent.flops * scale) + num_images * formula.image.tower + answers,
        flops_keep=answers,
        flops_masked=round(spent.flops_masked * scale),
        num_dropped=len(data.tally.dropped),
        num_cut=data.tally.num_cut,
        notes=[
            *([] if share or not steps else [_SAMPLED.format(len(counted.lengths))]),
            *([_ANSWERED] if data.replay is not None else []),
            *data.tally.notes(),
        ],
    )


_ANSWERED = (
    "the answers of the base that training.keep asks for are taken to be written in this run and "
    "to be as long as they may be, where they are not known; another run's are found in the cache"
)
_SAMPLED = (
    "the data are many: {:,} examples were encoded and stand for the rest, so tokens, images and "
    "hours are estimates"
)


def _images(
    spent: Spent,
    formula: FlopFormula,
    counted: _Counted,
    chosen: list[list[list[int]]],
    collate: Collator,
    images: MetaImages,
) -> int:
    """Count images that go through the tower within the chosen batches."""
    if images.load is None or images.by_table:
        return 0
    return sum(
        len(sample.images) for rows in chosen for row in counted.rows(rows) for sample in row
    )


@dataclass
class _Counted:
    """Rows of a run as numbers of samples."""

    samples: Any
    lengths: Mapping[int, int] | Sequence[int]
    batches: list[list[list[int]]]
    tokens: int
    padding: int
    examples: int

    def rows(self, batch: list[list[int]]) -> list[list[Encoded]]:
        """Read a batch's samples."""
        return [[self.samples[number] for number in row] for row in batch]

    def largest(self, formula: FlopFormula) -> list[list[int]]:
        """Find the batch that takes most: tokens through the layers, logits at trained ones."""
        shape = formula.decoder

        def tokens(batch: list[list[int]]) -> int:
            return len(batch) * max(sum(self.lengths[n] for n in row) for row in batch)

        longest = sorted(self.batches, key=tokens, reverse=True)[:COLLATED]
        wide = shape.head / max(shape.attention_width, 1)

        def weight(batch: list[list[int]]) -> float:
            trained = sum(len(sample.trained_ids) for row in self.rows(batch) for sample in row)
            # A layer keeps some 16 states of its width a token, the head about 3 of the vocabulary.
            states = 16 * shape.num_layers * shape.attention_width * tokens(batch)
            return states + 3 * wide * trained

        return max(longest, key=weight)


def _all(recipe: Recipe, data: TrainingData, steps: int, num_devices: int) -> _Counted:
    """Walk through every batch of every epoch."""
    rows: Any = data.rows
    lengths = rows.lengths
    training = recipe.training
    size, static = training.per_device_train_batch_size, _static(recipe)
    per_step = training.gradient_accumulation_steps * num_devices
    batches: list[list[list[int]]] = []
    tokens = padding = 0
    epoch = 0
    left = steps
    while left > 0:
        rows.set_epoch(epoch)
        own = [rows.rows[start : start + size] for start in range(0, len(rows.rows), size)]
        own = own[: left * per_step]
        for batch in own:
            used = [sum(lengths[number] for number in row) for row in batch]
            tokens += sum(used)
            padding += len(used) * (static or max(used)) - sum(used)
        batches += own
        left -= math.ceil(len(own) / per_step)
        epoch += 1
    rows.set_epoch(0)
    examples = len(data.samples or ())
    return _Counted(rows.samples, lengths, batches, tokens, padding, examples)


def _sampled(recipe: Recipe, data: TrainingData, steps: int, num_devices: int) -> _Counted:
    """Read the first batches, and let them stand for all."""
    rows: Any = data.rows
    training = recipe.training
    size, static = training.per_device_train_batch_size, _static(recipe)
    per_step = size * training.gradient_accumulation_steps * num_devices
    wanted = min(len(rows), size * COLLATED)
    samples: list[Encoded] = []
    read: list[list[int]] = []
    for number in range(wanted):
        row = rows[number]
        read.append(list(range(len(samples), len(samples) + len(row))))
        samples += row
    lengths = [len(sample) for sample in samples]
    batches = [read[start : start + size] for start in range(0, wanted, size)]
    used = [[sum(lengths[number] for number in row) for row in batch] for batch in batches]
    tokens = sum(map(sum, used))
    padding = sum(len(row) * (static or max(row)) for row in used) - tokens
    full_epochs = training.max_steps < 0
    all_rows = training.num_train_epochs * len(rows) if full_epochs else steps * per_step
    scale = all_rows / max(wanted, 1)
    examples = len(data.draw.records) if data.draw is not None else round(len(samples) * scale)
    return _Counted(
        samples, lengths, batches, round(tokens * scale), round(padding * scale), examples
    )


def assume_work(
    recipe: Recipe, formula: FlopFormula, images: MetaImages, num_devices: int, reason: str
) -> Workload:
    """Assume that every example is as long as it may be, where the data cannot be had.

    Numbers of a whole run are known only if `data.mixture.total` says how many examples there are.

    Args:
        recipe: its `max_length`, batch sizes and epochs.
        formula: operations of a step of its model.
        images: how images come into a batch.
        num_devices: that share the rows.
        reason: why the data cannot be had.
    """
    longest = recipe.data.max_length
    per_row = (recipe.data.row_length or longest) // longest if recipe.data.packing else 1
    has_image = images.load is not None and images.tokens < longest
    sample = _longest_sample(longest, images if has_image else MetaImages())
    size = recipe.training.per_device_train_batch_size
    batch = _collator(recipe, images)([[sample] * per_row] * size)
    notes = [
        f"lengths are not known ({reason}): every example is taken to fill data.max_length "
        f"{longest}, all of it trained{', with an image' if has_image else ''}"
    ]
    examples = recipe.data.mixture.total
    if not examples:
        notes.append(
            "tokens and hours need the data, or an epoch's examples: --set data.mixture.total=N"
        )
        return Workload(batch=batch, notes=notes)
    num_rows = math.ceil(examples / per_row)
    steps = num_steps(recipe, num_rows, num_devices)
    taken = steps * recipe.training.gradient_accumulation_steps * num_devices * size * per_row
    if recipe.training.max_steps < 0:
        taken = round(recipe.training.num_train_epochs * examples)
    spent = Spent()
    spent.add(batch, formula, images.token_id)
    scale = taken / (size * per_row)
    num_images = taken if has_image else 0
    num_seen = min(examples, taken) if images.by_table and num_images else num_images
    return Workload(
        batch=batch,
        steps=steps,
        examples=examples,
        tokens=round(spent.tokens * scale),
        tokens_trained=round(spent.tokens_trained * scale),
        tokens_padding=0,
        vision_passes=num_seen,
        vision_lookups=num_images if images.by_table else 0,
        flops=round(spent.flops * scale) + num_seen * formula.image.tower,
        flops_masked=round(spent.flops_masked * scale),
        notes=notes,
    )


def _longest_sample(length: int, images: MetaImages) -> Encoded:
    """Make up an example: an image where the model takes any, then trained text."""
    visual = images.tokens if images.load else 0
    ids = np.zeros(length, np.int32)
    if visual and images.token_id is not None:
        ids[:visual] = images.token_id
    return Encoded(
        ids,
        np.arange(length) < max(visual, 1),
        modality=int(visual > 0),
        images=(None,) * bool(visual),  # type: ignore[arg-type]
    )


def _static(recipe: Recipe) -> int | None:
    row_length = recipe.data.row_length or recipe.data.max_length
    return row_length if recipe.training.compile_layers else None


def _collator(recipe: Recipe, images: MetaImages) -> Collator:
    return Collator(1, _static(recipe), images.load)
