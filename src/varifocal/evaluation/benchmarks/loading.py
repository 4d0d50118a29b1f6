"""What the loaders of benchmarks share: official files, Hugging Face directories, and checks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from varifocal.data.example import Example, Image, Question
from varifocal.data.formats.base import short
from varifocal.data.formats.questions import user_turn
from varifocal.data.readers.base import Record, StreamedRecords
from varifocal.data.readers.images import absent, locate_image
from varifocal.data.readers.open import open_records, read_in_order
from varifocal.errors import DataError, ImageError
from varifocal.evaluation.benchmark import Item
from varifocal.recipe import FileSection, SourceSection

_TABLES = ("parquet", "arrow")
_SAVED = ("dataset_dict.json", "state.json")
_IMAGE_ENDINGS = (".jpg", ".png", ".jpeg", ".webp")


def first_file(folder: Path, *patterns: str) -> Path | None:
    """Return the first file, in the order of the patterns, or None."""
    for pattern in patterns:
        files = sorted(path for path in folder.glob(pattern) if path.is_file())
        if files:
            return files[0]
    return None


def nothing_found(folder: Path, needed: str) -> DataError:
    """Make the error of a folder that holds none of a benchmark's layouts."""
    what = "holds neither" if folder.is_dir() else "is no folder; it has to hold"
    return DataError(f"'{folder}' {what} {needed} nor a Hugging Face directory (parquet)")


def read_records(path: Path) -> Iterator[Record]:
    """Yield the rows of a file in their order.

    Raises:
        DataError: the file, or one of its rows, cannot be read.
    """
    yield from _rows(FileSection(path=str(path)))


def read_table(
    folder: Path, splits: Sequence[str], needed: str, configuration: str = "*"
) -> Iterator[Record]:
    """Yield the rows of a Hugging Face directory.

    Looked for are a saved data set, and files SPLIT.parquet or SPLIT-*.parquet (or .arrow) in the
    folder, in its `data`, or in the folder of a configuration.

    Args:
        folder: the benchmark's.
        splits: names that the wanted split goes by.
        needed: the official files, in words, for the error text.
        configuration: its folder's name; by default the first that has the split.

    Raises:
        DataError: there is none.
    """
    if any((folder / name).is_file() for name in _SAVED):
        yield from _rows(FileSection(path=str(folder), split=_saved_split(folder, splits)))
        return
    places = ("", "data/", f"{configuration}/", f"*/{configuration}/")
    for split in splits:
        for name in (f"{split}{part}.{ending}" for ending in _TABLES for part in ("", "-*")):
            file = first_file(folder, *(place + name for place in places))
            if file is not None:
                path = f"{escape(str(file.parent))}/{name}"
                yield from _rows(FileSection(path=path, streaming=True))  # no copy in a cache
                return
    raise nothing_found(folder, needed)


def _saved_split(folder: Path, splits: Sequence[str]) -> str | None:
    if not (folder / _SAVED[0]).is_file():
        return None
    return next((name for name in splits if (folder / name).is_dir()), splits[0])


def _rows(section: SourceSection) -> Iterator[Record]:
    records = open_records(section)
    ordered = iter(records) if isinstance(records, StreamedRecords) else read_in_order(records)
    for record in ordered:
        if isinstance(record, DataError):
            raise record
        yield record


def value_of(row: Mapping[str, Any], key: str, where: str) -> Any:
    """Return a row's value.

    Raises:
        DataError: it is missing.
    """
    if row.get(key) is None:
        known = ", ".join(map(str, row))
        raise DataError(f"{where}: '{key}' is missing; there are {known}")
    return row[key]


def needed_text(row: Mapping[str, Any], key: str, where: str) -> str:
    """Return a row's text, without the blanks around it.

    Raises:
        DataError: it is missing, empty or no text.
    """
    value = value_of(row, key, where)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: '{key}' must be a text, not {short(value)}")
    return value.strip()


def texts_of(row: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """Return a row's list of texts.

    Raises:
        DataError: it is missing, empty or holds something else.
    """
    value = value_of(row, key, where)
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise DataError(f"{where}: '{key}' must be a list of texts, not {short(value)}")
    return tuple(text.strip() for text in value)


def index_of(value: Any, count: int, where: str, key: str) -> int:
    """Return a number, or a text of digits, that is one of `count` places.

    Raises:
        DataError: it is something else.
    """
    text = str(value).strip()
    if isinstance(value, bool) or not text.isdecimal() or int(text) >= count:
        raise DataError(f"{where}: '{key}' must be 0 to {count - 1}, not {short(value)}")
    return int(text)


def letter_index(value: Any, count: int, where: str, key: str) -> int:
    """Return the place of a letter: "A" is 0.

    Raises:
        DataError: it is no letter of one of `count` places.
    """
    place = "ABCDEFGHIJKLMNOPQRSTUVWXYZ".find(str(value).strip().upper() or "?")
    if not 0 <= place < count or len(str(value).strip()) != 1:
        raise DataError(f"{where}: '{key}' must be one of {count} letters from A, not {value!r}")
    return place


def find_image(folders: Sequence[Path], name: str, where: str) -> Image:
    """Find an image by name, with or without its ending, in the first folder that has it.

    Raises:
        ImageError: there is none, and no `missing_images_allowed` is around the call.
    """
    for folder in folders:
        for ending in ("", *_IMAGE_ENDINGS):
            path = folder / f"{name}{ending}"
            if path.is_file():
                return Image(path)
    looked = ", ".join(f"'{folder}'" for folder in folders)
    return absent(ImageError(f"{where}: no image '{name}' in {looked}"))


def image_of(row: Mapping[str, Any], key: str, folder: Path, where: str) -> Image:
    """Return the image in a row; see `locate_image`.

    Raises:
        DataError: there is no such column.
        ImageError: the cell holds none, and no `missing_images_allowed` is around the call.
    """
    if key in row and row[key] is None:
        return absent(ImageError(f"{where}: '{key}' is empty; it should hold an image"))
    return locate_image(value_of(row, key, where), folder, where)


def make_item(
    name: str,
    where: str,
    prompt: str,
    image: Image | None = None,
    *,
    question: Question | None = None,
    choices: Sequence[str] = (),
    gold: int | None = None,
    references: Sequence[str] | None = None,
    group: str = "",
    tags: Mapping[str, str] | None = None,
) -> Item:
    """Build an item of one user turn.

    Args:
        name: its id.
        where: file and place.
        prompt: what the model reads after the image.
        image: the image.
        question: the prompt's parts.
        choices: of a multiple-choice question.
        gold: place of the right one.
        references: right answers; by default the right choice.
        group: what it is scored together with.
        tags: what measures by column go by.
    """
    example = Example(
        (user_turn(prompt, image),),
        id=name,
        source=where,
        choices=tuple(choices),
        answer_index=gold,
        tags=tags or {},
        question=question,
    )
    if references is None:
        references = () if gold is None else (choices[gold],)
    return Item(name, example, tuple(references), group, tags or {})
