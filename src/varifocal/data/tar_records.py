"""Samples of tar shards in WebDataset's layout, each read as it stands and when it is asked for.

A sample is a run of neighbouring members whose names are equal up to the first full stop of the
file's name. Where each run lies in the shard is found once, from the headers alone.

Letters: N samples.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from varifocal.cache import file_digest
from varifocal.data.byte_index import Index, kept
from varifocal.data.compressed import UNREADABLE, opened, unpacked
from varifocal.data.raw_rows import Record
from varifocal.data.shard_rows import row_of_sample
from varifocal.errors import DataError

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
        with _told(path):
            self._index = kept(unpacked(path), "samples", partial(_index, path=path))
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
        with _told(self.path), unpacked(self.path).open("rb") as stream:
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
    with _told(path), opened(path) as stream:
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
    """Refuse what is no zero behind the last member: `tarfile` takes a damaged header for the end.

    Raises:
        DataError: there is something.
    """
    stream.seek(offset)
    while block := stream.read(1 << 20):
        if block.strip(b"\0"):
            raise DataError(
                f"'{path}' is damaged, or several archives in one: behind byte {offset:,} stands "
                "something that is no member"
            )


def _index(plain: Path, path: Path) -> Index:
    """Find the samples of an uncompressed shard.

    Returns:
        [N, 3]: first byte, first byte behind, number.
    """
    with plain.open("rb") as stream:
        bounds = [(one.start, one.end) for one in _samples(stream, path, read=False)]
    numbered = [(start, end, number) for number, (start, end) in enumerate(bounds)]
    return np.array(numbered, np.int64).reshape(-1, 3)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn what goes wrong with a tar file into a sentence."""
    try:
        yield
    except _UNREADABLE as error:
        raise DataError(f"'{path}' cannot be read as a tar file: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
