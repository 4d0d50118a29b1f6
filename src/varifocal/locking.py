"""One process at a time writes in a folder, on one machine or on several.

The lock is the operating system's and ends with the process that holds it, however that ends. Next
to it a file names the process while it holds the lock; it is touched every few seconds, since some
network file systems do not tell one machine of another's locks.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from varifocal.errors import RunError
from varifocal.staging import delete, machine
from varifocal.writing import MARK, unwritable_is_an_error, write_json

BEAT_S = 5.0

SILENCE_S = 60.0
"""Seconds without a sign after which a process of another machine is taken for ended."""

_held: dict[str, int] = {}  # locks of this process, and the thread that has each


@dataclass(frozen=True)
class Holder:
    """The process that writes in a folder.

    Attributes:
        pid: its number on its machine.
        host: the machine's name.
        machine: the machine or container, as `staging.machine` tells them apart.
        since: when it began.
    """

    pid: int
    host: str
    machine: str
    since: str


@contextmanager
def alone(folder: Path, name: str = "", *, nested: bool = False) -> Iterator[None]:
    """Keep other processes from writing in a folder while the block runs.

    The lock of a process that was killed is free.

    Args:
        folder: made if it is missing.
        name: of what is written there, where several processes may each write their own.
        nested: let a block inside another of the same folder and thread be part of it.

    Raises:
        RunError: another process writes there, or the folder cannot be written.
    """
    file, holder = _files(folder, name)
    if str(file) in _held:  # some file systems let a process take its own lock twice
        if not nested or _held[str(file)] != threading.get_ident():
            raise RunError(_occupied(folder, name, file, _read(holder)))
        yield
        return
    with _locked(folder, name, file, holder):
        _wait_for_a_sign(folder, name, file, holder)
        _held[str(file)] = threading.get_ident()
        try:
            with _signed(holder):
                yield
        finally:
            del _held[str(file)]


@contextmanager
def _locked(folder: Path, name: str, file: Path, holder: Path) -> Iterator[None]:
    """Hold the operating system's lock of a file, and leave nothing where the file is no mark.

    A process that was forked meanwhile has no part in it: filelock closes its copy of the file.
    """
    lock = FileLock(file)
    with unwritable_is_an_error(file):
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(_occupied(folder, name, file, _read(holder))) from None
    try:
        yield
    finally:
        if name:  # whoever has opened it meanwhile sees that it is gone, and makes a new one
            delete(file)
        lock.release()
        if name and is_new:
            with suppress(OSError):  # it holds something
                folder.rmdir()


@contextmanager
def in_turn(folder: Path, name: str) -> Iterator[None]:
    """Let the processes that make the same thing run the block one after another.

    Args:
        folder: made if it is missing; a file `.NAME.lock` stays there.
        name: of what is made.
    """
    file, _ = _files(folder, name)
    with unwritable_is_an_error(file):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def check_unoccupied(folder: Path) -> None:
    """Refuse a folder in which another process writes.

    Raises:
        RunError: one does.
    """
    if (folder / MARK).exists():
        with alone(folder):
            pass


def holder_of(folder: Path) -> tuple[Holder, bool] | None:
    """Return the process that wrote last in a folder, and whether it still does.

    None where it has ended as it should: only one that was killed leaves its name behind.
    """
    _, file = _files(folder, "")
    holder, touched = _read(file), _touched(file)
    if holder is None or touched is None:
        return None
    if holder.machine == machine():
        return holder, _runs(holder.pid)
    return holder, time.time() - touched < SILENCE_S


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    """Return the file that is locked, and the one that names the holder."""
    place = folder.resolve()
    if not name:
        return place / MARK, place / f"{MARK}.holder"
    return place / f".{name}.lock", place / f".{name}.holder"


def _wait_for_a_sign(folder: Path, name: str, file: Path, holder: Path) -> None:
    """Refuse if a process of another machine still writes, although its lock is not seen here.

    Times are compared as the file system gives them, since clocks of machines differ.
    """
    writer = _read(holder)
    if writer is None or writer.machine == machine():
        return
    touched = _touched(holder)
    while touched is not None:
        with unwritable_is_an_error(file):
            os.utime(file)
        now, last = file.stat().st_mtime, _touched(holder)
        if last is not None and last != touched:
            raise RunError(_occupied(folder, name, file, writer))
        if last is None or now - last > SILENCE_S:
            return
        time.sleep(1.0)


def _touched(file: Path) -> float | None:
    """When a file was last touched; it is opened, as network file systems then ask the server."""
    with suppress(OSError), file.open("rb") as stream:
        return os.fstat(stream.fileno()).st_mtime
    return None


@contextmanager
def _signed(holder: Path) -> Iterator[None]:
    """Name this process in a file and touch the file again and again while the block runs."""
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    write_json(holder, asdict(Holder(os.getpid(), socket.gethostname(), machine(), since)))
    done = threading.Event()
    beat = threading.Thread(target=_beat, args=(holder, done), daemon=True)
    beat.start()
    try:
        yield
    finally:
        done.set()
        beat.join(1.0)  # a network file system may hang
        delete(holder)


def _beat(holder: Path, done: threading.Event) -> None:
    while not done.wait(BEAT_S):
        with suppress(OSError):
            os.utime(holder)


def _read(holder: Path) -> Holder | None:
    try:
        return Holder(**json.loads(holder.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _occupied(folder: Path, name: str, file: Path, holder: Holder | None) -> str:
    what = f"{name} in {folder}" if name else str(folder)
    who = "another process" if holder is None else f"process {holder.pid} on {holder.host}"
    text = f"{what} is being written by {who}"
    if holder is not None:
        text += f" since {holder.since}"
    text += "; wait until it ends, stop it, or choose another --out"
    if holder is not None and holder.machine != machine():
        text += f" (if that machine is gone for good, delete {file})"
    return text
