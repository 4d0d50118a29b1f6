"""The folders of an export: which ones it writes, and which it may replace; needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from varifocal.errors import RunError
from varifocal.recipe import load_recipe
from varifocal.run import RunDirectory
from varifocal.writing import check_folder, listed

ROUTES = {"text": 0, "image": 1}

PARITY = "parity.json"
"""What the gate found; by this file a folder is known as an export."""


def routes_of(to: str, run: RunDirectory) -> list[tuple[str, int | None]]:
    """List the artifacts' names and the modalities of their rows; None where rows differ."""
    if to == "model":
        return [("", None)]
    tuner = load_recipe(run.recipe, check_paths=False).tuner.type
    return list(ROUTES.items()) if tuner == "mma" else [("", 0)]


def check_replaceable(directory: Path) -> None:
    """Refuse to replace a folder that is not empty and no export, or holds other files as well.

    Raises:
        RunError: it is; the text names some of what it holds.
    """
    check_folder(directory, mark=PARITY)
    if not (directory / PARITY).is_file():
        return
    present = files_of(directory)
    written = set(read_parity(directory).get("files", present))  # of older exports nobody knows
    if strange := [name for name in present if name not in written]:
        raise RunError(
            f"{directory} would be replaced, and it holds what no export wrote: {listed(strange)}; "
            "move that, or choose another --out"
        )


def files_of(directory: Path) -> list[str]:
    """List the files of a folder and its subfolders, by their paths from there."""
    files = (path for path in directory.rglob("*") if path.is_symlink() or not path.is_dir())
    return sorted(path.relative_to(directory).as_posix() for path in files)


def read_parity(directory: Path) -> dict[str, Any]:
    """Read an artifact's parity back.

    Raises:
        RunError: the folder is no export.
    """
    file = directory / PARITY
    if not file.is_file():
        raise RunError(f"{directory} is no export of Varifocal: it has no parity.json")
    return json.loads(file.read_text())
