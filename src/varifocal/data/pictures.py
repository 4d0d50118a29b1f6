"""Where a record's picture lies: a file inside a folder, bytes in the record, or a data: URI."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from varifocal.data.byte_index import MAX_RECORD_BYTES
from varifocal.data.example import Image
from varifocal.errors import PictureError


def find_picture(value: Any, folder: Path, where: str) -> Image:
    """Return the picture a record names or holds, not opened yet; nothing is ever downloaded.

    Args:
        value: a path, a `data:` URI, the content in bytes, `{"bytes": ..., "path": ...}` as the
            `datasets` library has it, or a picture that is found already.
        folder: the only place pictures are read from.
        where: file and place of the record, for the error text.

    Raises:
        PictureError: it is none of these, a URL, a path that leaves the folder, or no such file.
    """
    if isinstance(value, Mapping):
        content = value.get("bytes")
        value = content if content is not None else value.get("path")
    if isinstance(value, Image):
        return value
    if isinstance(value, bytes):
        return Image(data=value)
    if isinstance(value, str) and value.lower().startswith("data:"):
        return Image(data=_decode(value, where))
    return resolve_image(folder, value, where)


def _decode(uri: str, where: str) -> bytes:
    """Decode `data:image/png;base64,...`."""
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise PictureError(f"{where}: '{uri[:40]}' is no data: URI with ';base64,' and a picture")
    if len(body) > MAX_RECORD_BYTES:
        raise PictureError(
            f"{where}: a data: URI of {len(body):,} characters; "
            f"at most {MAX_RECORD_BYTES:,} are read"
        )
    try:
        content = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PictureError(f"{where}: the data: URI '{uri[:40]}' is not base64: {error}") from error
    if not content:
        raise PictureError(f"{where}: the data: URI '{uri[:40]}' holds no picture")
    return content


def resolve_image(folder: Path, name: Any, where: str) -> Image:
    """Find a picture inside its folder.

    Args:
        folder: the only place pictures are read from; links inside it may lead elsewhere.
        name: path relative to the folder, or an absolute one inside it.
        where: file and record, for the error text.

    Returns:
        The picture, not opened yet.

    Raises:
        PictureError: no text, a URL, a path that leaves the folder, or no such file.
    """
    if not isinstance(name, str) or not name.strip():
        raise PictureError(f"{where}: the picture's path is {repr(name)[:80]}, a text is needed")
    if "://" in name:
        raise PictureError(
            f"{where}: '{name[:80]}' is a URL; pictures are read from local files only"
        )
    root = os.path.abspath(folder)
    path = os.path.abspath(os.path.join(root, name))
    if not path.startswith(os.path.join(root, "")):
        raise PictureError(f"{where}: picture '{name}' leads out of the folder '{folder}'")
    try:
        found = os.path.isfile(path)
    except ValueError:  # a zero byte in the name
        found = False
    if not found:
        raise PictureError(f"{where}: no picture '{path}'")
    return Image(Path(path))
