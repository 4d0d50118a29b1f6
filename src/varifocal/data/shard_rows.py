"""What a sample of a tar shard becomes: one row, of its JSON, its texts and its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from varifocal.data.caption_records import PICTURE_ENDINGS
from varifocal.data.file_records import decode
from varifocal.data.reading import as_row, parse_json
from varifocal.errors import DataError

_JSON = (".json", ".jsn")
_TEXTS = (".txt", ".text", ".caption", ".cls", ".id", ".index")
_OTHER_MEDIA = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".wav", ".mp3", ".flac", ".ogg", ".m4a")


def row_of_sample(key: str, members: Iterable[tuple[str, Any]], where: str) -> Mapping[str, Any]:
    """Make a row of a sample's members.

    The keys of its JSON are columns; `NAME.txt` is the column `NAME`, and `txt` alone is `text`.
    Its pictures are `image`, in the order in which its JSON lists them, or else by the numbers in
    their names. Anything else is a column of bytes.

    Args:
        key: what the members' names have in common.
        members: the rest of each name ("0.png", "json"), and its content: bytes, or what the
            `datasets` library made of it. None is no member.
        where: shard and sample, for error texts.

    Raises:
        DataError: JSON that is no object, two values for one column, a video or a sound, or a
            picture that the JSON lists and the sample lacks.

    >>> row = row_of_sample("7", [("1.PNG", b"b"), ("0.png", b"a"), ("json", b'{"n": 1}')], "")
    >>> row["id"], row["n"], row["image"]
    ('7', 1, [b'a', b'b'])
    """
    row: dict[str, Any] = {}
    pictures: dict[str, Any] = {}
    for name, content in members:
        ending = "." + name.rsplit(".", 1)[-1].lower()
        if content is None:
            continue
        if ending in _OTHER_MEDIA:
            raise DataError(f"{where} holds '{name}'; only text and pictures can be read")
        if ending in PICTURE_ENDINGS:
            _put(pictures, name, content, where)
            continue
        if ending in _JSON:
            columns = as_row(_json(content, f"{where}: '{name}'"), f"{where}: '{name}'")
        elif ending in _TEXTS:
            columns = {_column(name, ending): _text(content, ending, f"{where}: '{name}'")}
        else:
            columns = {name: content}
        for column, value in columns.items():
            _put(row, column, value, where)
    row.setdefault("id", key)
    return _with_pictures(row, pictures, key, where) if pictures else row


def _put(row: dict[str, Any], column: str, value: Any, where: str) -> None:
    if column in row and row[column] != value:
        raise DataError(
            f"{where} has two values for '{column}'; a sample's name ends at its first full stop, "
            "so files of one name up to there are one sample"
        )
    row[column] = value


def _column(name: str, ending: str) -> str:
    bare = name[: -len(ending)] if "." in name else ""
    return bare or {".txt": "text"}.get(ending, ending[1:])


def _json(content: Any, where: str) -> Any:
    if not isinstance(content, bytes):
        return content
    return parse_json(decode(content, where).removeprefix("\ufeff"), where)


def _text(content: Any, ending: str, where: str) -> Any:
    """Read a text; a class is an integer, as WebDataset has it."""
    if not isinstance(content, bytes):
        return content
    text = decode(content, where).removeprefix("\ufeff").strip()
    is_number = ending in (".cls", ".index") and re.fullmatch(r"\d{1,18}", text, re.ASCII)
    return int(text) if is_number else text


def _with_pictures(
    row: dict[str, Any], pictures: Mapping[str, Any], key: str, where: str
) -> Mapping[str, Any]:
    named = row.pop("images", None)
    names = sorted(pictures, key=_by_numbers)
    if isinstance(named, list) and named:
        if len(named) != len(names):
            raise DataError(
                f"{where}: its JSON names {len(named)} images, but the sample holds {len(names)}: "
                f"{', '.join(names)}"
            )
        names = _as_listed(named, names, key)
    row.pop("image", None)
    row["image"] = pictures[names[0]] if len(names) == 1 else [pictures[name] for name in names]
    return row


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """Order "img2.png" before "img10.png"."""
    return [(int(n), "") if n.isdecimal() else (0, n) for n in re.split(r"(\d+)", name.lower())]


def _as_listed(named: Sequence[Any], names: Sequence[str], key: str) -> Sequence[str]:
    """Order the pictures as the JSON lists them, if it does so by their names."""
    base = key.rsplit("/", 1)[-1]
    ours = {f"{base}.{name}": name for name in names} | {name: name for name in names}
    listed = [ours.get(str(one).rsplit("/", 1)[-1]) for one in named]
    found = [name for name in listed if name is not None]
    return found if len(set(found)) == len(names) else names
