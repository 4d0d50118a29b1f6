"""Let models write answers and read those of others, token for token: what retention compares.

Token ids stand for the prompts, so that every model takes the very same; the runner asks them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from varifocal.assemble import Assembly
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.evaluation.benchmark import Answer, Item, Method, Prompt, exact
from varifocal.evaluation.benchmarks.scienceqa import choice_benchmark
from varifocal.evaluation.evaluated_model import ONE_BATCH, EncodedAsker, key_of
from varifocal.evaluation.generation import greedy_answers
from varifocal.evaluation.open_answers import benchmark_of, items_of
from varifocal.evaluation.runner import About, Asked, AskOptions, ask_items
from varifocal.models.decoding import stop_ids
from varifocal.models.likelihood import (
    EncodedQuestion,
    ImageLoader,
    Normalisation,
    Rating,
    rate_options,
)
from varifocal.progress import Progress

MAX_NEW_TOKENS = 48
"""Of the base's answers to instructions and descriptions."""

_CHOICE_BUDGET = 4096
_BUDGETS: dict[Method, int] = {"likelihood": 1024, "generate": 4096}
"""Tokens of a batch; what is read has the logits of all its tokens in double precision."""


@dataclass(frozen=True)
class TokenReader:
    """A model that writes and reads; what it did is stored, and not done again.

    Attributes:
        parts: the model with its image loader.
        encoder: of its prompts and answers.
        directory: where the predictions go.
        about: who it is.
        progress: called with the file's name, done and total.
    """

    parts: Assembly
    encoder: Encoder
    directory: Path
    about: About
    progress: Progress | None = None

    def write(self, name: str, examples: Sequence[Example]) -> list[EncodedQuestion]:
        """Answer greedily: each prompt, and its answer as the only option.

        Args:
            name: of the file of the predictions.
            examples: what is asked.
        """
        if not examples:
            return []
        end = self.encoder.end_of_turn_id
        prompts = [
            self.encoder.encode(example, with_answer=False).input_ids for example in examples
        ]
        probes = [EncodedQuestion(ids, (np.array([end], np.int32),)) for ids in prompts]
        answers = (answer.ids for _, answer in self._ask(name, probes, "generate").answered)
        whole = (ids if len(ids) == MAX_NEW_TOKENS else [*ids, end] for ids in answers)
        return [
            EncodedQuestion(prompt, (np.array(ids, np.int32),))
            for prompt, ids in zip(prompts, whole, strict=True)
        ]

    def read(self, name: str, questions: Sequence[EncodedQuestion]) -> list[Rating]:
        """Read what follows each prompt, its tokens given one after the other.

        Args:
            name: of the file of the predictions.
            questions: with one option each.
        """
        if not questions:
            return []
        asked = self._ask(name, questions, "likelihood")
        return [
            Rating(answer.scores[0], asked.prompts[item.id].option_lengths[0], answer.hits[0])
            for item, answer in asked.answered
        ]

    def choose(self, name: str, examples: Sequence[Example]) -> list[float]:
        """Return 1 for each question whose right choice is the likeliest, else 0.

        Args:
            name: of the file of the predictions.
            examples: multiple-choice questions without images.
        """
        if not examples:
            return []
        asked = ask_items(
            choice_benchmark(name, "", "likelihood", MAX_NEW_TOKENS),
            items_of(examples),
            EncodedAsker(replace(self.parts, encoder=self.encoder)),
            self.directory,
            options=AskOptions(token_budget=_CHOICE_BUDGET),
            about=self.about,
            progress=self.progress,
        )
        return [exact(item, answer) for item, answer in asked.answered]

    def _ask(self, name: str, questions: Sequence[EncodedQuestion], method: Method) -> Asked:
        benchmark = replace(
            benchmark_of("exact", name, "", MAX_NEW_TOKENS),
            method=method,
            parse=lambda text, item: text,
            credit=partial(_credit, questions),
        )
        return ask_items(
            benchmark,
            _items(self.encoder, questions),
            TokenAsker(self.parts, self.encoder, questions),
            self.directory,
            options=AskOptions(token_budget=_BUDGETS[method]),
            about=self.about,
            progress=self.progress,
        )


