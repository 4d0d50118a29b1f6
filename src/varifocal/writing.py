"""Write files and folders whole or not at all, with the umask's modes, over nothing foreign.

What is not whole yet has a name of its own kind (`.NAME.varifocal-8LETTERS`), by which a later
process knows that it may be deleted; no other name is ever swept. A folder that holds neither
nothing nor a mark of ours belongs to somebody else and is refused.
"""

import errno
import glob
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from varifocal.cache import cache_root
from varifocal.errors import RunError
from varifocal.manifest import write_manifest

MARK = ".varifocal"
"""The file by which an output folder is known as ours; see `claim_folder`."""

_STAGED = re.compile(r"\..+\.varifocal-([0-9a-f]{8}|process\d+)")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)
_NAMED = 3  # entries of a foreign folder that an error lists


def staging_path(target: Path) -> Path:
    """Return a new hidden name next to a file or folder that is to be written.

    >>> is_staged(staging_path(Path("runs/demo/recipe.yaml")))
    True
    """
    return target.with_name(f".{target.name[-200:]}.varifocal-{secrets.token_hex(4)}")


def process_staging_path(target: Path, number: int) -> Path:
    """Return the hidden name under which one of several processes writes its part of a folder."""
    return target.with_name(f".{target.name}.varifocal-process{number}")


def is_staged(path: Path) -> bool:
    """Tell whether a name is one of `staging_path`.

    >>> is_staged(Path(".env.template")), is_staged(Path(".old.original"))
    (False, False)
    """
    return _STAGED.fullmatch(path.name) is not None


def sweep_staged(directory: Path, name: str = "*") -> None:
    """Delete what killed processes left half written; nothing else may be writing there.

    Args:
        directory: only itself is swept, no folder in it.
        name: a pattern of the names that were to be written.
    """
    for path in filter(is_staged, directory.glob(f".{name}.varifocal-*")):
        _delete(path)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_folder(folder: Path, mark: str = MARK, known: Collection[str] = ()) -> None:
    """Refuse an output folder that holds files of somebody else.

    Args:
        folder: may be missing, empty, or have the mark.
        mark: the name of a file that only our writing puts there.
        known: names that may stand there without the mark.

    Raises:
        RunError: it is a file, or holds something and no mark; the text names what it holds.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file, and a folder is to be written; choose another --out")
    with unwritable_is_an_error(folder):
        held = sorted(path.name for path in folder.iterdir() if not is_staged(path))
    if mark in held or set(held) <= set(known):
        return
    more = f" and {len(held) - _NAMED} more" if len(held) > _NAMED else ""
    raise RunError(
        f"{folder} is not empty, and Varifocal did not make it: it holds "
        f"{', '.join(held[:_NAMED])}{more}; choose another --out, or an empty folder"
    )


def claim_folder(folder: Path, known: Collection[str] = ()) -> None:
    """Make an output folder and mark it as ours; see `check_folder`.

    Raises:
        RunError: it holds files of somebody else, or cannot be written.
    """
    check_folder(folder, known=known)
    with unwritable_is_an_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
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
            staging.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8 whole or not at all, making its directory.

    Raises:
        RunError: the disk is full, or may not be written.
    """
    with whole_file(path) as staging:
        staging.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: object) -> None:
    """Write indented JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def whole_directory(target: Path, noted: str | None = None) -> Iterator[Path]:
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
            _follow_umask(staging)
            _swap(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _follow_umask(directory: Path) -> None:
    """Let a group read what it may: safetensors and others write files for their owner alone.

    The directory was made under the umask, which cannot be read without setting it for a moment.
    """
    mode = directory.stat().st_mode & 0o777
    for path in directory.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)


def _swap(staging: Path, target: Path) -> None:
    """Put `staging` where `target` stands; the old one and what kills left are deleted last."""
    away = put_away(target) if target.exists() else None
    os.replace(staging, target)
    if away is not None:
        shutil.rmtree(away, ignore_errors=True)
    sweep_staged(target.parent, glob.escape(target.name))


def put_away(path: Path) -> Path:
    """Rename a directory to a hidden name, under which nobody looks for it."""
    away = staging_path(path)
    os.replace(path, away)
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
        told = refusal(cause, path) if isinstance(cause, Exception) else None
        if told is None:
            raise
        raise RunError(told) from cause


def refusal(error: Exception, path: Path) -> str | None:
    """Say why a place could not be written; None for an error of another kind."""
    in_cache = path.is_relative_to(cache_root())
    if _is_full(error):
        mend = "free some space"
        if in_cache:
            mend += " or set VARIFOCAL_CACHE to a folder on another disk,"
        return (
            f"the disk is full: {path} was not written, and what was saved before is untouched; "
            f"{mend} and repeat the command with --resume"
        )
    place = getattr(error, "filename", None)
    elsewhere = place is not None and path.parent not in Path(os.fsdecode(place)).parents
    if getattr(error, "errno", None) in _REFUSED and not elsewhere:
        mend = "set VARIFOCAL_CACHE to a folder" if in_cache else "name a place"
        return (
            f"{path} cannot be written ({os.strerror(error.errno).lower()}); {mend} that you may "  # type: ignore[attr-defined]
            "write, or change its permissions"
        )
    return None


def _is_full(error: Exception) -> bool:
    """Whether an error is a full disk's, a used-up quota's or a file size limit's."""
    number = getattr(error, "errno", None)
    if number is not None:
        return number in _FULL
    # torch.save counts the bytes that went out, and says no more than that they are too few.
    return any(text in str(error) for text in ("No space left", "unexpected pos"))
