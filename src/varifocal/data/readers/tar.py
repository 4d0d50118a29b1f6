"""Samples of tar shards in WebDataset's layout, each read as it stands and when it is asked for.

A sample is a run of neighbouring members whose names are equal up to the first full stop of the
file's name. Where each run lies in the shard is found once, from the headers alone.

Letters: N samples.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from varifocal.cache import file_digest
from varifocal.data.json_files import as_row, parse_json
from varifocal.data.readers.base import Record
from varifocal.data.readers.captions import IMAGE_ENDINGS
from varifocal.data.readers.compressed import UNREADABLE, opened, unpacked
from varifocal.data.readers.files import decode_text
from varifocal.data.readers.index import Index, cached_index
from varifocal.errors import DataError

_JSON = (".json", ".jsn")
_TEXTS = (".txt", ".text", ".caption", ".cls", ".id", ".index")
_OTHER_MEDIA = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".wav", ".mp3", ".flac", ".ogg", ".m4a")


def row_of_sample(key: str, members: Iterable[tuple[str, Any]], where: str) -> Mapping[str, Any]:
    """Make a row of a sample's members.

    The keys of its JSON are columns; `NAME.txt` is the column `NAME`, and `txt` alone is `text`.
    Its images are `image`, in the order in which its JSON lists them, or else by the numbers in
    their names. Anything else is a column of bytes.

    Args:
        key: what the members' names have in common.
        members: the rest of each name ("0.png", "json"), and its content: bytes, or what the
            `datasets` library made of it. None is no member.
        where: shard and sample, for error texts.

    Raises:
        DataError: JSON that is no object, two values for one column, a video or a sound, or a
            image that the JSON lists and the sample lacks.

    >>> row = row_of_sample("7", [("1.PNG", b"b"), ("0.png", b"a"), ("json", b'{"n": 1}')], "")
    >>> row["id"], row["n"], row["image"]
    ('7', 1, [b'a', b'b'])
    """
    row: dict[str, Any] = {}
    images: dict[str, Any] = {}
    for name, content in members:
        ending = "." + name.rsplit(".", 1)[-1].lower()
        if content is None:
            continue
        if ending in _OTHER_MEDIA:
            raise DataError(f"{where} holds '{name}'; only text and images can be read")
        if ending in IMAGE_ENDINGS:
            _put(images, name, content, where)
            continue
        if ending in _JSON:
            columns = as_row(_json(content, f"{where}: '{name}'"), f"{where}: '{name}'")
        elif ending in _TEXTS:
            columns = {_column(name, ending): _text(content, ending, f"{where}: '{name}'")}
        else:
            columns = {name: content}
        for column, value in columns.items():
            _put(row, column, value, where)
    row.setdefault("id", key)
    return _with_images(row, images, key, where) if images else row


def _put(row: dict[str, Any], column: str, value: Any, where: str) -> None:
    if column in row and row[column] != value:
        raise DataError(
            f"{where} has two values for '{column}'; a sample's name ends at its first full stop, "
            "so files of one name up to there are one sample"
        )
    row[column] = value


def _column(name: str, ending: str) -> str:
    bare = name[: -len(ending)] if "." in name else ""
    return bare or {".txt": "text"}.get(ending, ending[1:])


def _json(content: Any, where: str) -> Any:
    if not isinstance(content, bytes):
        return content
    return parse_json(decode_text(content, where).removeprefix("\ufeff"), where)


def _text(content: Any, ending: str, where: str) -> Any:
    """Read a text; a class is an integer, as WebDataset has it."""
    if not isinstance(content, bytes):
        return content
    text = decode_text(content, where).removeprefix("\ufeff").strip()
    is_number = ending in (".cls", ".index") and re.fullmatch(r"\d{1,18}", text, re.ASCII)
    return int(text) if is_number else text


def _with_images(
    row: dict[str, Any], images: Mapping[str, Any], key: str, where: str
) -> Mapping[str, Any]:
    named = row.pop("images", None)
    names = sorted(images, key=_by_numbers)
    if isinstance(named, list) and named:
        if len(named) != len(names):
            raise DataError(
                f"{where}: its JSON names {len(named)} images, but the sample holds {len(names)}: "
                f"{', '.join(names)}"
            )
        names = _as_listed(named, names, key)
    row.pop("image", None)
    row["image"] = images[names[0]] if len(names) == 1 else [images[name] for name in names]
    return row


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Order "img2.png" before "img10.png"."""
    return [(int(n), "") if n.isdecimal() else (0, n) for n in re.split(r"(\d+)", name.lower())]


def _as_listed(named: Sequence[Any], names: Sequence[str], key: str) -> Sequence[str]:
    """Order the images as the JSON lists them, if it does so by their names."""
    base = key.rsplit("/", 1)[-1]
    ours = {f"{base}.{name}": name for name in names} | {name: name for name in names}
    listed = [ours.get(str(name).rsplit("/", 1)[-1]) for name in named]
    known = [name for name in listed if name is not None]
    return known if len(set(known)) == len(names) else names


TAR_ENDINGS = (".tar", ".tar.gz", ".tgz")
MAX_SAMPLE_BYTES = 256 * 2**20
"""A larger sample is refused unread: none may fill the memory."""

_UNREADABLE = (tarfile.TarError, ValueError, *UNREADABLE)


