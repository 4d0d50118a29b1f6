"""The Cauldron's rows: images, and turns that hold a question and its answer."""

from __future__ import annotations

from typing import Any

from varifocal.data.example import Example
from varifocal.data.formats.base import ParseOptions, short, text_of
from varifocal.data.formats.conversations import conversation
from varifocal.data.formats.pairs import with_images_first
from varifocal.data.readers.base import Record
from varifocal.errors import DataError


def is_cauldron(record: Record) -> bool:
    """Tell whether a row has `texts` of `user` and `assistant`."""
    texts = record.row.get("texts")
    first: Any = texts[0] if isinstance(texts, list) and texts else None
    return isinstance(first, dict) and {"user", "assistant"} <= first.keys()


def parse_cauldron(record: Record, asked: ParseOptions) -> Example:
    """Make an example of {"images": [...], "texts": [{"user": ..., "assistant": ...}, ...]}.

    The images come first unless `<image>` gives them a place.

    Raises:
        DataError: the turns cannot be read.
    """
    turns, where = record.row.get("texts"), record.where
    if not isinstance(turns, list) or not turns:
        raise DataError(f"{where}: 'texts' must be a list of turns, not {short(turns)}")
    spoken: list[tuple[str, object]] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise DataError(f"{where}: a turn of 'texts' is {short(turn)}, no object")
        spoken.append(("user", text_of(turn, "user", where)))
        spoken.append(("assistant", text_of(turn, "assistant", where)))
    return conversation(with_images_first(spoken, record), record, asked)