class TokenAsker:
    """Asks with token ids that are there already, and counts what a model would have written.

    Args:
        parts: the model with its image loader.
        encoder: of what it writes.
        questions: the example of the id "1" stands for the first.
    """

    def __init__(
        self, parts: Assembly, encoder: Encoder, questions: Sequence[EncodedQuestion]
    ) -> None:
        self.model, self._load_images = parts.model, parts.load_images
        self._encoder, self._questions = encoder, questions
        self._ends = stop_ids(parts.model, encoder.end_of_turn_id)

    def prepare(self, example: Example, *, with_options: bool) -> Prompt:
        """Find the ids that an example stands for."""
        question = self._questions[int(example.id) - 1]
        options = question.option_ids if with_options else ()
        key = key_of([question.prompt_ids, *options], question.images, example)
        lengths = tuple(map(len, options))
        return Prompt(key, len(question.prompt_ids) + sum(lengths), False, question, lengths)

    def score(self, prompts: Sequence[Prompt], normalisation: Normalisation) -> list[Answer]:
        """Return the option's log-probability, and how much of it the model would have written.

        Raises:
            ValueError: the mean over tokens is wanted.
        """
        if normalisation != "sum":
            raise ValueError("a text is read by the sum over its tokens")
        asked = [prompt.question for prompt in prompts]
        rated = rate_texts(
            self.model, asked, self._load_images, ends=self._ends, token_budget=ONE_BATCH
        )
        return [Answer(scores=(rating.score,), hits=(rating.hits,)) for rating in rated]

    def write(self, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Answer]:
        """Write the likeliest answer to each prompt."""
        written = greedy_answers(
            self.model,
            [prompt.question for prompt in prompts],
            self._load_images,
            stop_ids=self._ends,
            max_new_tokens=max_new_tokens,
            token_budget=ONE_BATCH,
        )
        return [Answer(self._encoder.read_answer(ids), ids=tuple(ids)) for ids in written]


def rate_texts(
    model: nn.Module,
    questions: Sequence[EncodedQuestion],
    load_images: ImageLoader | None = None,
    *,
    ends: Collection[int] = (),
    token_budget: int = _BUDGETS["likelihood"],
) -> list[Rating]:
    """Rate what follows each prompt, its tokens given one after the other, in double precision.

    Args:
        model: a causal language model in evaluation mode.
        questions: with one option each.
        load_images: images of a batch -> the model's image tensors; needed when there are images.
        ends: ids that end an answer; one is as good as another.
        token_budget: most tokens of a batch, padding included.
    """
    rated = rate_options(
        model, questions, load_images,
        token_budget=token_budget, tree=False, ends=ends, exact=True,
    )  # fmt: skip
    return [rating for (rating,) in rated]


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


def _items(encoder: Encoder, questions: Sequence[EncodedQuestion]) -> Iterator[Item]:
    """Yield each question in words: its prompt, and its option as what is right."""
    decode = partial(encoder.tokenizer.decode, skip_special_tokens=True)
    for number, question in enumerate(questions, start=1):
        message = Message("user", (str(decode(question.prompt_ids)),))
        answer = encoder.read_answer(question.option_ids[0].tolist())
        example = Example((message,), str(number), choices=(answer,))
        yield Item(str(number), example, (answer,) if answer else ())


def _credit(questions: Sequence[EncodedQuestion], item: Item, answer: Answer) -> float | None:
    """Give 1 where the model would have written the whole option; nothing for what it wrote."""
    if answer.text is not None:
        return None
    return float(answer.hits[0] == len(questions[int(item.id) - 1].option_ids[0]))
