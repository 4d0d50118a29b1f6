"""What the files of a directory held when they were written, so that damage is seen on reading.

Reading is bounded: of a file above `READ_WHOLE` bytes, as many evenly spaced blocks are checked as
`READ_WHOLE` holds. A file cut short, emptied or replaced is always found; a single flipped bit of a
larger file is found with the share that is read.
"""

import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

MANIFEST = "manifest.json"
READ_WHOLE = 1 << 30
"""Bytes of a file that are read for its checksum, at most."""
_BLOCK = 1 << 20


def write_manifest(directory: Path, pattern: str = "*") -> None:
    """Note size and checksum of a directory's files; call it when all of them are written.

    Args:
        directory: what `damage` will be asked about.
        pattern: of the names that are noted, in subfolders too.
    """
    files = sorted(path for path in directory.rglob(pattern) if path.is_file())
    noted = {
        path.relative_to(directory).as_posix(): [path.stat().st_size, checksum(path)]
        for path in files
        if path.name != MANIFEST
    }
    (directory / MANIFEST).write_text(json.dumps(noted, indent=1) + "\n")


def damage(directory: Path) -> str | None:
    """Say what is wrong with a directory that has a manifest, or None when nothing is.

    Returns:
        A clause such as "optimizer.pt has 12 bytes, and 4096 were written".
    """
    try:
        noted = json.loads((directory / MANIFEST).read_text())
        files = [(str(name), int(size), int(crc)) for name, (size, crc) in noted.items()]
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return next(filter(None, (_wrong(directory / name, *rest) for name, *rest in files)), None)


def unlisted_damage(checkpoint: Path) -> str | None:
    """Say what is wrong with a Trainer's checkpoint that has no manifest, or None.

    Its files are opened and not read through: one that is cut short or missing is found, and other
    bytes of the same number are not.
    """
    needed = ["trainer_state.json"]
    if not any(path.is_dir() for path in checkpoint.iterdir()):  # FSDP's and DeepSpeed's shards
        needed += ["optimizer.pt", "scheduler.pt"]
    missing = (name for name in needed if not (checkpoint / name).is_file())
    for name in missing:
        return f"{name} is missing, and so is {MANIFEST}"
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return next((f"{path.name} cannot be read" for path in files if not _opens(path)), None)


def _opens(path: Path) -> bool:
    """Whether a file is whole by its own account: where its format says how long it is."""
    from safetensors import SafetensorError, safe_open  # what asks for a run's paths does without

    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np"):
                return True
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix in (".pt", ".pth"):
            zipfile.ZipFile(path).close()
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError):
        return False
    return True


def _wrong(path: Path, size: int, crc: int) -> str | None:
    try:
        actual = path.stat().st_size
        if actual != size:
            return f"{path.name} has {actual} bytes, and {size} were written"
        return None if checksum(path) == crc else f"{path.name} holds other bytes than were written"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file, or of evenly spaced blocks of a large one."""
    crc = 0
    with path.open("rb") as file:
        for start in _starts(path.stat().st_size):
            file.seek(start)
            crc = zlib.crc32(file.read(_BLOCK), crc)
    return crc


def _starts(size: int) -> Iterator[int]:
    """Where the blocks start that are read: the first and the last always, at most a bound."""
    wanted, most = -(-size // _BLOCK), max(READ_WHOLE // _BLOCK, 2)
    if wanted <= most:
        yield from range(0, size, _BLOCK)
        return
    yield from ((size - _BLOCK) * number // (most - 1) for number in range(most))
