"""What can be made again and where it lies; and what a file is, by its content."""

import contextlib
import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path


def cache_root() -> Path:
    """Return where Varifocal keeps what it can make again: `$VARIFOCAL_CACHE` or a home folder."""
    root = os.environ.get("VARIFOCAL_CACHE")
    return Path(root).expanduser() if root else Path.home() / ".cache" / "varifocal"


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's content, in hex.

    Hashing gigabytes at every start would be felt, so the result is kept in the cache under the
    file's path, size and times. The time of modification can be set by whoever writes the file
    (`cp -p`, `rsync -t`, a restored backup); the inode and its own time of change cannot.
    """
    stat = file.stat()
    times = f"{stat.st_mtime_ns}\0{stat.st_ctime_ns}\0{stat.st_ino}"
    identity = f"{file.resolve()}\0{stat.st_size}\0{times}"
    note = cache_root() / "digests" / sha256(identity.encode()).hexdigest()
    with contextlib.suppress(OSError):
        known = note.read_text()
        if len(known) == 64:
            return known
    digest = _hash(file)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs time, nothing else
        note.parent.mkdir(parents=True, exist_ok=True)
        scratch = note.with_suffix(f".{os.getpid()}")
        scratch.write_text(digest)
        scratch.replace(note)
    return digest


def _hash(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(files: Iterable[Path]) -> str:
    """Return one SHA-256, in hex, over the contents of several weights files, in their order."""
    digest = sha256()
    for file in files:
        digest.update(bytes.fromhex(file_digest(file)))
    return digest.hexdigest()
