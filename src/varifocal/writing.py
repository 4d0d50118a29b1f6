"""Write files and folders whole or not at all, with the umask's modes, over nothing foreign.

What is not whole yet has a name of its own kind (`varifocal.staging`). A folder that is neither
empty nor has a mark of ours belongs to somebody else and is refused.
"""

import errno
import json
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from varifocal.cache import cache_root
from varifocal.errors import RunError, VarifocalError
from varifocal.manifest import write_manifest
from varifocal.staging import delete, follow_umask, is_staged, staging_path, sweep_abandoned

MARK = ".varifocal"
"""The file by which an output folder is known as ours; see `claim_folder`."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ENOTDIR}
_REFUSED |= {errno.EEXIST, errno.EISDIR, errno.EIO, errno.ESTALE, errno.ENOLCK}
_SAID = {
    "No space left": errno.ENOSPC,
    # torch.save counts the bytes that went out, and says no more than that they are too few.
    "unexpected pos": errno.ENOSPC,
    "Read-only file system": errno.EROFS,
    "Permission denied": errno.EACCES,
}
_NAMED = 3  # entries of a foreign folder that an error lists


def check_folder(
    folder: Path, mark: str = MARK, known: Collection[str] = (), place: str = "another --out"
) -> None:
    """Refuse an output folder that holds files of somebody else.

    Args:
        folder: may be missing, empty, or have the mark.
        mark: the name of a file that only our writing puts there.
        known: names that may stand there without the mark.
        place: what a user is to choose instead.

    Raises:
        RunError: it is a file, or holds something and no mark; the text names what it holds.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file, and a folder is to be written; choose {place}")
    with unwritable_is_an_error(folder):
        held = sorted(path.name for path in folder.iterdir() if not is_staged(path))
    if mark in held or set(held) <= set(known):
        return
    raise RunError(
        f"{folder} is not empty, and Varifocal did not make it: it holds "
        f"{listed(held)}; choose {place}, or an empty folder"
    )


def listed(names: Sequence[str]) -> str:
    """Name a few files, and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def claim_folder(folder: Path, known: Collection[str] = (), place: str = "another --out") -> None:
    """Make an output folder and mark it as ours; see `check_folder`.

    Raises:
        RunError: it holds files of somebody else, or cannot be written.
    """
    check_folder(folder, known=known, place=place)
    with unwritable_is_an_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a name to write a file under; it becomes `path` only when the block ends well.

    Raises:
        RunError: the disk is full, or may not be written.
    """
    with unwritable_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        staging = staging_path(path)
        try:
            yield staging
            os.replace(staging, path)
        finally:
            delete(staging)
        sweep_abandoned(path)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 whole or not at all, making its directory.

    Raises:
        RunError: the disk is full, or may not be written.
    """
    with atomic_file(path) as staging:
        staging.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write indented JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def atomic_directory(target: Path, noted: str | None = None) -> Iterator[Path]:
    """Yield a directory to fill; it takes the place of `target` only when the block ends well.

    Args:
        target: what it will be called.
        noted: the pattern of the files whose checksums are kept in a manifest; None keeps none.

    Raises:
        RunError: the disk is full, or may not be written; what stood at `target` is still there.
    """
    with unwritable_is_an_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = staging_path(target)
        staging.mkdir()
        try:
            yield staging
            if noted is not None:
                write_manifest(staging, noted)
            follow_umask(staging)
            _swap(staging, target)
        finally:
            delete(staging)


def _swap(staging: Path, target: Path) -> None:
    """Put `staging` where `target` stands; the old one and what kills left are deleted last."""
    while True:
        away = put_away(target)
        try:
            os.replace(staging, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                if away is not None:
                    os.replace(away, target)
                raise
            # Another process has put its own there between the two steps.
            _delete_if(away)
            continue
        break
    _delete_if(away)
    sweep_abandoned(target)


def _delete_if(path: Path | None) -> None:
    if path is not None:
        delete(path)


def put_away(path: Path) -> Path | None:
    """Rename a directory to a hidden name, under which nobody looks for it; None if it is gone."""
    away = staging_path(path)
    try:
        os.replace(path, away)
    except FileNotFoundError:
        return None
    return away


@contextmanager
def unwritable_is_an_error(path: Path) -> Iterator[None]:
    """Turn a full disk and a place that may not be written into a sentence.

    The errors may be OSError, safetensors' own or torch's. Of blocks inside one another the
    outermost names its path: a user knows the checkpoint, and not the folder next to it in which
    it is prepared.

    Raises:
        RunError: the disk is full, or the place is read-only or another user's.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        message = refusal(cause, path) if isinstance(cause, Exception) else None
        if message is None:
            raise
        raise RunError(message) from cause


def refusal(error: Exception, path: Path) -> str | None:
    """Say why a place could not be written; None for an error of another kind."""
    in_cache = path.is_relative_to(cache_root())
    number = error_number(error)
    if number in _FULL:
        fix = "free some space"
        if in_cache:
            fix += " or set VARIFOCAL_CACHE to a folder on another disk,"
        return (
            f"the disk is full: {path} was not written, and what was saved before is untouched; "
            f"{fix} and repeat the command with --resume"
        )
    place = getattr(error, "filename", None)
    elsewhere = isinstance(place, str | bytes) and not _is_near(Path(os.fsdecode(place)), path)
    if number in _REFUSED and not elsewhere:
        fix = "set VARIFOCAL_CACHE to a folder" if in_cache else "name a place"
        return (
            f"{path} cannot be written ({os.strerror(number).lower()}); {fix} that you may "
            "write, or change its permissions"
        )
    return None


def _is_near(place: Path, path: Path) -> bool:
    """Whether a place lies in the folder of a path, or is a folder on the way to it."""
    folder = path.parent
    return folder in (place, *place.parents) or place in folder.parents


def error_number(error: Exception) -> int | None:
    """Return the operating system's number of an error, also of safetensors' and torch's own."""
    number = getattr(error, "errno", None)
    if isinstance(number, int) or isinstance(error, VarifocalError):
        return number
    if system := re.search(r"\(os error (\d+)\)", str(error)):
        return int(system[1])
    return next((known for text, known in _SAID.items() if text in str(error)), None)


def unusable(error: OSError) -> str | None:
    """Say of an error that no part of a command expected which place it is about, and why.

    It may have come of reading as well as of writing, which nobody can tell from it.
    """
    if error.errno not in _FULL | _REFUSED:
        return None
    reason = os.strerror(error.errno).lower()
    if error.filename is None:
        return f"a file cannot be used: {reason}"
    place = os.fsdecode(error.filename)
    return f"{place} cannot be used: {reason}; change its permissions, or name another place"


def move_into(source: Path, target: Path) -> None:
    """Move a folder's files into another, into folders of one name too: DeepSpeed's, FSDP's."""
    for path in list(source.iterdir()):
        moved = target / path.name
        if path.is_dir() and moved.is_dir():
            move_into(path, moved)
        else:
            os.replace(path, moved)
