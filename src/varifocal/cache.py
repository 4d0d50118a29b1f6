"""What can be made again and where it lies; and what a file is, by its content."""

import contextlib
import math
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from varifocal.staging import delete, staging_path, sweep_abandoned

_FOLDERS = ("digests", "encoded", "features", "indexes", "scans", "unpacked")


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
        scratch = staging_path(note)
        try:
            scratch.write_text(digest)
            scratch.replace(note)
        finally:
            delete(scratch)
        sweep_abandoned(note)
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


ALL = "all"
"""What `clear_cache` takes for every kind."""


@dataclass(frozen=True)
class CacheKind:
    """What is kept of one kind.

    Attributes:
        num_entries: files or folders that stand or go as one.
        num_bytes: on the disk.
    """

    num_entries: int
    num_bytes: int


def cache_kinds() -> dict[str, CacheKind]:
    """Measure what is kept by kind; a kind is a folder of the cache, `models` the rest of them."""
    return {kind: _measure(entries) for kind, entries in _entries().items()}


def clear_cache(kind: str, older_than: float | None = None) -> CacheKind:
    """Delete what is kept of a kind; a run that reads it meanwhile keeps what it has open.

    Args:
        kind: as `cache_kinds` names it, or `ALL`.
        older_than: days since an entry was last read or written; younger ones stay.

    Returns:
        what was deleted.
    """
    latest = math.inf if older_than is None else time.time() - 86400 * older_than
    chosen = [e for name, es in _entries().items() if kind in (name, ALL) for e in es]
    gone = [entry for entry in chosen if _last_used(entry) <= latest]
    measured = _measure(gone)
    for entry in gone:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return measured


def _entries() -> dict[str, list[Path]]:
    """Sort the cache's entries by kind: those of its kinds' folders, and converted models."""
    root = cache_root()
    entries: dict[str, list[Path]] = {}
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path.name in _FOLDERS:
            entries[path.name] = sorted(path.iterdir())
        elif (path / "config.json").is_file():
            entries.setdefault("models", []).append(path)
    return entries


def _files(entry: Path) -> list[Path]:
    return [file for file in entry.rglob("*") if file.is_file()] if entry.is_dir() else [entry]


def _measure(entries: Iterable[Path]) -> CacheKind:
    entries = list(entries)
    sizes = [file.stat().st_size for entry in entries for file in _files(entry)]
    return CacheKind(len(entries), sum(sizes))


def _last_used(entry: Path) -> float:
    """Return when any file of an entry was last read or written (many disks note reads daily)."""
    stats = [file.stat() for file in _files(entry)] or [entry.stat()]
    return max(max(stat.st_atime, stat.st_mtime) for stat in stats)
