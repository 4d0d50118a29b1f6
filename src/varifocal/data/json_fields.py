"""The lists of a JSON file that holds an object, one of which holds its rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from varifocal.data.byte_index import Index, kept
from varifocal.data.caption_records import values_of
from varifocal.data.json_index import index_container
from varifocal.errors import DataError, nearest


def index_field(path: Path, field: str) -> tuple[Index, tuple[str, ...]]:
    """Find the elements of the list under a key of an object.

    Returns:
        [N, 3] as `json_index.index_container`, and a note on what the object holds in addition.

    Raises:
        DataError: the file is no JSON object, or has no list under that key.
    """
    lists, others = _keys(path)
    if field not in lists:
        known = ", ".join(lists) or "none"
        raise DataError(
            f"'{path}' has no list under field '{field}'; its lists are {known}"
            f"{nearest(field, lists)}"
        )
    index = kept(path, f"field {field}", partial(_index, field=field))
    more = [key for key in (*lists, *others) if key != field]
    return index, (f"in addition to {field} the file holds {', '.join(more)}",) if more else ()


def _index(path: Path, field: str) -> Index:
    return index_container(path, values_of(path)[field], whole=False)


def _keys(path: Path) -> tuple[list[str], list[str]]:
    """Return the keys of an object whose values are lists, lists of objects first, and the rest."""
    found: dict[bytes, list[str]] = {b"[{": [], b"[": [], b"": []}
    with path.open("rb") as stream:
        for key, begin in values_of(path).items():
            stream.seek(begin)
            head = b"".join(stream.read(1 << 12).split())
            next(names for start, names in found.items() if head.startswith(start)).append(key)
    return [*found[b"[{"], *found[b"["]], found[b""]


def refuse_object(path: Path) -> DataError:
    """Return the error for an object where a list of rows is needed; it says which lists it has."""
    try:
        lists, _ = _keys(path)
    except DataError:
        lists = []
    told = f"'{path}' holds an object, a list of objects is needed"
    if not lists:
        return DataError(told)
    if {"questions", "annotations"} & set(lists):
        return DataError(
            f"{told}; VQA has its questions and its answers in two files: join them by question_id "
            "into rows of image, question and answer"
        )
    fields = " or ".join(f"field: {name}" for name in lists[:4])
    return DataError(f"{told}; if one of its lists holds the rows, name it: {fields}")
