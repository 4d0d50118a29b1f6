"""From examples to token ids: what is trained, where the images stand, what happens when too long.

Letters: T tokens of one example, V tokens an image takes.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from varifocal.data.encoded import IGNORED as IGNORED
from varifocal.data.encoded import Encoded, EncodedExamples, Ids
from varifocal.data.example import Example, Message
from varifocal.data.pieces import PieceTokenizer, fingerprint_tokenizer
from varifocal.data.reading import OnBadRecord
from varifocal.data.shorten import drop_oldest, shorten
from varifocal.data.template import AnswerSpan, ChatTemplate, Turn
from varifocal.data.token_bound import TokenBound
from varifocal.errors import DataError, ModelError, PlaceholderError

Overflow = Literal["error", "drop", "truncate_prompt", "drop_oldest_turns"]
TrainOn = Literal["answers", "last_answer", "all"]
Progress = Callable[[int, int], None]

VERSION = 1
"""Of the encoding itself; raised whenever the same example would get other ids or marks."""


class TooLongError(DataError):
    """An example takes more tokens than the limit.

    Attributes:
        tokens: how many.
        at_least: whether that is only the least that it can take; it was not tokenised.
    """

    def __init__(self, told: str, tokens: int, *, at_least: bool = False) -> None:
        super().__init__(told)
        self.tokens, self.at_least = tokens, at_least


class Encoder:
    """Turns examples into token ids with the tokenizer's own chat template.

    Trained ids are the assistant's words and the end-of-turn token behind them, exactly what the
    model has to write behind the same prompt (see `varifocal.data.template`).

    Args:
        tokenizer: one without a chat template gets `template.plain_template`.
        image_token: the placeholder, one token of the tokenizer; None for a model without eyes.
        image_token_id: its id, checked against the tokenizer's.
        tokens_per_image: V, how many placeholders one image becomes.
        max_length: most tokens of an example, images included; None for no limit.
        overflow: what becomes of longer examples. "error" raises; "drop" makes `encode_all` leave
            them out and count them; "truncate_prompt" takes text out of the middle of the longest
            user turns; "drop_oldest_turns" leaves the oldest questions with their answers out
            (see `varifocal.data.shorten.drop_oldest`). Images, answers and the template's frame
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
        ModelError: the placeholder is not one token, or the template cannot be used.
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
        self.image_token_id = _check_placeholder(tokenizer, image_token, image_token_id)
        self.tokens_per_image = tokens_per_image
        self.max_length = max_length
        self.overflow: Overflow = overflow
        self.train_on: TrainOn = train_on
        self.system = self.template.system_turn(system_prompt)
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
            DataError: the text holds the placeholder or one of the template's control tokens, a
                picture meets a model without eyes, or an answer is missing or empty.
            ModelError: the chat template refuses the conversation.
        """
        turns = self._turns(example, with_answer)
        encoded = self._encode(turns, example)
        if self._fits(encoded):
            return encoded
        build = partial(self._turns, with_answer=with_answer)
        turns, kept, how = self._shorten(example, encoded, build)
        return replace(self._encode(turns, kept), **how)

    def encode_options(self, example: Example) -> tuple[Encoded, list[Ids]]:
        """Encode a multiple-choice question and each of its options, for scoring by likelihood.

        An option's ids are those the answer has in training when that option is the right one: its
        words and the end-of-turn token. Where the trained answer goes on behind the option
        (QCM-ALE), they end with the option's words.

        Returns:
            The prompt up to the answer, and one array an option. The prompt is the same for all,
            and short enough for the longest option.

        Raises:
            DataError: the example has no choices, or as `encode`.
        """
        if not example.options:
            raise DataError(f"{example.name}: no choices to score")
        turns = self._turns(example, with_answer=False)
        answers = [self._encode(_answer(turns, option), example) for option in example.options]
        longest = max(range(len(answers)), key=lambda index: len(answers[index]))
        how: dict[str, Any] = {}
        if not self._fits(answers[longest]):
            option = example.options[longest]
            full, example, how = self._shorten(
                example, answers[longest], lambda kept: _answer(self._turns(kept, False), option)
            )
            turns = full[:-1]
        prompt = replace(self._encode(turns, example), **how)
        complete = example.is_option_complete
        return prompt, [self._option_ids(turns, option, complete) for option in example.options]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over everything that decides the ids of an example."""
        told = {
            "version": VERSION,
            "tokenizer": fingerprint_tokenizer(self.tokenizer),
            "chat_template": self.template.jinja,
            "image": [self.image_token, self.image_token_id, self.tokens_per_image],
            "limit": [self.max_length, self.overflow],
            "system": self.system,
            "train_on": self.train_on,
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def end_of_turn_id(self) -> int:
        """The id a trained answer ends with: where a model that answers has to stop."""
        probe = Example((Message("user", ("a",)), Message("assistant", ("b",))))
        return int(self._option_ids(self._turns(probe, False), "b", complete=True)[-1])

    def encode_all(
        self,
        examples: Iterable[Example],
        on_bad_record: OnBadRecord = "fail",
        progress: Progress | None = None,
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

    def _turns(self, example: Example, with_answer: bool) -> list[Turn]:
        """Write the messages as the template takes them."""
        messages = list(example.messages)
        if with_answer and messages[-1].role != "assistant":
            raise DataError(f"{example.name} has no answer: its last turn is the user's")
        if not with_answer and messages[-1].role == "assistant":
            del messages[-1]
        turns = [{"role": m.role, "content": self._content(m, example)} for m in messages]
        if turns[0]["role"] != "system" and self.system is not None:
            turns.insert(0, {"role": "system", "content": self.system})
        return turns

    def _content(self, message: Message, example: Example) -> str:
        """Join a message's parts, and refuse text that would mislead the model."""
        is_empty = message.role == "assistant" and not message.text.strip()
        if is_empty and not example.is_prompt:
            raise DataError(f"{example.name}: an answer is empty")
        parts: list[str] = []
        for part in message.content:
            if isinstance(part, str):
                self._check_text(part, example)
                parts.append(part)
            elif self.image_token is None:
                raise DataError(f"{example.name} has a picture, but the model has no vision tower")
            else:
                parts.append(self.image_token)
        return "".join(parts)

    def _check_text(self, text: str, example: Example) -> None:
        if self.image_token is not None and self.image_token in text:
            raise PlaceholderError(
                f"{example.name}: the text holds the image placeholder '{self.image_token}'; "
                "pictures are given as pictures"
            )
        for token in self.template.control_tokens:
            if token in text:
                raise DataError(
                    f"{example.name}: the text holds the model's control token '{token}', which "
                    "would end or begin a turn; take it out"
                )

    def _encode(self, turns: Sequence[Turn], example: Example) -> Encoded:
        """Render, tokenise and mark what is trained, whatever the length."""
        answered = turns[-1]["role"] == "assistant"
        text = self.template.render(turns, add_generation_prompt=not answered)
        self._check_length(text, example)
        spans = list(self._spans(turns, text))
        pieces = self.pieces.split(text, _cuts(spans))
        ids: list[int] = []
        mask: list[bool] = []
        for number, piece in enumerate(pieces):
            span = spans[number // 2] if number % 2 else None
            if span is not None and not span.closed:
                piece = [*piece, self._end_of_sequence()]
            trained = answered and span is not None and self.train_on != "all"
            trained = trained and (self.train_on == "answers" or span is spans[-1])
            ids += piece
            mask += [not trained] * len(piece)
        if self.train_on == "all" and answered:
            mask = [token == self.image_token_id for token in ids]
        return self._expand(np.array(ids, np.int32), np.array(mask, np.bool_), example)

    def _check_length(self, text: str, example: Example) -> None:
        """Refuse a prompt that cannot fit the window, before it is tokenised."""
        if self._fewest_tokens is None or self.max_length is None:
            return
        fewest = self._fewest_tokens(text)
        if fewest > self.max_length:
            told = f"{example.name} takes at least {fewest} tokens, at most {self.max_length} fit"
            raise TooLongError(told, fewest, at_least=True)

    def _spans(self, turns: Sequence[Turn], text: str) -> Iterator[AnswerSpan]:
        """Find the answers; one that the template rewrites later counts only if it is trained."""
        is_prompt = turns[-1]["role"] != "assistant"
        answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
        for index in filter(None, answers):  # a greeting has no prompt
            try:
                yield self.template.span(turns, index, text)
            except ModelError:
                if not is_prompt and (self.train_on == "answers" or index == len(turns) - 1):
                    raise

    def _end_of_sequence(self) -> int:
        number = self.tokenizer.eos_token_id
        if not isinstance(number, int):
            raise ModelError(
                "the chat template writes no special token behind an answer and the tokenizer has "
                "no end-of-sequence token: the model could not learn where to stop"
            )
        return number

    def _expand(self, ids: Ids, mask: npt.NDArray[np.bool_], example: Example) -> Encoded:
        """Give every image its V placeholders."""
        images = example.images
        is_image = ids == (-1 if self.image_token_id is None else self.image_token_id)
        if int(is_image.sum()) != len(images):
            raise ModelError(
                f"{example.name} has {len(images)} pictures, the chat template wrote "
                f"{int(is_image.sum())} placeholders"
            )
        copies = np.where(is_image, self.tokens_per_image, 1)
        mask = np.repeat(mask, copies)
        mask[:1] = True
        return Encoded(
            np.repeat(ids, copies), mask, example.modality, images, example_id=example.id
        )

    def _option_ids(self, turns: Sequence[Turn], option: str, complete: bool) -> Ids:
        answered = _answer(turns, option)
        text = self.template.render(answered)
        spans = list(self._spans(answered, text))
        cuts = _cuts(spans)
        if not complete:
            cuts[-1] = spans[-1].words_end
        ids = self.pieces.split(text, cuts)[-2]
        if complete and not spans[-1].closed:
            ids.append(self._end_of_sequence())
        return np.array(ids, np.int32)

    def _fits(self, encoded: Encoded) -> bool:
        return self.max_length is None or len(encoded) <= self.max_length

    def _shorten(
        self, example: Example, encoded: Encoded, build: Callable[[Example], list[Turn]]
    ) -> tuple[list[Turn], Example, dict[str, Any]]:
        """Make a conversation fit, as the policy says.

        Returns:
            Its turns, the example they are of, and what of `Encoded` says how it was done.

        Raises:
            TooLongError: that is not the policy, or what has to stay is too long by itself.
        """
        size = f"{example.name} takes {len(encoded)} tokens, max_length is {self.max_length}"
        if self.overflow == "drop":
            raise TooLongError(f"{size} (overflow: drop)", len(encoded))
        if self.overflow == "error":
            raise TooLongError(
                f"{size}; raise max_length, or set overflow to 'drop', 'truncate_prompt' or "
                "'drop_oldest_turns'",
                len(encoded),
            )
        if self.overflow == "drop_oldest_turns":
            return self._drop_turns(example, encoded, size, build)
        turns = shorten(
            build(example),
            self.image_token,
            lambda turns: self._fits(self._encode(turns, example)),
        )
        if turns is None:
            raise TooLongError(
                f"{size}, and its images, answer and the chat template's frame leave no room for "
                "the question; raise max_length",
                len(encoded),
            )
        return turns, example, {"was_cut": True}

    def _drop_turns(
        self,
        example: Example,
        encoded: Encoded,
        size: str,
        build: Callable[[Example], list[Turn]],
    ) -> tuple[list[Turn], Example, dict[str, Any]]:
        kept = drop_oldest(example, lambda kept: self._fits(self._encode(build(kept), kept)))
        if kept is None:
            raise TooLongError(
                f"{size}, and its last question with its answer, and the turn of the picture it "
                "may speak of, take more by themselves; raise max_length",
                len(encoded),
            )
        return build(kept), kept, {"dropped_turns": len(example.messages) - len(kept.messages)}


def _cuts(spans: Sequence[AnswerSpan]) -> list[int]:
    return [cut for span in spans for cut in (span.start, span.end)]


def _answer(turns: Sequence[Turn], answer: str) -> list[Turn]:
    return [*turns, {"role": "assistant", "content": answer}]


def _check_placeholder(
    tokenizer: PreTrainedTokenizerBase, token: str | None, number: int | None
) -> int | None:
    """Return the placeholder's id."""
    if token is None:
        return None
    ids = list(tokenizer(token, add_special_tokens=False).input_ids)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ModelError(
            f"the tokenizer does not know the image placeholder '{token}' as one token"
        )
    if number is not None and ids[0] != number:
        raise ModelError(
            f"the placeholder '{token}' has id {ids[0]} in the tokenizer, not {number}"
        )
    return ids[0]
