"""What one record shows: how long it is, what of it trains, what is wrong with it."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from varifocal.data.encoding.encoded import Encoded
from varifocal.data.encoding.encoder import Encoder, TooLongError
from varifocal.data.example import Example, Image, Message
from varifocal.data.inspect.findings import STOPPING, Kind, Side
from varifocal.data.metric import gold_answers
from varifocal.errors import AnswerError, DataError, ImageError, PlaceholderError

_IMAGES_REMEMBERED = 4096
# A record without an id of its own is called by its place, which the next file has again.
_PLACE = re.compile(r"((line|row|record) \d+)?")


class Readable(Protocol):
    """What is needed of a source (see `varifocal.data.source`)."""

    def example(self, number: int) -> Example:
        """Read one record; DataError if it is broken."""
        ...


@dataclass(frozen=True)
class RecordScan:
    """What reading one record showed; small, since it travels between processes.

    Attributes:
        task: the example's.
        modality: 0 text, 1 image, -1 for a record that cannot be read.
        num_tokens: what it takes without a limit; 0 if it cannot be encoded.
        num_left: what is left of that under the recipe's `overflow`; 0 if it gives no sample.
        num_trained: of those kept.
        num_image_tokens: of all, without a limit.
        was_cut: text of its prompt is taken out.
        lost_turns: oldest turns are left out.
        content: 64-bit digest of question, images and answer; 0 if it cannot be read.
        question: 64-bit digest of question and images.
        id: 64-bit digest of its id; 0 if it has none.
        has_choices: whether it is a multiple-choice question.
        num_answers: right answers that it is compared with when it is scored.
        findings: kinds and sentences.
    """

    task: str = ""
    modality: int = -1
    num_tokens: int = 0
    num_left: int = 0
    num_trained: int = 0
    num_image_tokens: int = 0
    was_cut: bool = False
    lost_turns: bool = False
    content: int = 0
    question: int = 0
    id: int = 0
    has_choices: bool = False
    num_answers: int = 0
    findings: tuple[tuple[Kind, str], ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether it gives a sample to train or score on."""
        return not any(kind in STOPPING for kind, _ in self.findings)


@dataclass(frozen=True)
class Looker:
    """Looks at records.

    Attributes:
        encoder: the run's own.
        side: what they are for. Those to score on are encoded as questions with their options,
            captions are not encoded.
    """

    encoder: Encoder
    side: Side = "train"
    _opened: dict[Path, tuple[str, str]] = field(default_factory=dict, repr=False)

    def read_and_scan(self, source: Readable, plain: Readable | None, number: int) -> RecordScan:
        """Read one record and look at it; what is wrong is returned, never raised.

        Args:
            source: where it comes from.
            plain: the same source with plain instructions, whose wording decides what is the same
                question; None for the source itself.
            number: of the record.
        """
        try:
            example = source.example(number)
            return self.scan(example, plain.example(number) if plain else example)
        except DataError as error:
            return self.scan(error)

    def scan(self, example: Example | DataError, plain: Example | None = None) -> RecordScan:
        """Look at a record that has been read, or at what came instead of it."""
        if isinstance(example, DataError):
            return RecordScan(findings=((_kind(example), str(example)),))
        digests, findings = self._open_images(example)
        if reason := self._lacks_answer(example):
            findings.append(("no_answer", reason))
        question = _question(plain or example, digests)
        scanned = RecordScan(
            task=example.task,
            modality=example.modality,
            question=question,
            content=digest(str(question), _answer(example)),
            id=0 if _PLACE.fullmatch(example.id) else digest(example.id),
            has_choices=example.answer_index is not None,
            num_answers=len(gold_answers(example)),
        )
        if self.encoder.image_token is None and example.images:
            findings.append(("no_eyes", f"{example.name} has an image, the model no vision tower"))
        elif self.side != "captions" and not findings:
            scanned, more = self._measure(scanned, example)
            findings += more
        return replace(scanned, findings=tuple(findings))

    def _open_images(self, example: Example) -> tuple[list[str], list[tuple[Kind, str]]]:
        """Open every image; return digests of their contents, and what is wrong."""
        opened = [self._open_once(image) for image in example.images]
        findings: list[tuple[Kind, str]] = [
            ("picture", f"{example.name}: {reason}") for _, reason in opened if reason
        ]
        return [content for content, _ in opened], findings

    def _open_once(self, image: Image) -> tuple[str, str]:
        """Remember the last files' digests and states: an image often stands in many records."""
        if image.path is None:
            return _open(image)
        if image.path not in self._opened:
            if len(self._opened) >= _IMAGES_REMEMBERED:
                self._opened.clear()
            self._opened[image.path] = _open(image)
        return self._opened[image.path]

    def _lacks_answer(self, example: Example) -> str:
        if self.side == "evaluate":
            known = gold_answers(example)
            return "" if known else f"{example.name}: no gold answer to compare with"
        for message in example.messages:
            if message.role == "assistant" and not message.text.strip():
                return f"{example.name}: an answer is empty"
        ended = example.messages[-1].role == "assistant"
        return "" if ended else f"{example.name} has no answer: its last turn is the user's"

    def _measure(
        self, scanned: RecordScan, example: Example
    ) -> tuple[RecordScan, list[tuple[Kind, str]]]:
        """Encode without a limit, and with it where that makes a difference."""
        try:
            whole, length = self._encode(_without_limit(self.encoder), example)
        except DataError as error:
            return scanned, [(_kind(error), str(error))]
        is_image = whole.input_ids == (
            -1 if self.encoder.image_token_id is None else self.encoder.image_token_id
        )
        scanned = replace(scanned, num_tokens=length, num_image_tokens=int(is_image.sum()))
        findings = _lost_parts(whole, example)
        limit = self.encoder.max_length
        if limit is None or length <= limit:
            return replace(scanned, num_left=length, num_trained=_trained(whole)), findings
        size = f"{example.name} takes {length:,} tokens, max_length is {limit:,}"
        try:
            short, num_left = self._encode(self.encoder, example)
        except TooLongError as error:
            return scanned, [*findings, ("too_long", f"{size}: {self._fate(error)}")]
        scanned = replace(
            scanned,
            num_left=num_left,
            num_trained=_trained(short),
            was_cut=short.was_cut,
            lost_turns=short.dropped_turns > 0,
        )
        return scanned, [*findings, ("too_long", f"{size}: shortened to {num_left:,}")]

    def _encode(self, encoder: Encoder, example: Example) -> tuple[Encoded, int]:
        """Encode as the run does; the length is that of the longest option's answer.

        A question that is answered in words is its prompt alone: the model writes the answer.
        """
        if self.side != "evaluate":
            encoded = encoder.encode(example)
            return encoded, len(encoded)
        if example.answer_index is None:
            asked = replace(example, messages=_without_answer(example))
            encoded = encoder.encode(asked, with_answer=False)
            return encoded, len(encoded)
        prompt, options = encoder.encode_options(example)
        return prompt, len(prompt) + max(map(len, options))

    def _fate(self, error: TooLongError) -> str:
        if self.side == "evaluate":
            return "the scoring would stop"
        if self.encoder.overflow == "drop":
            return "dropped"
        if self.encoder.overflow == "error":
            return "the run would stop"
        return "no room is left for the question"


