"""What lies in a folder: its images, its questions or captions, and which columns hold them."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from varifocal.data.formats.registry import detect
from varifocal.data.inspect.columns import DESCRIBE, SAMPLE, SCORED, Columns
from varifocal.data.json_files import neighbour
from varifocal.data.readers.base import Record, Records, StreamedRecords, read_in_order
from varifocal.data.readers.captions import IMAGE_ENDINGS
from varifocal.data.readers.open import ENDINGS, open_records
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection

Kind = Literal["questions", "captions", "text"]


@dataclass(frozen=True)
class FolderContents:
    """What a recipe has to know of a folder; paths in sources start at it.

    Attributes:
        folder: the folder.
        kind: questions about images, captions, or text without images.
        train: a source of a recipe, as YAML gives it.
        evaluate: the source to score on, where the folder has one.
        captions: the source of descriptions next to questions.
        num_rows: of `train`.
        num_images: below the folder, or in its rows.
        notes: what was found out, a sentence each.
        num_broken: rows of `train` that cannot be read.
    """

    folder: Path
    kind: Kind
    train: Mapping[str, Any]
    num_rows: int
    num_images: int
    evaluate: Mapping[str, Any] | None = None
    captions: Mapping[str, Any] | None = None
    notes: Sequence[str] = ()
    num_broken: int = 0


@dataclass(frozen=True)
class _Table:
    """A file of rows that can be trained on."""

    path: Path
    kind: Kind
    source: dict[str, Any]
    num_rows: int
    notes: list[str] = field(default_factory=list)
    evaluate: dict[str, Any] | None = None


def scan_folder(
    folder: Path, questions: Path | None = None, columns: Mapping[str, str] | None = None
) -> FolderContents:
    """Find images and what is asked of them; every row's image is looked for, none is opened.

    Args:
        folder: to look into, with its subfolders.
        questions: the file of questions; by default the only one in the folder.
        columns: our name of a column -> its name there, where that cannot be seen.

    Raises:
        DataError: there is no such folder, no file of questions or more than one, a column cannot
            be told, or images are named that are not there.
    """
    if not folder.is_dir():
        what = "is a file; give the folder of images" if folder.exists() else ""
        raise DataError(
            f"'{folder}' {what}" if what else f"no folder '{folder}'{neighbour(folder)}"
        )
    images, files = _listed(folder)
    if (folder / "problems.json").is_file() and questions is None:
        source = {"path": ".", "format": "scienceqa", "split": "train"}
        rows = _open(FileSection(path=str(folder), format="scienceqa", split="train"))
        return FolderContents(folder, "questions", source, len(rows), len(images))
    if questions is not None:
        if not questions.is_file():
            raise DataError(f"no file '{questions}'{neighbour(questions)}")
        files = [questions]
    homes = list(dict.fromkeys([folder, *(image.parent for image in images)]))
    tables, errors = _tables(files, homes, dict(columns or {}))
    asked = [table for table in tables if table.kind != "captions"]
    described = [table for table in tables if table.kind == "captions"]
    if not tables:
        return _without_tables(folder, images, errors)
    train, evaluate = _pair(folder, asked or described)
    scored = train.evaluate if evaluate is None else evaluate.source
    num_broken, note = _broken(train)
    return FolderContents(
        folder,
        train.kind,
        _relative(train.source, folder),
        train.num_rows,
        len(images),
        evaluate=None if scored is None else _relative(scored, folder),
        captions=_captions_of(described, images, folder) if asked else None,
        notes=[*train.notes, *([note] if num_broken else [])],
        num_broken=num_broken,
    )


def _broken(table: _Table) -> tuple[int, str]:
    """Count the rows that cannot be read, and describe the first.

    Raises:
        DataError: they are more than a tenth.
    """
    source = open_source(FileSection.model_validate(table.source))
    errors = [result for result in source if isinstance(result, DataError)]
    if len(errors) > table.num_rows // 10:
        raise errors[0]
    rows = "1 row" if len(errors) == 1 else f"{len(errors)} rows"
    return len(errors), f"{rows} cannot be read and will be skipped: {errors[0]}" if errors else ""


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """List images, and files that may hold rows, sorted; hidden folders and runs left out."""
    images: list[Path] = []
    files: list[Path] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if {".varifocal", "recipe.yaml"} & set(names):
            folders.clear()
            continue
        for name in sorted(names):
            if name.lower().endswith(IMAGE_ENDINGS):
                images.append(Path(where, name))
            elif name.lower().endswith(ENDINGS) and not name.startswith("."):
                files.append(Path(where, name))
    return images, files


def _without_tables(
    folder: Path, images: Sequence[Path], errors: list[DataError]
) -> FolderContents:
    if errors:
        raise errors[0]
    described = [image for image in images if image.with_suffix(".txt").is_file()]
    if described:
        source = {"path": ".", "format": "captions"}
        note = f"{len(described)} images have a text of the same name, their caption"
        return FolderContents(folder, "captions", source, len(images), len(images), notes=[note])
    what = f"{len(images)} images and no questions" if images else "neither images nor questions"
    raise DataError(
        f"'{folder}' holds {what}; add a CSV, JSON or parquet file with the columns image, "
        "question and answer, or name yours after the folder"
    )


def _tables(
    files: Sequence[Path], homes: Sequence[Path], columns: dict[str, str]
) -> tuple[list[_Table], list[DataError]]:
    tables: list[_Table] = []
    errors: list[DataError] = []
    for file in files:
        try:
            tables.append(_read_table(file, list(dict.fromkeys([file.parent, *homes])), columns))
        except DataError as error:
            errors.append(error)
    return tables, errors


def _pair(folder: Path, tables: Sequence[_Table]) -> tuple[_Table, _Table | None]:
    """Return the only table, or those that are named for training and for scoring."""
    if len(tables) == 1:
        return tables[0], None
    by_split: dict[str, list[_Table]] = {}
    for table in tables:
        words = re.split(r"[\W_]+", table.path.stem.lower())
        split = next((word for word in ("train", *SCORED) if word in words), "")
        by_split.setdefault(split, []).append(table)
    scored = next((by_split[split] for split in SCORED if split in by_split), [])
    if len(by_split.get("train", ())) == 1 and "" not in by_split and len(scored) == 1:
        return by_split["train"][0], scored[0]
    names = ", ".join(f"'{os.path.relpath(table.path, folder)}'" for table in tables)
    raise DataError(
        f"'{folder}' holds {len(tables)} files that could be the questions, {names}; name one "
        "after the folder"
    )


def _captions_of(
    described: Sequence[_Table], images: Sequence[Path], folder: Path
) -> Mapping[str, Any] | None:
    """Return the descriptions next to questions: a table's, or texts next to the images."""
    if len(described) == 1:
        return _relative(described[0].source, folder)
    parents = {image.parent for image in images if image.with_suffix(".txt").is_file()}
    if len(parents) == 1 and (parent := parents.pop()) != folder:
        return {"path": os.path.relpath(parent, folder), "format": "captions"}
    return None


