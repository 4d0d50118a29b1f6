"""Where a record's image lies: a file inside a folder, bytes in the record, or a data: URI."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varifocal.data.example import Image
from varifocal.data.formats.choices import list_in_cell
from varifocal.data.readers.index import MAX_RECORD_BYTES
from varifocal.errors import DataError, ImageError

_ABSENT_ALLOWED: ContextVar[bool] = ContextVar("missing_images_allowed", default=False)
_NUMBERED = re.compile(r"image_?(\d+)", re.IGNORECASE)


def images_in(value: Any) -> list[Any]:
    """Return what a cell names as images: one, or the elements of a list.

    >>> images_in("a.png"), images_in('["a.png", "b.png"]'), images_in(None)
    (['a.png'], ['a.png', 'b.png'], [])
    """
    if value is None or value in ("", []):
        return []
    if isinstance(value, str):
        return list_in_cell(value) or [value]
    return list(value) if isinstance(value, list) else [value]


def image_cells(row: Mapping[str, Any], where: str) -> list[Any]:
    """Return what a row names as images in `image`, `images`, or `image_1`, `image_2` ...

    Raises:
        DataError: both `image` and `images` hold something else than one another.

    >>> image_cells({"image_2": "b.png", "image_1": "a.png", "image_3": None}, "")
    ['a.png', 'b.png']
    """
    single, several = images_in(row.get("image")), images_in(row.get("images"))
    if single and several and single != several:
        raise DataError(f"{where} has both 'image' and 'images'")
    numbered = {int(match[1]): name for name in row if (match := _NUMBERED.fullmatch(str(name)))}
    more = [value for number in sorted(numbered) for value in images_in(row[numbered[number]])]
    if several and more:
        raise DataError(f"{where} has both 'images' and '{next(iter(numbered.values()))}'")
    return [*(several or single), *more]


@dataclass(frozen=True)
class AbsentImage(Image):
    """An image that a record names and that is not there, or cannot be read from the record.

    Attributes:
        reason: what is wrong; said when the image is opened.
    """

    reason: str = ""

    def __post_init__(self) -> None:
        """Ask for no place: there is none."""

    @property
    def name(self) -> str:
        """What an error text calls this image."""
        return "an image that is not there"

    def read(self) -> bytes:
        """Say what is wrong.

        Raises:
            ImageError: always.
        """
        raise ImageError(self.reason)


@contextmanager
def missing_images_allowed(allowed: bool = True) -> Iterator[None]:
    """Let records name images that are not there while the block runs.

    For questions that are asked without their images, and for benchmarks, of which one missing
    file is to be counted and named where the question is asked, and must not end the reading.
    """
    token = _ABSENT_ALLOWED.set(allowed)
    try:
        yield
    finally:
        _ABSENT_ALLOWED.reset(token)


def absent(error: ImageError) -> AbsentImage:
    """Return what stands for an image that is not there, where that is allowed.

    Raises:
        ImageError: the one that is given, where it is not.
    """
    if not _ABSENT_ALLOWED.get():
        raise error
    return AbsentImage(reason=str(error))


def locate_image(value: Any, folder: Path, where: str) -> Image:
    """Return the image a record names or holds, not opened yet; nothing is ever downloaded.

    Args:
        value: a path, a `data:` URI, base64 alone, the content in bytes, an image that is found
            already, or `{"bytes": ..., "path": ...}` as the `datasets` library has it.
        folder: the only place images are read from.
        where: file and place of the record, for the error text.

    Raises:
        ImageError: it is none of these, a URL, a path that leaves the folder, or no such file,
            and no `missing_images_allowed` is around the call.
    """
    try:
        return _find(value, folder, where)
    except ImageError as error:
        return absent(error)


def _find(value: Any, folder: Path, where: str) -> Image:
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = content if content is not None else value.get("path")
    if isinstance(value, Image):
        return value
    if isinstance(value, bytes):
        return Image(data=value)
    if isinstance(value, str) and value.lower().startswith("data:"):
        head, comma, body = value.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ImageError(
                f"{where}: '{value[:40]}' is no data: URI with ';base64,' and an image"
            )
        return Image(data=_decode(body, f"{where}: the data: URI '{value[:40]}'"))
    if isinstance(value, str) and _is_base64(value):
        return Image(data=_decode(value, f"{where}: the image's text '{value[:40]}'"))
    return _resolve(folder, value, where)


_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkqA", "TU0AK", "UDY")
"""How PNG, JPEG, GIF, WebP, BMP, TIFF (both orders) and PPM begin in base64."""
_LONGEST_NAME = 80
"""A shorter text is a file's name: the smallest image takes more in base64."""


def _is_base64(text: str) -> bool:
    """Tell base64 from a file's name, which has a full stop before its ending."""
    return len(text) > _LONGEST_NAME and text.lstrip().startswith(_BASE64) and "." not in text


def _decode(body: str, what: str) -> bytes:
    """Decode an image in base64; new lines in it do not matter."""
    if len(body) > MAX_RECORD_BYTES:
        raise ImageError(
            f"{what} has {len(body):,} characters; at most {MAX_RECORD_BYTES:,} are read"
        )
    try:
        content = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"{what} is not base64: {error}") from error
    if not content:
        raise ImageError(f"{what} holds no image")
    return content


def resolve_image(folder: Path, name: Any, where: str) -> Image:
    """Find an image inside its folder.

    Args:
        folder: the only place images are read from; links inside it may lead elsewhere.
        name: path relative to the folder, or an absolute one inside it.
        where: file and record, for the error text.

    Returns:
        The image, not opened yet.

    Raises:
        ImageError: no text, a URL, a path that leaves the folder, or no such file, and no
            `missing_images_allowed` is around the call.
    """
    try:
        return _resolve(folder, name, where)
    except ImageError as error:
        return absent(error)


def _resolve(folder: Path, name: Any, where: str) -> Image:
    if not isinstance(name, str) or not name.strip():
        raise ImageError(f"{where}: the image's path is {repr(name)[:80]}, a text is needed")
    if "://" in name:
        raise ImageError(f"{where}: '{name[:80]}' is a URL; images are read from local files only")
    root = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(root, name))
    if not path.startswith(os.path.join(root, "")):
        raise ImageError(f"{where}: image '{name}' leads out of the folder '{folder}'")
    try:
        exists = os.path.isfile(path)
    except ValueError:  # a zero byte in the name
        exists = False
    if not exists:
        raise ImageError(f"{where}: no image '{path}'")
    return Image(Path(path))