_KINDS: dict[type[DataError], Kind] = {
    TooLongError: "too_long",
    PlaceholderError: "placeholders",
    ImageError: "picture",
    AnswerError: "no_answer",
}


def _kind(error: DataError) -> Kind:
    for cls, kind in _KINDS.items():
        if isinstance(error, cls):
            return kind
    return "broken"


def _lost_parts(encoded: Encoded, example: Example) -> list[tuple[Kind, str]]:
    """Say what of a record that gives a sample is not in what is trained."""
    findings: list[tuple[Kind, str]] = []
    if count := encoded.rewritten_answers:
        findings.append(("rewritten", f"{example.name}: {count} of its answers are prompt alone"))
    if encoded.lost_system:
        findings.append(("lost_system", f"{example.name}: its system message is left out"))
    if example.unread_keys:
        keys = ", ".join(f"'{key}'" for key in example.unread_keys)
        findings.append(("unread_keys", f"{example.name}: nothing is made of {keys} in its turns"))
    return findings


def _without_answer(example: Example) -> tuple[Message, ...]:
    messages = example.messages
    return messages[:-1] if messages[-1].role == "assistant" else messages


def _trained(encoded: Encoded) -> int:
    return int((~encoded.prompt_mask).sum())


def _without_limit(encoder: Encoder) -> Encoder:
    unlimited = copy.copy(encoder)
    unlimited.max_length = None
    return unlimited


def _open(image: Image) -> tuple[str, str]:
    """Return the digest of an image's content, and why it cannot be opened."""
    try:
        content = image.fingerprint()
        image.open()
    except DataError as error:
        return image.name, str(error)
    return content, ""


def _question(example: Example, images: Iterable[str]) -> int:
    """Digest what is asked: all turns but the system's and the last answer, and the images."""
    turns = [message for message in example.messages if message.role != "system"]
    if turns[-1].role == "assistant":
        turns = turns[:-1]
    texts = [f"{turn.role} {' '.join(turn.text.split())}" for turn in turns]
    return digest(*texts, *images)


def _answer(example: Example) -> str:
    last = example.messages[-1]
    return " ".join(last.text.split()) if last.role == "assistant" else ""


def digest(*texts: str) -> int:
    """Return 64 bits, never 0, that stand for some texts in their order.

    >>> digest("ab", "c") == digest("a", "bc")
    False
    """
    hashed = hashlib.blake2b(digest_size=8)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        hashed.update(len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(hashed.digest(), "little") or 1
