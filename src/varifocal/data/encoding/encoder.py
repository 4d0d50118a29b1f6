"""From examples to token ids: what is trained, where the images stand, what happens when too long.

Letters: T tokens of one example, V tokens an image takes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from varifocal.data.encoding.answer_span import Turn, Written
from varifocal.data.encoding.chat_template import AnswerSpan, ChatTemplate
from varifocal.data.encoding.encoded import IGNORED as IGNORED
from varifocal.data.encoding.encoded import Encoded, EncodedExamples, Ids
from varifocal.data.encoding.prefix_tokenizer import (
    PieceTokenizer,
    TokenBound,
    fingerprint_tokenizer,
    placeholder_id,
)
from varifocal.data.encoding.truncation import Overflow as Overflow
from varifocal.data.encoding.truncation import TooLongError as TooLongError
from varifocal.data.encoding.truncation import make_fit
from varifocal.data.encoding.turns import TrainOn as TrainOn
from varifocal.data.encoding.turns import (
    TurnWriter,
    answer_turns,
    answers_to_train,
    loses_system,
    naming_record,
    until_trained,
)
from varifocal.data.encoding.written_answer import read_words
from varifocal.data.example import Example, Message
from varifocal.data.json_files import OnBadRecord
from varifocal.errors import ChatTemplateError, DataError, ModelError
from varifocal.progress import StepProgress

VERSION = 2
"""Of the encoding itself; raised whenever the same example would get other ids or marks."""

_LOG = logging.getLogger(__name__)
_HELLO: Turn = {"role": "user", "content": "a"}


class Encoder:
    """Turns examples into token ids with the tokenizer's own chat template.

    Trained ids are the assistant's words and the end-of-turn token after them, exactly what the
    model has to write after the same prompt (see `encoding.answer_span`). An earlier answer that
    the template writes in another way once the conversation goes on (Qwen3 drops its thought) is
    prompt alone, and counted.

    Args:
        tokenizer: one without a chat template gets `template.plain_template`.
        image_token: the placeholder, one token of the tokenizer; None without a vision
            tower.
        image_token_id: its id, checked against the tokenizer's.
        tokens_per_image: V, how many placeholders one image becomes.
        max_length: most tokens of an example, images included; None for no limit.
        overflow: what becomes of longer examples. "error" raises; "drop" makes `encode_all` leave
            them out and count them; "truncate_prompt" takes text out of the middle of the longest
            user turns; "drop_oldest_turns" leaves the oldest questions with their answers out
            (see `encoding.truncation.drop_oldest`). Images, answers and the template's frame
            are never cut.
        system_prompt: None leaves the template's own default (SmolLM2's says who it is); a text
            is set in front of conversations that bring no system message; "" means none, as an
            empty system turn where the template would otherwise put its default.
        train_on: "answers" trains every assistant turn, "last_answer" the last one, "all" every
            token but the first and the images.
        chat_template: a Jinja template to take instead of the tokenizer's own.

    Attributes:
        system: what a conversation without a system message starts with; None for no such turn.

    Raises:
        ModelError: the placeholder is not one token, or the template cannot be used, or refuses
            the system prompt.
        ValueError: a number or a word that is not allowed.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_token: str | None = None,
        image_token_id: int | None = None,
        tokens_per_image: int = 0,
        max_length: int | None = None,
        overflow: Overflow = "error",
        system_prompt: str | None = None,
        train_on: TrainOn = "answers",
        chat_template: str | None = None,
    ) -> None:
        if overflow not in get_args(Overflow):
            raise ValueError(f"overflow is '{overflow}', not one of {get_args(Overflow)}")
        if train_on not in get_args(TrainOn):
            raise ValueError(f"train_on is '{train_on}', not one of {get_args(TrainOn)}")
        if max_length is not None and max_length < 2:
            raise ValueError(f"max_length is {max_length}; at least 2 tokens are needed")
        if image_token is not None and tokens_per_image < 1:
            raise ValueError(f"tokens_per_image is {tokens_per_image}; an image takes at least 1")
        self.tokenizer = tokenizer
        self.template = ChatTemplate(tokenizer, image_token, chat_template)
        self.pieces = PieceTokenizer(tokenizer)
        self.image_token = image_token
        self.image_token_id = placeholder_id(tokenizer, image_token, image_token_id)
        self.tokens_per_image = tokens_per_image
        self.max_length = max_length
        self.overflow: Overflow = overflow
        self.train_on: TrainOn = train_on
        self.system = self.template.system_turn(system_prompt)
        self._check_system()
        self._turns = TurnWriter(self.template.control_tokens, image_token, self.system)
        self._fewest_tokens: Callable[[str], int] | None = None

    def for_prompts(self, window: int | None) -> Encoder:
        """Return the same encoder for conversations to be answered, which are never cut.

        Args:
            window: most tokens; a longer conversation is a `TooLongError`, and one whose text
                cannot be as short is refused before it is tokenised. None for no limit.
        """
        other = copy.copy(self)
        other.__dict__.pop("fingerprint", None)
        other.max_length, other.overflow = window, "error"
        other._fewest_tokens = TokenBound(self.tokenizer)
        return other

    def _check_system(self) -> None:
        """Refuse a system prompt that the template refuses, and tell of one that it leaves out."""
        if not self.system:
            return
        turns: list[Turn] = [{"role": "system", "content": self.system}, _HELLO]
        try:
            text = self.template.render(turns)
        except ChatTemplateError as error:
            raise ModelError(f"data.system_prompt cannot be set: {error}") from error
        if loses_system(turns, text):
            _LOG.warning(
                "data.system_prompt is not in what the model reads: the chat template leaves it out"
            )

    def encode(self, example: Example, with_answer: bool = True) -> Encoded:
        """Encode one example.

        Args:
            example: a conversation; with an answer it ends with the assistant's turn.
            with_answer: False leaves a closing assistant turn out and ends with the template's
                generation prompt; nothing of it is trained.

        Returns:
            Its ids and what of them is trained.

        Raises:
            TooLongError: it is over `max_length` and may not or cannot be made shorter.
            DataError: the text holds the placeholder or one of the template's control tokens, an
                image meets a model without a vision tower, an answer is missing or empty, no
                answer is to be trained, or the chat template refuses the conversation.
        """
        if with_answer:
            example = until_trained(example, self.train_on)
        with naming_record(example):
            turns = self._turns.write(example, with_answer)
            encoded = self._encode(turns, example)
            if self._fits(encoded):
                return encoded
            build = partial(self._turns.write, with_answer=with_answer)
            turns, shorter, how = self._shorten(example, encoded, build)
            return replace(self._encode(turns, shorter), **how)

    def encode_options(self, example: Example) -> tuple[Encoded, list[Ids]]:
        """Encode a multiple-choice question and each of its options, for scoring by likelihood.

        An option's ids are those the answer has in training when that option is the right one: its
        words and the end-of-turn token. Where the trained answer goes on after the option
        (QCM-ALE), they end with the option's words. What the template writes in front of every
        answer (an empty thought, a channel) is the same for all options and belongs to the prompt:
        a thought that the generation prompt opens is closed there, empty.

        Returns:
            The prompt up to the answer, and one array an option. The prompt is the same for all,
            and short enough for the longest option.

        Raises:
            DataError: the example has no choices, or as `encode`.
        """
        if not example.options:
            raise DataError(f"{example.name}: no choices to score")
        with naming_record(example):
            turns = self._turns.write(example, with_answer=False)
            answers = [
                self._encode(answer_turns(turns, option), example) for option in example.options
            ]
            longest = max(range(len(answers)), key=lambda index: len(answers[index]))
            how: dict[str, Any] = {}
            if not self._fits(answers[longest]):
                option = example.options[longest]
                full, example, how = self._shorten(
                    example,
                    answers[longest],
                    lambda shorter: answer_turns(self._turns.write(shorter, False), option),
                )
                turns = full[:-1]
            prompt = self._encode(turns, example)
            complete = example.is_option_complete
            split = [self._option_ids(turns, option, complete) for option in example.options]
            frame = split[0][0]
            ids = np.concatenate([prompt.input_ids, frame])
            mask = np.concatenate([prompt.prompt_mask, np.ones(len(frame), np.bool_)])
            prompt = replace(prompt, input_ids=ids, prompt_mask=mask, **how)
            return prompt, [ids for _, ids in split]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over everything that decides the ids of an example."""
        settings = {
            "version": VERSION,
            "tokenizer": fingerprint_tokenizer(self.tokenizer),
            "chat_template": self.template.jinja,
            "image": [self.image_token, self.image_token_id, self.tokens_per_image],
            "limit": [self.max_length, self.overflow],
            "system": self.system,
            "train_on": self.train_on,
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    @property
    def end_of_turn_id(self) -> int:
        """The id a trained answer ends with: where a model that answers has to stop."""
        return int(self._probe[1][-1])

    @property
    def opening_ids(self) -> Ids:
        """The ids that every answer begins with, whatever it says: an empty thought, a channel."""
        return self._probe[0]

    @cached_property
    def _probe(self) -> tuple[Ids, Ids]:
        """An answer: what the template puts in front of it, and its words with their end."""
        asked = Example((Message("user", ("a",)),))
        return self._option_ids(self._turns.write(asked, False), "b", complete=True)

    def read_answer(self, ids: Sequence[int]) -> str:
        """Return the words of what a model has written after a prompt; see `read_words`."""
        return read_words(self.tokenizer, ids, self.opening_ids.tolist())

    def encode_all(
        self,
        examples: Iterable[Example],
        on_bad_record: OnBadRecord = "fail",
        progress: StepProgress | None = None,
    ) -> EncodedExamples:
        """Encode many examples; nothing is left out without a sentence that says why.

        Args:
            examples: conversations with their answers.
            on_bad_record: "fail" raises the first error, "skip" notes it.
            progress: called with (done, all) after every example.

        Returns:
            The encoded examples, and what was skipped as broken or dropped as too long.
        """
        examples = list(examples)
        result = EncodedExamples()
        for done, example in enumerate(examples, start=1):
            try:
                result.samples.append(self.encode(example))
            except DataError as error:
                if isinstance(error, TooLongError) and self.overflow == "drop":
                    result.dropped.append(str(error))
                elif on_bad_record == "skip":
                    result.skipped.append(str(error))
                else:
                    raise
            if progress is not None:
                progress(done, len(examples))
        return result

    def _encode(self, turns: Sequence[Turn], example: Example) -> Encoded:
        """Render, tokenise and mark what is trained, whatever the length."""
        answered = turns[-1]["role"] == "assistant"
        last = self.template.written(turns) if answered else None
        text = (
            self.template.render(turns, add_generation_prompt=True)
            if last is None
            else last.prompt + last.text
        )
        self._check_length(text, example)
        spans = self._spans(turns, text, last)
        wanted = answers_to_train(turns, example, self.train_on) if answered else set()
        ids: list[int] = []
        mask: list[bool] = []
        for number, piece in enumerate(self.pieces.split(text, _cuts(spans.values()))):
            index, span = list(spans.items())[number // 2] if number % 2 else (-1, None)
            if span is not None and not span.closed:
                piece = [*piece, self._end_of_sequence()]
            ids += piece
            mask += [index not in wanted] * len(piece)
        if self.train_on == "all" and answered:
            mask = [token == self.image_token_id for token in ids]
        encoded = self._expand(np.array(ids, np.int32), np.array(mask, np.bool_), example)
        return replace(
            encoded,
            rewritten_answers=len(wanted - set(spans)) if self.train_on == "answers" else 0,
            lost_system=loses_system(turns, text),
            unread_keys=bool(example.unread_keys),
        )

    def _check_length(self, text: str, example: Example) -> None:
        """Refuse a prompt that cannot fit the window, before it is tokenised."""
        if self._fewest_tokens is None or self.max_length is None:
            return
        fewest = self._fewest_tokens(text)
        if fewest > self.max_length:
            message = (
                f"{example.name} takes at least {fewest} tokens, at most {self.max_length} fit"
            )
            raise TooLongError(message, fewest, at_least=True)

    def _spans(
        self, turns: Sequence[Turn], text: str, last: Written | None
    ) -> dict[int, AnswerSpan]:
        """Find the answers: turn -> where it stands, but of those that are rewritten later."""
        # a greeting has no prompt
        answers = [n for n, turn in enumerate(turns) if turn["role"] == "assistant" and n]
        spans = {
            index: span
            for index in (answers if last is None else answers[:-1])
            if (span := self.template.span(turns, index, text)) is not None
        }
        return spans if last is None else spans | {answers[-1]: self.template.place(last)}

    def _end_of_sequence(self) -> int:
        number = self.tokenizer.eos_token_id
        if not isinstance(number, int):
            raise ModelError(
                "the chat template writes no special token after an answer and the tokenizer has "
                "no end-of-sequence token: the model could not learn where to stop"
            )
        return number

    def _expand(self, ids: Ids, mask: npt.NDArray[np.bool_], example: Example) -> Encoded:
        """Give every image its V placeholders."""
        images = example.images
        is_image = ids == (-1 if self.image_token_id is None else self.image_token_id)
        if int(is_image.sum()) != len(images):
            raise ChatTemplateError(
                f"{len(images)} images are given, the chat template wrote "
                f"{int(is_image.sum())} placeholders"
            )
        copies = np.where(is_image, self.tokens_per_image, 1)
        mask = np.repeat(mask, copies)
        mask[:1] = True
        return Encoded(
            np.repeat(ids, copies), mask, example.modality, images, example_id=example.id
        )

    def _option_ids(self, turns: Sequence[Turn], option: str, complete: bool) -> tuple[Ids, Ids]:
        """Return the ids that the template writes in front of an option, and the option's."""
        answered = answer_turns(turns, option)
        last = self.template.written(answered)
        text = last.prompt + last.text
        *earlier, span = self._spans(answered, text, last).values()
        end = span.end if complete else span.words_end
        ids = self.pieces.split(text, [*_cuts(earlier), span.start, span.words_start, end])
        frame, words = ids[-3], ids[-2]
        if complete and not span.closed:
            words.append(self._end_of_sequence())
        return np.array(frame, np.int32), np.array(words, np.int32)

    def _fits(self, encoded: Encoded) -> bool:
        return self.max_length is None or len(encoded) <= self.max_length

    def _shorten(
        self, example: Example, encoded: Encoded, build: Callable[[Example], list[Turn]]
    ) -> tuple[list[Turn], Example, dict[str, Any]]:
        """Make a conversation fit, as the policy says; see `make_fit`."""
        return make_fit(
            example,
            build,
            lambda turns, shorter: self._fits(self._encode(turns, shorter)),
            num_tokens=len(encoded),
            max_length=self.max_length,
            overflow=self.overflow,
            image_token=self.image_token,
        )


def _cuts(spans: Iterable[AnswerSpan]) -> list[int]:
    return [cut for span in spans for cut in (span.start, span.end)]
