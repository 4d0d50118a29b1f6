"""The names under which files are written before they are whole, and who may delete them.

A file is written as `.NAME.varifocal-tmp-MACHINE-PID-RANDOM` next to its target and renamed when it
is complete. No other program uses such names, so what a killed process left can be deleted without
touching a file of the user. Modes follow the umask, unlike those of the `tempfile` module.
"""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

MARK = ".varifocal-tmp-"
_STAGED = re.compile(rf"\..+{re.escape(MARK)}(.+)", re.DOTALL)
_WRITER = re.compile(r"([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")
_LONGEST_NAME = 150  # bytes of the target's name; a name of 255 is all that a file system takes
_ABANDONED_AFTER = 86400.0  # seconds; of another machine's processes nothing else is known


def staging_path(target: Path, part: str | None = None) -> Path:
    """Return an unused name next to a target, under which the target can be written.

    Args:
        target: what it will be called.
        part: what makes the name unique; by default this process and a random number.
    """
    return target.with_name(f".{_short(target.name)}{MARK}{part or _writer()}")


def process_staging_path(target: Path, number: int) -> Path:
    """Return the name under which one of several processes writes its part of a folder."""
    return staging_path(target, f"process{number}")


def is_staged(path: Path) -> bool:
    """Whether a path has a name that `staging_path` makes.

    >>> is_staged(staging_path(Path("runs/demo/adapter"))), is_staged(Path(".env.template"))
    (True, False)
    """
    return _STAGED.fullmatch(path.name) is not None


def staged(directory: Path) -> Iterator[Path]:
    """Yield everything in a directory that is being written, or was when its writer ended."""
    with contextlib.suppress(OSError):
        yield from filter(is_staged, sorted(directory.iterdir()))


def follow_umask(directory: Path) -> None:
    """Give every file of a directory the modes of the umask; libraries write some as private.

    safetensors writes files that only their owner can read, whatever the umask.

    Args:
        directory: made by `mkdir`, so that its own modes show what the umask allows.
    """
    allowed = directory.stat().st_mode & 0o777
    for path in directory.rglob("*"):
        if not path.is_symlink():
            with contextlib.suppress(OSError):  # some file systems have no modes
                path.chmod(allowed if path.is_dir() else allowed & 0o666)


def sweep_abandoned(target: Path) -> None:
    """Delete what processes that ended left of a target; what a running one writes stays."""
    prefix = f".{_short(target.name)}{MARK}"
    for path in staged(target.parent):
        if path.name.startswith(prefix) and is_abandoned(path):
            delete(path)


def delete(path: Path) -> None:
    """Delete a file, or a directory with what it holds; what is gone already is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def is_abandoned(path: Path) -> bool:
    """Whether the process that wrote a staging path has ended, as far as this machine can tell."""
    match = _STAGED.fullmatch(path.name)
    writer = _WRITER.fullmatch(match[1]) if match else None
    if writer is None:
        return False
    if writer[1] == machine():
        return not is_running(int(writer[2]))
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime > _ABANDONED_AFTER
    return False


def is_running(pid: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's
    return True


def machine() -> str:
    """Return a short name of this machine, or of this container: where a process id counts."""
    return _machine(socket.gethostname())


@functools.lru_cache
def _machine(host: str) -> str:
    namespace = ""
    with contextlib.suppress(OSError):  # only Linux has it
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{host}\0{namespace}".encode(errors="surrogateescape")).hexdigest()[:8]


def _writer() -> str:
    return f"{machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def _short(name: str) -> str:
    """Shorten a long name, so that the staging name next to it is not too long."""
    encoded = os.fsencode(name)
    if len(encoded) <= _LONGEST_NAME:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:16]
    return f"{os.fsdecode(encoded[: _LONGEST_NAME - 40])}-{digest}"
