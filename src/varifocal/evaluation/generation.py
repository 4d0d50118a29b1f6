"""Let the model write its answer; `choice_parser` reads which option it named."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from varifocal.evaluation.choice_parser import parse_answer as parse_answer
from varifocal.models.decoding import decode, pad_left
from varifocal.models.likelihood import EncodedQuestion, ImageLoader, batch_by_length
from varifocal.progress import StepProgress


def greedy_answers(
    model: nn.Module,
    questions: Sequence[EncodedQuestion],
    load_images: ImageLoader | None,
    *,
    stop_ids: Collection[int],
    max_new_tokens: int = 64,
    token_budget: int = 4096,
    progress: StepProgress | None = None,
) -> list[list[int]]:
    """Write the likeliest continuation of every prompt, up to its end of turn.

    Args:
        model: a causal language model in evaluation mode.
        questions: their options are not looked at.
        load_images: images of a batch -> the model's image tensors.
        stop_ids: ids that end an answer; not part of it.
        max_new_tokens: an answer that has not ended by then is cut.
        token_budget: most tokens of a batch, padding and answers included.
        progress: called with (questions done, questions in all) after every batch.

    Returns:
        Token ids, in the order of `questions`.
    """
    answers: list[list[int]] = [[] for _ in questions]
    done = 0
    lengths = [len(question.prompt_ids) + max_new_tokens for question in questions]
    for batch in batch_by_length(lengths, token_budget):
        chosen = [questions[index] for index in batch]
        written = _write(model, chosen, load_images, frozenset(stop_ids), max_new_tokens)
        for index, ids in zip(batch, written, strict=True):
            answers[index] = ids
        done += len(batch)
        if progress is not None:
            progress(done, len(questions))
    return answers


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for the while."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag


def _write(
    model: nn.Module,
    questions: Sequence[EncodedQuestion],
    load_images: ImageLoader | None,
    stop_ids: frozenset[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Decode one batch until every row has ended."""
    images = [image for question in questions for image in question.images]
    if images and load_images is None:
        raise ValueError("questions have images, but load_images is None")
    prompts = pad_left(
        [question.prompt_ids.tolist() for question in questions],
        [question.modality for question in questions],
    )
    tensors = load_images(images) if images and load_images is not None else {}
    answers: list[list[int]] = [[] for _ in questions]
    open_rows = torch.ones(len(questions), dtype=torch.bool)
    for ids in decode(model, prompts, tensors, max_new_tokens=max_new_tokens):
        for row in open_rows.nonzero()[:, 0].tolist():
            token = int(ids[row])
            if token in stop_ids:
                open_rows[row] = False
            else:
                answers[row].append(token)
        if not open_rows.any():
            break
    return answers
