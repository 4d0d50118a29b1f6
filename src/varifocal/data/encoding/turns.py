"""An example's messages as turns of a chat template, and which of their answers are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

from varifocal.data.encoding.answer_span import THOUGHT_KEYS, Turn
from varifocal.data.example import Example, Message
from varifocal.errors import AnswerError, ChatTemplateError, DataError, PlaceholderError

TrainOn = Literal["answers", "last_answer", "all"]

_THOUGHT_MARKS = frozenset({"<think>", "</think>"})
"""Special tokens of some tokenizers that an answer may hold: they frame its thought."""


class TurnWriter:
    """Writes messages as a chat template takes them.

    Args:
        control_tokens: what no text may hold.
        image_token: the placeholder of an image; None for a model without a vision tower.
        system: what a conversation without a system message starts with; None for no such turn.
    """

    def __init__(
        self, control_tokens: Sequence[str], image_token: str | None, system: str | None
    ) -> None:
        self.control_tokens, self.image_token, self.system = control_tokens, image_token, system

    def write(self, example: Example, with_answer: bool) -> list[Turn]:
        """Write an example's turns, the closing answer with them or not.

        Raises:
            DataError: the text holds the placeholder or a control token, an image meets a model
                without a vision tower, or an answer is missing or empty.
        """
        messages = list(example.messages)
        if with_answer and messages[-1].role != "assistant":
            raise DataError(f"{example.name} has no answer: its last turn is the user's")
        if not with_answer and messages[-1].role == "assistant":
            del messages[-1]
        turns = [self._turn(message, example) for message in messages]
        if turns[0]["role"] != "system" and self.system is not None:
            turns.insert(0, {"role": "system", "content": self.system})
        return turns

    def _turn(self, message: Message, example: Example) -> Turn:
        turn = {"role": message.role, "content": self._content(message, example)}
        if message.thought.strip():
            self._check_text(message.thought, message, example)
            turn |= dict.fromkeys(THOUGHT_KEYS, message.thought)
        return turn

    def _content(self, message: Message, example: Example) -> str:
        """Join a message's parts, and refuse text that would mislead the model."""
        is_empty = message.role == "assistant" and not message.text.strip()
        if is_empty and not example.is_prompt:
            raise DataError(f"{example.name}: an answer is empty")
        parts: list[str] = []
        for part in message.content:
            if isinstance(part, str):
                self._check_text(part, message, example)
                parts.append(part)
            elif self.image_token is None:
                raise DataError(f"{example.name} has an image, but the model has no vision tower")
            else:
                parts.append(self.image_token)
        return "".join(parts)

    def _check_text(self, text: str, message: Message, example: Example) -> None:
        if self.image_token is not None and self.image_token in text:
            raise PlaceholderError(
                f"{example.name}: the text holds the image placeholder '{self.image_token}'; "
                "images are given as images"
            )
        allowed = _THOUGHT_MARKS if message.role == "assistant" else frozenset()
        for token in self.control_tokens:
            if token in text and token not in allowed:
                raise DataError(
                    f"{example.name}: the text holds the model's control token '{token}', which "
                    "would end or begin a turn; take it out"
                )


def until_trained(example: Example, train_on: TrainOn) -> Example:
    """Leave out what follows the last answer that is to be trained.

    Raises:
        AnswerError: no answer is.
        DataError: all tokens are to be trained, and an answer is marked not to be.
    """
    answers = [
        number for number, message in enumerate(example.messages) if message.role == "assistant"
    ]
    trained = [number for number in answers if example.messages[number].is_trained]
    if trained == answers:
        return example
    if train_on == "all":
        raise DataError(
            f"{example.name}: an answer is marked not to be trained, but train_on is 'all'; set "
            "train_on to 'answers'"
        )
    if not trained:
        raise AnswerError(f"{example.name}: every answer is marked not to be trained")
    if example.messages[-1].role != "assistant":
        return example
    return replace(example, messages=example.messages[: trained[-1] + 1])


def answers_to_train(turns: Sequence[Turn], example: Example, train_on: TrainOn) -> set[int]:
    """Return which turns are answers to be trained; none where all tokens are.

    Args:
        turns: the example's, perhaps with a system turn or an answer more.
        example: whose messages are marked.
        train_on: the recipe's.
    """
    answers = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
    if train_on != "answers":
        return set(answers[-1:]) if train_on == "last_answer" else set()
    messages = [message for message in example.messages if message.role == "assistant"]
    pairs = zip(answers, messages, strict=False)
    return set(answers) - {index for index, message in pairs if not message.is_trained}


def loses_system(turns: Sequence[Turn], text: str) -> bool:
    """Say whether a system message is not in the text, line breaks and blanks aside."""
    if turns[0]["role"] != "system" or turns[0]["content"].strip() in text:
        return False
    return " ".join(turns[0]["content"].split()) not in " ".join(text.split())


def answer_turns(turns: Sequence[Turn], answer: str) -> list[Turn]:
    """Return a conversation with an answer after it."""
    return [*turns, {"role": "assistant", "content": answer}]


@contextmanager
def naming_record(example: Example) -> Iterator[None]:
    """Name the record that the chat template refuses."""
    try:
        yield
    except ChatTemplateError as error:
        named = f"{example.name}: " if example.id or example.source else ""
        raise DataError(f"{named}{error}") from error
