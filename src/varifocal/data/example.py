"""What a sample is before it becomes tokens: a conversation of text and images."""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, get_args

import numpy as np
import PIL.Image
import PIL.ImageFile

from varifocal.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)

MAX_PIXELS = 50_000_000
"""Images with more pixels are refused by their header; 50 million RGB pixels take 150 MB."""

# Pillow also reads formats that run other programs (EPS calls Ghostscript); these do not.
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
_ORIENTATION = 0x0112
_TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by the orientation in its EXIF (TIFF 6.0)."""
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class Image:
    """An image that is read when it is needed, from a file or from bytes.

    Attributes:
        path: the file, or None.
        data: the file's content, or None; exactly one of the two is given.
    """

    path: Path | None = None
    data: bytes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse an image without a place, or with two."""
        if (self.path is None) == (self.data is None):
            raise DataError("an image needs either a path or data, not both and not none")

    @classmethod
    def of(cls, value: ImageLike) -> Image:
        """Return an image from a path, the bytes of a file, a Pillow image, or an image.

        Raises:
            DataError: it is something else.
        """
        if isinstance(value, Image):
            return value
        if isinstance(value, bytes):
            return cls(data=value)
        if isinstance(value, PIL.Image.Image):
            return cls(data=_as_png(value))
        if isinstance(value, str | os.PathLike):
            return cls(path=Path(value).expanduser())
        raise DataError(
            "an image is a path, the bytes of a file, or a Pillow image, and not a "
            f"{type(value).__name__}"
        )

    @property
    def name(self) -> str:
        """What an error text calls this image."""
        return f"image '{self.path}'" if self.path else f"image of {len(self.data or b'')} bytes"

    def read(self) -> bytes:
        """Return the undecoded content.

        Raises:
            DataError: the file is missing, a directory, empty or unreadable.
        """
        if self.data is not None:
            content = self.data
        else:
            assert self.path is not None
            try:
                if not self.path.is_file():
                    what = "is a directory" if self.path.is_dir() else "does not exist"
                    raise DataError(f"{self.name} {what}")
                content = self.path.read_bytes()
            except (OSError, ValueError) as error:
                raise DataError(f"{self.name} cannot be read: {_reason(error)}") from error
        if not content:
            raise DataError(f"{self.name} is empty (0 bytes)")
        return content

    def fingerprint(self) -> str:
        """Return the SHA-256 of the undecoded content, in hexadecimal digits."""
        return hashlib.sha256(self.read()).hexdigest()

    def size(self) -> tuple[int, int]:
        """Read width and height from the header, as the file has them; nothing is decoded.

        Raises:
            DataError: as `open`, but for pixels that are damaged.
        """
        try:
            with self._identify(io.BytesIO(self.read())) as image:
                return image.size
        except DataError:
            raise
        except Exception as error:  # as in `open`
            raise DataError(f"{self.name} cannot be decoded: {_reason(error)}") from error

    def open(self) -> PIL.Image.Image:
        """Decode the image.

        The camera's rotation is applied where its EXIF can be read, transparency is laid on white,
        16-bit greys are scaled to 8 bits, and of an animation the first frame is taken.

        Returns:
            An image of mode RGB.

        Raises:
            DataError: the file is missing, empty, damaged or truncated, not an image, in a format
                other than PNG, JPEG, GIF, WebP, BMP, TIFF and PPM, or has over `MAX_PIXELS`.
        """
        file = io.BytesIO(self.read())
        try:
            with _whole_images_only, self._identify(file) as image:
                image.load()
                return _to_rgb(_upright(image))
        except DataError:
            raise
        # Pillow's decoders raise nearly anything on damaged files: OSError, ValueError,
        # SyntaxError, struct.error, EOFError, IndexError, zlib.error ...
        except Exception as error:
            raise DataError(f"{self.name} cannot be decoded: {_reason(error)}") from error

    def _identify(self, file: IO[bytes]) -> PIL.Image.Image:
        """Read the header alone and refuse what is no image or too large a one."""
        try:
            image = PIL.Image.open(file, formats=_FORMATS)
        except PIL.UnidentifiedImageError as error:
            allowed = ", ".join(_FORMATS)
            raise DataError(f"{self.name} is damaged or none of {allowed}") from error
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning) as error:
            raise DataError(f"{self.name} is too large: {_reason(error)}") from error
        width, height = image.size
        if width * height > MAX_PIXELS:
            image.close()
            raise DataError(
                f"{self.name} is too large: {width:,} x {height:,} pixels, "
                f"at most {MAX_PIXELS:,} in all are read; save it smaller"
            )
        return image


ImageLike = Image | PIL.Image.Image | bytes | str | os.PathLike[str]
"""What `Image.of` makes an image of."""


class _WholeImagesOnly:
    """While anything decodes, Pillow refuses a truncated file, whatever the process has set.

    Libraries set `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` where they are imported (lmms-eval does),
    and from then on half a file would be read as an image that ends in grey.
    """

    def __init__(self) -> None:
        self._lock, self._decoding, self._before = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self._lock:
            if self._decoding == 0:
                self._before = PIL.ImageFile.LOAD_TRUNCATED_IMAGES
                PIL.ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._decoding += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._decoding -= 1
            if self._decoding == 0:
                PIL.ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_whole_images_only = _WholeImagesOnly()


