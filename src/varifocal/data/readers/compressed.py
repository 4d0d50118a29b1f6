"""Files packed by gzip: read in order as they are, in any order from a copy in the cache."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from varifocal.cache import cache_root
from varifocal.errors import DataError, RunError
from varifocal.writing import atomic_file

UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading a packed file raises where it is damaged."""


def is_packed(path: Path) -> bool:
    """Tell whether a file begins as gzip's do."""
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading in its order, unpacked on the way where it is packed."""
    with gzip.open(path) if is_packed(path) else path.open("rb") as stream:
        yield cast(IO[bytes], stream)


def unpacked(path: Path) -> Path:
    """Return a file, or the unpacked copy of a packed one, which the cache keeps.

    Raises:
        DataError: it is damaged, or there is no room for the copy.
    """
    if not is_packed(path):
        return path
    stat = path.stat()
    identity = f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    copy = cache_root() / "unpacked" / hashlib.sha256(identity.encode()).hexdigest()
    if copy.is_file():
        return copy
    try:
        with (
            atomic_file(copy) as staging,
            gzip.open(path) as packed,
            staging.open("wb") as plain,
        ):
            shutil.copyfileobj(packed, plain, 1 << 20)
    except (RunError, *UNREADABLE) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"'{path}' cannot be unpacked into '{copy.parent}': {reason}; unpack it yourself, or "
            "read it in its order with streaming: true"
        ) from error
    return copy
