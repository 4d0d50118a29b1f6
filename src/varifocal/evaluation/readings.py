"""What a model makes of tokens that it did not write: retention's readings.

Letters: B rows, T tokens of the longest row, M tokens that are read, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example
from varifocal.evaluation.generation import evaluation_mode, greedy_answers
from varifocal.evaluation.likelihood import EncodedQuestion, ImageLoader, batch_by_length, plant
from varifocal.models.decoding import reads_marks, stop_ids
from varifocal.progress import StepProgress

MAX_NEW_TOKENS = 48
"""Of the base's answers to instructions and descriptions."""

_TOKEN_BUDGET = 1024  # of a batch; logits of every token are held at once


@dataclass(frozen=True)
class Reading:
    """How a model reads a text that somebody else wrote.

    Attributes:
        nats: of all its tokens.
        tokens: how many.
        hits: of them, those that the model would have written itself.
    """

    nats: float
    tokens: int
    hits: int


def greedy_continuations(
    model: nn.Module,
    encoder: Encoder,
    examples: Sequence[Example],
    tell: StepProgress,
) -> list[EncodedQuestion]:
    """Let a model answer: each prompt, and its answer as the only option."""
    prompts = [encoder.encode(example, with_answer=False).input_ids for example in examples]
    end = encoder.end_of_turn_id
    probes = [EncodedQuestion(ids, (np.array([end], np.int32),)) for ids in prompts]
    with evaluation_mode(model):
        answers = greedy_answers(
            model,
            probes,
            None,
            stop_ids=stop_ids(model, end),
            max_new_tokens=MAX_NEW_TOKENS,
            progress=tell,
        )
    whole = (ids if len(ids) == MAX_NEW_TOKENS else [*ids, end] for ids in answers)
    return [
        EncodedQuestion(prompt, (np.array(ids, np.int32),))
        for prompt, ids in zip(prompts, whole, strict=True)
    ]


def after_images(
    encoder: Encoder, scenes: Sequence[Example], described: Sequence[EncodedQuestion]
) -> list[EncodedQuestion]:
    """Put the images in front of what the base answered to their descriptions."""
    encoder = encoder.for_prompts(None)
    encoded = [encoder.encode(scene, with_answer=False) for scene in scenes]
    return [
        EncodedQuestion(prompt.input_ids, answer.option_ids, prompt.modality, tuple(prompt.images))
        for prompt, answer in zip(encoded, described, strict=True)
    ]


@torch.inference_mode()
def measure_readings(
    model: nn.Module,
    questions: Sequence[EncodedQuestion],
    load_images: ImageLoader | None = None,
    *,
    ends: Collection[int] = (),
    token_budget: int = _TOKEN_BUDGET,
    progress: StepProgress | None = None,
) -> list[Reading]:
    """Read what follows each prompt, its tokens given one after the other.

    Args:
        model: a causal language model in evaluation mode.
        questions: with one option each.
        load_images: images of a batch -> the model's image tensors; needed when there are images.
        ends: ids that end an answer; one is as good as another.
        token_budget: most tokens of a batch, padding included.
        progress: called with (done, all) after every batch.

    Returns:
        In the order of `questions`.
    """
    readings: list[Reading] = [Reading(0.0, 0, 0)] * len(questions)
    done, ending = 0, torch.tensor(sorted(ends), dtype=torch.long)
    for batch in batch_by_length([question.length for question in questions], token_budget):
        chosen = [questions[index] for index in batch]
        images = [image for question in chosen for image in question.images]
        tensors = load_images(images) if images and load_images else {}
        rows = plant(chosen)
        logits = _logits(model, rows, tensors)[rows.rows, rows.columns].double()  # [M, V]
        nats = logits.logsumexp(dim=1) - logits.gather(1, rows.targets[:, None])[:, 0]
        picked = logits.argmax(dim=1)
        both_end = torch.isin(picked, ending) & torch.isin(rows.targets, ending)
        hits = (picked == rows.targets) | both_end
        for place, index in enumerate(batch):
            own = rows.options == place
            readings[index] = Reading(float(nats[own].sum()), int(own.sum()), int(hits[own].sum()))
        done += len(batch)
        if progress is not None:
            progress(done, len(questions))
    return readings


def _logits(model: nn.Module, rows: Any, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """[B, T, V] on the CPU, of rows padded on the right."""
    device = next(model.parameters()).device
    inputs = {"input_ids": rows.input_ids, "position_ids": rows.position_ids, **images}
    inputs["attention_mask"] = (rows.segment_ids == 0).long()
    if reads_marks(model):
        for name in ("modality_ids", "segment_ids", "prompt_mask"):
            inputs[name] = getattr(rows, name)
    moved = {name: value.to(device) for name, value in inputs.items()}
    return model(**moved, use_cache=False).logits.float().cpu()
