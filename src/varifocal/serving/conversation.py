"""A conversation with a model: what was said, and the next answer."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Any, cast

from varifocal.data.example import Image, ImageLike, Message, Role
from varifocal.errors import DataError
from varifocal.serving.engine import Engine, Sampling

Turn = Message | Mapping[str, Any]


class Chat:
    """A conversation that goes on: every turn is answered in the light of those before it.

    Args:
        engine: answers.
        system: a system message that opens it.
        sampling: greedy and 256 tokens by default.
        adapter: False answers with the model as it was before training.

    Attributes:
        turns: what was said so far.
        adapter: may be changed between two turns.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        sampling: Sampling | None = None,
        adapter: bool = True,
    ) -> None:
        self.engine, self.sampling, self.adapter = engine, sampling or Sampling(), adapter
        self.turns: list[Message] = [] if system is None else [Message("system", (system,))]

    def ask(self, text: str, images: Sequence[ImageLike] = ()) -> str:
        """Say the next turn, and return the answer; arguments and errors as in `stream`."""
        return "".join(self.stream(text, images))

    def stream(self, text: str, images: Sequence[ImageLike] = ()) -> Generator[str, None, None]:
        """Say the next turn, and yield the answer as it is written.

        Both become part of the conversation once the answer has come to its end and holds text.

        Args:
            text: what is asked.
            images: shown before the text: paths, Pillow images, or the bytes of a file.

        Raises:
            DataError: at once where an image cannot be read, or the model has no vision tower.
            VarifocalError: as `Engine.stream`.
        """
        asked = [*self.turns, question(self.engine, text, images)]
        return self._answer(asked, self.engine.stream(asked, self.sampling, adapter=self.adapter))

    def _answer(
        self, asked: list[Message], written: Generator[str, None, None]
    ) -> Generator[str, None, None]:
        pieces: list[str] = []
        with closing(written):
            for piece in written:
                pieces.append(piece)
                yield piece
        answer = "".join(pieces)
        if answer.strip():
            self.turns = [*asked, Message("assistant", (answer,))]


def question(engine: Engine, text: str, images: Sequence[ImageLike] = ()) -> Message:
    """Make a user's turn of images and a text.

    Raises:
        DataError: an image cannot be read, or the model has no vision tower.
    """
    if isinstance(images, str | bytes):
        raise DataError("images is a list of images; put a single one in brackets")
    shown = [Image.of(image) for image in images]
    if shown and engine.load_images is None:
        raise DataError("this model has no vision tower, so it can be shown no image")
    for image in shown:
        image.open()
    return Message("user", (*shown, text))


def as_messages(turns: str | Sequence[Turn]) -> list[Message]:
    """Return a conversation as messages.

    Args:
        turns: a question; or messages, also as transformers has them: `role`, and `content` as a
            text or as parts, `{"type": "image", "image": ...}` and `{"type": "text", "text": ...}`.

    Raises:
        DataError: a turn has another form, or an image cannot be read.
    """
    if isinstance(turns, str):
        return [Message("user", (turns,))]
    return [turn if isinstance(turn, Message) else _message(turn) for turn in turns]


def _message(turn: Any) -> Message:
    if not isinstance(turn, Mapping) or not {"role", "content"} <= turn.keys():
        raise DataError(f"a turn has a role and a content; {turn!r:.80} was given")
    content = turn["content"]
    parts = [content] if isinstance(content, str) else [_part(part) for part in content]
    return Message(cast(Role, turn["role"]), tuple(parts))


def _part(part: Any) -> str | Image:
    if isinstance(part, str | Image):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind == "image":
        given = next((part[key] for key in ("image", "path", "url") if part.get(key)), None)
        if given is not None:
            return Image.of(given)
    raise DataError(
        f"a part is {{'type': 'text', 'text': ...}} or {{'type': 'image', 'image': ...}}; "
        f"{part!r:.80} was given"
    )
