"""Let the model write its answer, and read which option it named.

A text that names no option, or more than one, is unparsed: a column of its own in the report and
never a guess.
"""

from __future__ import annotations

import re
import string
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from varifocal.evaluation.scoring import ImageLoader, Progress, Question, batch_by_length
from varifocal.models.decoding import decode, pad_left

LETTERS = string.ascii_uppercase

# "The answer is B." and its spellings; a letter that opens a phrase ("the answer is A magnet")
# names no option, but the official format appends a reason ("... is B. BECAUSE: ...").
_SENTENCE = re.compile(
    r"\b(?i:the (?:correct |best )?answer is):?\s*"
    r"(?:\(([A-Z])\)|([A-Z])(?=\s*(?:[.,:;)\n]|(?i:because\b)|$)))"
)
_LEAD = re.compile(r"^\s*(?:the (?:correct |best )?answer is|answer)\b:?\s*", re.IGNORECASE)
_LETTERED = re.compile(r"^(?:\(([A-Z])\)|([A-Z])[.):])\s*(.*)$", re.DOTALL)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n")


def parse_answer(text: str, choices: Sequence[str]) -> int | None:
    """Return the index of the option a written answer names, or None.

    Read are the option's text ("repel", or as the first sentence, also behind "The answer is"),
    and a letter ("B", "(B)", "B. repel", "The answer is B."). Case and the final full stop do not
    count. Two different letters, a letter beside another option's text, a letter without an option
    and a text that two options share name none.

    >>> parse_answer("The answer is B. BECAUSE: like poles face.", ["attract", "repel"])
    1
    >>> parse_answer("Repel.", ["attract", "repel"])
    1
    >>> parse_answer("They attract or repel.", ["attract", "repel"]) is None
    True
    """
    said = text.strip()
    bare = _LEAD.sub("", said)
    for candidate in (said, bare, _SENTENCE_END.split(bare, maxsplit=1)[0]):
        index = _by_text(candidate, choices)
        if index is not None:
            return index
    return _by_letter(said, bare, choices)


def greedy_answers(
    model: nn.Module,
    questions: Sequence[Question],
    load_images: ImageLoader | None,
    *,
    stop_ids: Collection[int],
    max_new_tokens: int = 64,
    token_budget: int = 4096,
    progress: Progress | None = None,
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
    questions: Sequence[Question],
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


def _plain(text: str) -> str:
    """Drop what does not tell options apart: case, runs of blanks, the final full stop."""
    return " ".join(text.split()).rstrip(".").strip().casefold()


def _by_text(text: str, choices: Sequence[str]) -> int | None:
    """Return the only option whose text this is."""
    matches = [i for i, choice in enumerate(choices) if _plain(choice) == _plain(text)]
    return matches[0] if len(matches) == 1 else None


def _by_letter(said: str, bare: str, choices: Sequence[str]) -> int | None:
    """Return the only option that a letter names, unless the text beside it names another."""
    letters = {bracketed or plain for bracketed, plain in _SENTENCE.findall(said)}
    beside = None
    if len(bare) == 1:
        letters.add(bare.upper())
    elif lettered := _LETTERED.match(bare):
        letters.add(lettered.group(1) or lettered.group(2))
        beside = _by_text(_SENTENCE_END.split(lettered.group(3), maxsplit=1)[0], choices)
    if len(letters) != 1:
        return None
    index = LETTERS.find(letters.pop())
    return index if 0 <= index < len(choices) and beside in (None, index) else None
