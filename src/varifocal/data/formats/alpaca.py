"""Alpaca's rows: an instruction, an input it may need, and the output."""

from __future__ import annotations

from varifocal.data.example import Example
from varifocal.data.formats.base import ParseOptions, short
from varifocal.data.formats.conversations import conversation
from varifocal.data.formats.pairs import history_of
from varifocal.data.readers.base import Record
from varifocal.errors import DataError


def is_alpaca(record: Record) -> bool:
    """Tell whether a row has an instruction and an output."""
    return "instruction" in record.row and "output" in record.row


def parse_alpaca(record: Record, asked: ParseOptions) -> Example:
    r"""Make an example of {"instruction", "input", "output"}, with optional "history", "system".

    The user's turn is the instruction, and on the next line the input if there is one; "history"
    is a list of earlier [instruction, output] pairs; "image" or "images" belong to `<image>`.

    Raises:
        DataError: a text is missing or no text.
    """
    row, where = record.row, record.where
    texts = {key: row.get(key) for key in ("instruction", "input", "output", "system")}
    for key, value in texts.items():
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: '{key}' must be a text, not {short(value)}")
    question = "\n".join(text for key in ("instruction", "input") if (text := texts[key]))
    if not question.strip():
        raise DataError(f"{where}: 'instruction' is missing or empty")
    turns: list[tuple[str, object]] = []
    if texts["system"]:
        turns.append(("system", texts["system"]))
    for asked_before, answer in history_of(record):
        turns += [("user", asked_before), ("assistant", answer)]
    turns += [("user", question), ("assistant", texts["output"] or "")]
    return conversation(turns, record, asked)