def _relative(source: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    places = {
        key: os.path.relpath(source[key], folder)
        for key in ("path", "image_folder")
        if key in source
    }
    return {**source, **places}


def _open(section: FileSection) -> Records:
    records = open_records(section)
    assert not isinstance(records, StreamedRecords)
    return records


def _read_table(file: Path, homes: Sequence[Path], asked: dict[str, str]) -> _Table:
    """Find out what a file's rows are and which columns hold what.

    Raises:
        DataError: they are no questions and no captions, or name images that are not there.
    """
    records = _open(FileSection(path=str(file)))
    rows = [row for row in islice(read_in_order(records), SAMPLE) if isinstance(row, Record)]
    try:
        known = detect(read_in_order(records), records.place)
    except DataError:
        known = ""
    source: dict[str, Any] = {"path": str(file)}
    if known and known not in _FLAT:
        source["format"] = known
        return _Table(file, "questions", source, len(records))
    columns = Columns(file, rows, homes, asked)
    if known == "captions" and not columns.question and not asked:
        source |= columns.image_folder(file) | {"format": "captions"}
        columns.check_images(records)
        return _Table(file, "captions", source, len(records))
    mapped = columns.mapping(records)
    if not mapped and known not in ("", "table"):
        source["format"] = known
    elif mapped:
        source["columns"] = mapped
    source |= columns.image_folder(file)
    columns.check_images(records)
    kind: Kind = "questions" if columns.image else "text"
    kind = "captions" if mapped.get("question") == DESCRIBE else kind
    sides = columns.splits(records)
    if not sides:
        return _Table(file, kind, source, len(records), columns.notes())
    train, scored = ({**source, "split": side} for side in sides)
    return _Table(file, kind, train, len(records), columns.notes(), scored)


_FLAT = ("table", "captions", "prompt_completion", "query_response", "alpaca")
"""Formats whose rows may as well be those of a table with an image."""