def _reason(error: BaseException) -> str:
    """Return an exception's text on one line, or its class where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _as_png(image: PIL.Image.Image) -> bytes:
    """Return the file that `Image.open` reads back as it reads the image's own."""
    file = io.BytesIO()
    try:
        _to_rgb(_upright(image)).save(file, format="PNG")
    except Exception as error:  # as in `Image.open`: the pixels may not be read yet
        raise DataError(f"a Pillow image cannot be used: {_reason(error)}") from error
    return file.getvalue()


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Turn an image as its EXIF says; damaged EXIF says nothing, and the pixels are sound."""
    try:
        orientation = image.getexif().get(_ORIENTATION)
    except Exception:  # as in `open`; a warning of Pillow's, too, where warnings are errors
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """Convert any of Pillow's modes to RGB, transparency on white."""
    if image.mode in _DEEP_MODES:
        image = _to_eight_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed white; save it with 8 bits")
    if image.has_transparency_data:
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_eight_bits(image: PIL.Image.Image) -> PIL.Image.Image:
    """Scale greys of 0..65535 to 0..255; Pillow's own conversion would clip them at 255."""
    table = ((np.arange(65536) + 128) // 257).astype(np.uint8)
    return PIL.Image.fromarray(table[np.asarray(image).clip(0, 65535)])


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: text and images in the order in which the model reads them.
        thought: what the assistant thinks before it answers, where a record gives it apart.
        is_trained: False for an answer that the record marks as not to be learnt.
    """

    role: Role
    content: tuple[str | Image, ...]
    thought: str = ""
    is_trained: bool = True

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part for part in self.content if isinstance(part, str))


@dataclass(frozen=True)
class Question:
    """The parts of a question, from which its turn can be worded anew.

    Attributes:
        text: what is asked.
        context: what has to be read first, or "".
    """

    text: str
    context: str = ""


@dataclass(frozen=True)
class Example:
    """A conversation and where it came from.

    Attributes:
        messages: an optional system message, then user and assistant turns; a user turn comes
            first. Images stand in user turns.
        id: the record's name in its source.
        source: the file or folder it was read from.
        task: what is asked, for example "QCM-A" or "caption".
        choices: the options' texts, when it is a multiple-choice question.
        answer_index: which of `choices` is right.
        options: what the assistant says to name each choice, as in training ("The answer is B.");
            by default the choices themselves.
        tags: subject, grade, skill and the like, for reports.
        question: the parts of the last user turn, where a format knows them.
        is_prompt: whether it is a conversation to be answered, as a client sends it: its turns may
            come in any order and an earlier answer may be empty, as far as the chat template goes.
        unread_keys: of its turns, what no reader knows and nothing is made of.
        answers: all right answers to the last question, where the record has several of them
            (annotators', alternatives); the last turn is one of them. For scoring.
    """

    messages: tuple[Message, ...]
    id: str = ""
    source: str = ""
    task: str = ""
    choices: tuple[str, ...] = ()
    answer_index: int | None = None
    options: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    question: Question | None = None
    is_prompt: bool = False
    unread_keys: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse conversations that no chat template can render."""
        if not self.options:
            object.__setattr__(self, "options", self.choices)
        if len(self.options) != len(self.choices):
            raise DataError(
                f"{self.name}: {len(self.options)} options, {len(self.choices)} choices"
            )
        if self.answer_index is not None and not 0 <= self.answer_index < len(self.choices):
            raise DataError(
                f"{self.name}: the answer's index is {self.answer_index}, "
                f"there are {len(self.choices)} choices"
            )
        self._check_turns()
        for message in self.messages:
            self._check_text(message.text)
            self._check_text(message.thought)
        for option in self.options:
            self._check_text(option)

    def _check_turns(self) -> None:
        roles = [message.role for message in self.messages]
        for role in roles:
            if role not in ROLES:
                raise DataError(f"{self.name}: role '{role}' is none of {', '.join(ROLES)}")
        turns = roles[1:] if roles[:1] == ["system"] else roles
        expected = ["user", "assistant"] * (len(turns) // 2 + 1)
        if not turns or (turns != expected[: len(turns)] and not self.is_prompt):
            raise DataError(
                f"{self.name}: the turns are {', '.join(roles) or 'none'}; after an optional "
                "system message, user and assistant must take turns, the user first"
            )
        for message in self.messages:
            if message.role != "user" and any(isinstance(part, Image) for part in message.content):
                raise DataError(f"{self.name}: an image in a turn of the {message.role}")

    def _check_text(self, text: str) -> None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{self.name}: text with half a character ({error.reason})") from error

    @property
    def name(self) -> str:
        """What an error text calls this example."""
        record = f"record '{self.id}'" if self.id else "record"
        return f"{self.source}: {record}" if self.source else record

    @property
    def images(self) -> tuple[Image, ...]:
        """The images of all turns, in reading order."""
        return tuple(
            part for message in self.messages for part in message.content if isinstance(part, Image)
        )

    @property
    def modality(self) -> int:
        """0 for text alone, 1 with an image."""
        return int(bool(self.images))

    @property
    def is_option_complete(self) -> bool:
        """Whether the answer ends with the option; not so when an explanation follows it."""
        last = self.messages[-1]
        known = last.role == "assistant" and self.answer_index is not None
        return not known or last.text == self.options[self.answer_index or 0]
