"""The door to every data format: name it or have it detected, get examples."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from varifocal.data.example import Example
from varifocal.data.reading import (
    TABLE_ENDINGS,
    Examples,
    OnBadRecord,
    gather,
)
from varifocal.data.scienceqa import load_scienceqa
from varifocal.data.table import load_table
from varifocal.errors import DataError, nearest

if TYPE_CHECKING:
    from varifocal.recipe import SourceSection

__all__ = ["FORMATS", "Format", "check_images", "load_scienceqa", "load_source", "load_table"]


@dataclass(frozen=True)
class Format:
    """One row of the register of formats.

    Attributes:
        detect: whether a file or folder looks like this format.
        load: reads it as a recipe's source says.
    """

    detect: Callable[[Path], bool]
    load: Callable[[Path, SourceSection, OnBadRecord], Examples]


def _load_scienceqa(path: Path, source: SourceSection, on_bad_record: OnBadRecord) -> Examples:
    return load_scienceqa(
        path,
        source.split,
        prompt_format=source.prompt_format,
        answer_as=source.answer_as,
        skills=source.skills,
        max_examples=source.max_examples,
        on_bad_record=on_bad_record,
    )


def _load_table(path: Path, source: SourceSection, on_bad_record: OnBadRecord) -> Examples:
    return load_table(
        path,
        source.columns,
        split=source.split,
        skills=source.skills,
        answer_as=source.answer_as,
        max_examples=source.max_examples,
        on_bad_record=on_bad_record,
    )


FORMATS: dict[str, Format] = {
    "scienceqa": Format(lambda path: (path / "problems.json").is_file(), _load_scienceqa),
    "table": Format(lambda path: path.suffix.lower() in TABLE_ENDINGS, _load_table),
}


def load_source(
    source: SourceSection,
    *,
    root: str | Path | None = None,
    on_bad_record: OnBadRecord = "fail",
) -> Examples:
    """Load what one `data.train` or `data.evaluate` entry of a recipe names.

    Args:
        source: path, format and how to ask; `repeat` is the caller's business.
        root: folder at which a relative path starts; by default the working directory.
        on_bad_record: "fail" or "skip".

    Returns:
        The examples and the reasons of the skipped records.

    Raises:
        DataError: there is nothing at the path, its format is not known, or the loader refuses it.
    """
    path = Path(root or ".") / Path(source.place).expanduser()
    if not path.exists():
        raise DataError(f"no file or folder '{path}'{_neighbour(path)}")
    name = _detect(path) if source.format == "auto" else source.format
    return FORMATS[name].load(path, source, on_bad_record)


def _neighbour(path: Path) -> str:
    return nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""


def _detect(path: Path) -> str:
    for name, data_format in FORMATS.items():
        if data_format.detect(path):
            return name
    raise DataError(
        f"'{path}' is of no known format: a folder with problems.json (scienceqa) or a file "
        f"ending with {', '.join(TABLE_ENDINGS)} (table)"
    )


def check_images(examples: Examples, on_bad_record: OnBadRecord = "fail") -> Examples:
    """Decode every picture once, so that damaged ones are found before the training starts.

    Returns:
        The examples whose pictures can be decoded; `skipped` grows by the others.

    Raises:
        DataError: with "fail", at the first damaged picture; the text names record and file.
    """

    def check(example: Example) -> Example:
        for image in example.images:
            try:
                image.open()
            except DataError as error:
                raise DataError(f"{example.name}: {error}") from error
        return example

    checked = gather(examples, check, on_bad_record)
    return Examples(checked, [*examples.skipped, *checked.skipped])