class TarRecords:
    """The samples of one shard, in any order.

    A compressed shard cannot be read in any order, so it is unpacked into the cache once.

    Args:
        path: the shard.
        is_split: as in `Records`.

    Raises:
        DataError: it is no tar file, is damaged, holds no sample, or the members of a sample do not
            lie next to one another.
    """

    def __init__(self, path: Path, is_split: bool = False) -> None:
        self.path, self.folder, self.place = path, path.parent, str(path)
        self.is_split = is_split
        with _as_data_error(path):
            self._index = cached_index(unpacked(path), "samples", partial(_index, path=path))
        if not len(self._index):
            raise DataError(f"'{path}' has no sample: no file in it has a name and an ending")

    def __len__(self) -> int:
        """Count the samples."""
        return len(self._index)

    def __getitem__(self, number: int) -> Record:
        """Read a sample.

        Raises:
            DataError: its JSON is broken, or it is too large; see `shard_rows.row_of_sample`.
        """
        start, end, _ = (int(value) for value in self._index[number])
        with _as_data_error(self.path), unpacked(self.path).open("rb") as stream:
            stream.seek(start)
            content = io.BytesIO(stream.read(end - start)) if end - start <= _MOST_READ else None
            if content is None:
                raise DataError(f"{self.path}: sample {number} has {end - start:,} bytes{_LIMIT}")
            (sample,) = _samples(content, self.path)
        return sample.record(self.path)

    @property
    def fingerprint(self) -> str:
        """The shard's SHA-256."""
        return file_digest(self.path)


def stream_shard(path: Path) -> Iterator[Record | DataError]:
    """Read a shard's samples in their order, one in memory at a time; nothing is unpacked.

    Raises:
        DataError: as `TarRecords`, when the damaged part is reached.
    """
    with _as_data_error(path), opened(path) as stream:
        for sample in _samples(stream, path):
            try:
                yield sample.record(path)
            except DataError as error:
                yield error


@dataclass
class _Sample:
    """A run of members.

    Attributes:
        key: what their names have in common.
        start, end: bytes of the run in the shard, headers included.
        size: bytes of the members' contents.
        members: the rest of each name, and the content.
        link: a member that is no plain file, such as a link.
    """

    key: str
    start: int
    end: int = 0
    size: int = 0
    members: list[tuple[str, bytes]] = field(default_factory=list)
    link: str = ""

    def record(self, path: Path) -> Record:
        place = f"sample {self.key}"
        where = f"{path}: {place}"
        if self.link:
            raise DataError(
                f"{where}: '{self.link}' is a link or no plain file, which is not followed"
            )
        if self.size > MAX_SAMPLE_BYTES:
            raise DataError(f"{where} has {self.size:,} bytes{_LIMIT}")
        return Record(str(path), place, row_of_sample(self.key, self.members, where))


_LIMIT = f"; at most {MAX_SAMPLE_BYTES:,} are read"
_MOST_READ = MAX_SAMPLE_BYTES + 2**20  # headers and padding


def _samples(stream: IO[bytes], path: Path, read: bool = True) -> Iterator[_Sample]:
    """Group the members of a tar file into samples; with `read`, their contents too."""
    known: set[str] = set()
    sample: _Sample | None = None
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            tar.members = []  # pyright: ignore[reportAttributeAccessIssue] # or all stay in memory
            key, rest = _key_of(member.name)
            if member.isdir() or not rest:
                continue
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                if key in known:
                    raise DataError(
                        f"'{path}': the files of sample '{key}' do not lie next to one another "
                        f"('{member.name}' is apart); sort them by name (tar --sort=name)"
                    )
                known.add(key)
                sample = _Sample(key, member.offset)
            _add(sample, member, rest, tar, read)
        _check_end(stream, tar.offset, path)
    if sample is not None:
        yield sample


def _add(
    sample: _Sample, member: tarfile.TarInfo, rest: str, tar: tarfile.TarFile, read: bool
) -> None:
    """Add a member to its sample; a sample that grows too large is not read on."""
    sample.size += member.size
    sample.end = tar.offset
    if not member.isfile():
        sample.link = member.name
    elif read and sample.size <= MAX_SAMPLE_BYTES:
        file = tar.extractfile(member)
        sample.members.append((rest, file.read() if file else b""))
    else:
        sample.members.clear()


def _key_of(name: str) -> tuple[str, str]:
    """Split a member's name at the first full stop of its file; hidden files have no key.

    >>> _key_of("./train/0001.img1.jpg"), _key_of("._0001.jpg"), _key_of("__MACOSX/a.jpg")
    (('train/0001', 'img1.jpg'), ('', ''), ('', ''))
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts[-1:]):
        return "", ""
    stem, _, rest = parts[-1].partition(".")
    return "/".join([*parts[:-1], stem]), rest


def _check_end(stream: IO[bytes], offset: int, path: Path) -> None:
    """Refuse what is no zero after the last member: `tarfile` takes a damaged header for the end.

    Raises:
        DataError: there is something.
    """
    stream.seek(offset)
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise DataError(
                f"'{path}' is damaged, or several archives in one: after byte {offset:,} stands "
                "something that is no member"
            )


def _index(plain: Path, path: Path) -> Index:
    """Find the samples of an uncompressed shard.

    Returns:
        [N, 3]: first byte, first byte after, number.
    """
    with plain.open("rb") as stream:
        bounds = [(sample.start, sample.end) for sample in _samples(stream, path, read=False)]
    numbered = [(start, end, number) for number, (start, end) in enumerate(bounds)]
    return np.array(numbered, np.int64).reshape(-1, 3)


@contextmanager
def _as_data_error(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a tar file into a sentence."""
    try:
        yield
    except _UNREADABLE as error:
        raise DataError(f"'{path}' cannot be read as a tar file: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
