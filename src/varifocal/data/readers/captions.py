"""Images with captions next to them: COCO's file of annotations, or a text for each image."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from varifocal.cache import file_digest
from varifocal.data.json_files import as_row, parse_json
from varifocal.data.readers.base import Record
from varifocal.data.readers.index import (
    MAX_RECORD_BYTES,
    after_byte_order_mark,
    index_container,
    values_of,
)
from varifocal.errors import DataError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm")
_MAX_CAPTION_BYTES = 2**20


class CocoRecords:
    """COCO's captions: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.

    One record an annotation; its row holds the image's name as `image`.

    Args:
        path: the file.

    Raises:
        DataError: it is not JSON, or lacks one of the lists.
    """

    is_split = False

    def __init__(self, path: Path) -> None:
        self.path, self.folder, self.place = path, path.parent, str(path)
        values = values_of(path)
        for key in ("images", "annotations"):
            if key not in values:
                raise DataError(f"'{path}' has no list '{key}', as COCO's captions have")
        self._index = index_container(path, values["annotations"], whole=False)
        self._names: dict[Any, str] = {}
        for number, (start, end, _) in enumerate(
            index_container(path, values["images"], whole=False)
        ):
            image = self._read(int(start), int(end), f"{path}: image {number}")
            self._names[image.get("id")] = str(image.get("file_name"))

    def __len__(self) -> int:
        """Count the captions."""
        return len(self._index)

    def __getitem__(self, number: int) -> Record:
        """Read a caption and the name of its image.

        Raises:
            DataError: its image is not among `images`.
        """
        start, end, count = (int(value) for value in self._index[number])
        place = f"annotation {count}"
        row = self._read(start, end, f"{self.path}: {place}")
        name = self._names.get(row.get("image_id"))
        if name is None:
            raise DataError(f"{self.path}: {place}: no image has the id {row.get('image_id')!r}")
        return Record(self.place, place, {**row, "image": name})

    @property
    def fingerprint(self) -> str:
        """The file's SHA-256."""
        return file_digest(self.path)

    def _read(self, start: int, end: int, where: str) -> dict[str, Any]:
        if end - start > MAX_RECORD_BYTES:
            raise DataError(f"{where} has {end - start:,} bytes; {MAX_RECORD_BYTES:,} are read")
        with self.path.open("rb") as stream:
            stream.seek(start)
            text = stream.read(end - start).decode("utf-8", "replace")
        return dict(as_row(parse_json(text, where), where))


def is_coco(path: Path) -> bool:
    """Tell whether a .json file holds one object with `images` and `annotations`."""
    try:
        with path.open("rb") as stream:
            stream.seek(after_byte_order_mark(path))
            if not stream.read(1 << 16).lstrip().startswith(b"{"):
                return False
        return {"images", "annotations"} <= values_of(path).keys()
    except (DataError, ValueError, OSError):
        return False


class CaptionedImages:
    """A folder with `NAME.txt` next to each image `NAME.png`, in the order of their names.

    Args:
        folder: looked into with its subfolders.

    Raises:
        DataError: there is no image with a text next to it.
    """

    is_split = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, str(folder)
        self._names = sorted(_images(folder))
        if not any((folder / name).with_suffix(".txt").is_file() for name in self._names):
            raise DataError(
                f"'{folder}' holds neither records nor images with a text of the same name"
            )

    def __len__(self) -> int:
        """Count the images."""
        return len(self._names)

    def __getitem__(self, number: int) -> Record:
        """Read a caption.

        Raises:
            DataError: there is none, or it is over 1 MB or not UTF-8.
        """
        name = self._names[number]
        text = (self.folder / name).with_suffix(".txt")
        try:
            with text.open("rb") as stream:
                content = stream.read(_MAX_CAPTION_BYTES + 1)
            if len(content) > _MAX_CAPTION_BYTES:
                raise DataError(f"'{text}' is over {_MAX_CAPTION_BYTES:,} bytes, no caption")
            caption = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"'{text}' is not UTF-8; save it as UTF-8") from error
        except OSError as error:
            raise DataError(f"{self.place}: image {name} has no caption '{text.name}'") from error
        return Record(self.place, f"image {name}", {"id": name, "image": name, "caption": caption})

    @property
    def fingerprint(self) -> str:
        """A digest of the images' names and of the captions' sizes and times of change."""
        digest = hashlib.sha256()
        for name in self._names:
            text = (self.folder / name).with_suffix(".txt")
            stat = text.stat() if text.is_file() else None
            digest.update(f"{name}\0{stat and (stat.st_size, stat.st_mtime_ns)}\0".encode())
        return digest.hexdigest()


def _images(folder: Path) -> list[str]:
    """List the images below a folder by their path in it."""
    return [
        os.path.relpath(os.path.join(where, name), folder)
        for where, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(IMAGE_ENDINGS)
    ]
