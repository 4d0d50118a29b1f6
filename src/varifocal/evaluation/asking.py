"""How a model is asked: a question's prompt, its choices' likelihoods, a written answer.

The one seam between benchmarks and models: whatever follows `Asker` can be scored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from varifocal.assemble import Assembly
from varifocal.data.example import Example, Image, Message
from varifocal.errors import DataError
from varifocal.evaluation.answering import greedy_answers
from varifocal.evaluation.scoring import Normalisation, Question, score_options
from varifocal.models.decoding import stop_ids

_ONE_BATCH = 1 << 62  # tokens: whoever calls has made the batch


@dataclass(frozen=True)
class Prompt:
    """A question as a model reads it.

    Attributes:
        key: every byte that the answer depends on: the prompt's and the options' ids, and the
            digests of its pictures.
        length: tokens of its row.
        was_cut: whether text was taken out of it to fit into the model's window.
        question: what the asker itself needs.
        option_lengths: tokens of each option, end of turn included; empty where none is scored.
    """

    key: bytes
    length: int
    was_cut: bool
    question: Any
    option_lengths: tuple[int, ...] = ()

    @property
    def sha(self) -> str:
        """SHA-256 of `key`, in hex."""
        return hashlib.sha256(self.key).hexdigest()


class Asker(Protocol):
    """What a benchmark needs of a model."""

    model: Any

    def prepare(self, example: Example, *, with_options: bool) -> Prompt:
        """Write the prompt; `example` has no gold answer."""
        ...

    def score(self, prompts: Sequence[Prompt], normalisation: Normalisation) -> list[list[float]]:
        """Return each option's log-probability in nats, for one batch."""
        ...

    def write(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Write the likeliest answer to each prompt, for one batch."""
        ...


class EncodedAsker:
    """Asks a language model, a graft or a LLaVA, with or without a tuner.

    Args:
        parts: the model with its encoder and its pictures' way in.
    """

    def __init__(self, parts: Assembly) -> None:
        self.model = parts.model
        self._encoder, self._load_images = parts.encoder, parts.load_images
        self._end_of_turn = parts.encoder.end_of_turn_id

    def prepare(self, example: Example, *, with_options: bool) -> Prompt:
        """Encode a question, its options behind it when they are to be scored.

        Raises:
            DataError: it cannot be encoded, or a picture cannot be read.
        """
        if example.images and self._load_images is None:
            raise DataError(
                f"{example.name} has a picture, but the model has no vision tower; "
                "leave the pictures out with --blind"
            )
        if with_options:
            encoded, options = self._encoder.encode_options(example)
        else:
            encoded = self._encoder.encode(example, with_answer=False)
            options = [np.array([self._end_of_turn], np.int32)]
        question = Question(
            encoded.input_ids, tuple(options), encoded.modality, tuple(encoded.images)
        )
        key = key_of([encoded.input_ids, *options], encoded.images, example)
        lengths = tuple(map(len, options)) if with_options else ()
        return Prompt(key, question.length, encoded.was_cut, question, lengths)

    def score(self, prompts: Sequence[Prompt], normalisation: Normalisation) -> list[list[float]]:
        """Return each option's log-probability in nats."""
        return score_options(
            self.model,
            [prompt.question for prompt in prompts],
            self._load_images,
            normalisation=normalisation,
            token_budget=_ONE_BATCH,
        )

    def write(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[str]:
        """Write the likeliest answer to each prompt."""
        written = greedy_answers(
            self.model,
            [prompt.question for prompt in prompts],
            self._load_images,
            stop_ids=stop_ids(self.model, self._end_of_turn),
            max_new_tokens=max_new_tokens,
            token_budget=_ONE_BATCH,
        )
        return [self._encoder.read_answer(ids) for ids in written]


def without_pictures(example: Example) -> Example:
    """Take the pictures out of a question."""
    return replace(example, messages=tuple(_without(message) for message in example.messages))


def _without(message: Message) -> Message:
    texts = tuple(part for part in message.content if isinstance(part, str))
    return replace(message, content=texts)


def key_of(arrays: Sequence[Any], images: Sequence[Image], example: Example) -> bytes:
    """Join arrays of ids, each behind its length, and the digests of pictures."""
    parts = [part for ids in arrays for part in (len(ids).to_bytes(4, "little"), ids.tobytes())]
    try:
        return b"".join([*parts, *(bytes.fromhex(image.fingerprint()) for image in images)])
    except DataError as error:
        raise DataError(f"{example.name}: {error}") from error
