"""The register of formats, and which of them a source is in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from varifocal.data.formats.alpaca import is_alpaca, parse_alpaca
from varifocal.data.formats.base import Format
from varifocal.data.formats.captions import is_caption, parse_caption
from varifocal.data.formats.cauldron import is_cauldron, parse_cauldron
from varifocal.data.formats.conversations import (
    is_llava,
    is_openai,
    is_sharegpt,
    is_vision_flan,
    parse_conversation,
    parse_vision_flan,
)
from varifocal.data.formats.pairs import (
    is_prompt_completion,
    is_query_response,
    parse_prompt_completion,
    parse_query_response,
)
from varifocal.data.formats.scienceqa import is_scienceqa, parse_scienceqa, wants_scienceqa
from varifocal.data.formats.table import is_table_row, parse_table_row
from varifocal.data.readers.base import Record
from varifocal.errors import DataError
from varifocal.recipe.prompt_formats import CAPTION

if TYPE_CHECKING:
    from varifocal.recipe import SourceSection

_NAMES = {
    "question": ("question", "query", "prompt", "instruction", "input", "sentence", "text", "stem"),
    "answer": ("correct", "label", "answer", "target", "output", "response", "gold", "completion"),
    "choices": ("choices", "options", "endings"),
    "context": ("context", "passage"),
}
_NUMBERED = re.compile(r"((?:answer|option|choice|ending|sol)_?)(\d)", re.IGNORECASE)


def suggest_columns(row: Mapping[str, Any]) -> str:
    """Write a mapping for a row, "..." where no column looks like what is needed.

    >>> suggest_columns({"question": "?", "choices": ["a", "b"], "correct_choice_idx": 1})
    'question: question, answer: correct_choice_idx, choices: choices'
    >>> suggest_columns({"question": "?", "answer": "a", "image_id": 42})
    "question: question, answer: answer, image: '{image_id:012d}.jpg'"
    >>> suggest_columns({"text": "?", "option1": "a", "option2": "b", "label": 1})
    "question: text, answer: label, choices: '{option1}|{option2}'"
    """
    names = [name for name in map(str, row) if row[name] not in (None, "")]
    numbered = [name for name in names if _NUMBERED.fullmatch(name)]
    single = [name for name in names if name not in numbered]
    columns = {ours: _first(single, words, row) for ours, words in _NAMES.items()}
    if len(numbered) > 1:
        columns["choices"] = "'" + "|".join(f"{{{name}}}" for name in numbered) + "'"
    if "image_id" in row and not {"image", "images"} & row.keys():
        columns["image"] = "'{image_id:012d}.jpg'"
    needed = {"question": "...", "answer": "..."}
    return ", ".join(
        f"{ours}: {name or needed[ours]}"
        for ours, name in columns.items()
        if name or ours in needed
    )


def _first(names: list[str], words: tuple[str, ...], row: Mapping[str, Any]) -> str:
    """Return the first name that is, or else holds, one of some words."""
    lists = words is _NAMES["choices"]
    fitting = [name for name in names if isinstance(row[name], (list, dict)) == lists]
    exact = [name for word in words for name in fitting if name.lower() == word]
    part = [name for word in words for name in fitting if word in name.lower()]
    return next(iter([*exact, *part]), "")


FORMATS: dict[str, Format] = {
    "vision_flan": Format("conversations, task_name", is_vision_flan, parse_vision_flan),
    "llava": Format("conversations with <image>, image", is_llava, parse_conversation),
    "sharegpt": Format("conversations of from and value", is_sharegpt, parse_conversation),
    "mlan": Format("as llava; has to be named", lambda record: False, parse_conversation),
    "openai": Format("messages of role and content", is_openai, parse_conversation),
    "alpaca": Format("instruction, input, output", is_alpaca, parse_alpaca),
    "scienceqa": Format(
        "question, choices, answer, lecture", is_scienceqa, parse_scienceqa, wants_scienceqa
    ),
    "prompt_completion": Format(
        "prompt and completion, or the like", is_prompt_completion, parse_prompt_completion
    ),
    "query_response": Format("query, response, history", is_query_response, parse_query_response),
    "cauldron": Format("images, and texts of user and assistant", is_cauldron, parse_cauldron),
    "table": Format("question, answer, or mapped columns", is_table_row, parse_table_row),
    "captions": Format("file_name or image, and caption or text", is_caption, parse_caption),
}
"""Every format by its name; the first that a record fits is taken."""

READ_BY = {
    **dict.fromkeys(("prompt_format", "prompt_text", "use_captions"), ("scienceqa",)),
    **dict.fromkeys(("answer_as", "instructions"), ("scienceqa", "table")),
    **dict.fromkeys(("answer_is", "columns"), ("table",)),
}
"""Keys of a source that some formats alone read. `columns` may name `split` and `skill` in all."""


def check_keys(section: SourceSection, format_name: str, place: str) -> None:
    """Refuse keys that a source's format would pass over.

    Args:
        section: of the recipe.
        format_name: a name of `FORMATS`.
        place: for the error text.

    Raises:
        DataError: with the formats that read the key.
    """
    fields = type(section).model_fields
    for key, formats in READ_BY.items():
        value = getattr(section, key)
        if value == CAPTION:  # what `data.captions` asks of every format; most are captions anyway
            continue
        if key == "columns":
            value = {name for name in value or () if name not in ("split", "skill")} or None
        if format_name not in formats and value != fields[key].default:
            raise DataError(
                f"'{place}' is read as {format_name}, and {key} belongs to the format "
                f"{' or '.join(formats)}; leave it out"
            )


_LOOKED_AT = 8


def detect(rows: Iterable[Record | DataError], place: str) -> str:
    """Return the format that the first rows are in.

    Args:
        rows: those of a source, in order.
        place: for the error text.

    Raises:
        DataError: they fit none, or none of them can be read.
    """
    first: list[Record | DataError] = list(islice(rows, _LOOKED_AT))
    records = [row for row in first if isinstance(row, Record)]
    for error in first if not records else ():
        raise error if isinstance(error, DataError) else AssertionError
    for name, parser in FORMATS.items():
        if any(parser.detect(record) for record in records):
            return name
    columns = ", ".join(map(str, records[0].row)) if records else "no row"
    known = "; ".join(f"{name} ({parser.about})" for name, parser in FORMATS.items())
    raise DataError(
        f"'{place}' is of no known format: its first record has {columns}; "
        f"{_fix(records[0].row if records else {})}; or name its format, one of {known}"
    )


def _path_to_rows(row: Mapping[str, Any], name: str) -> list[str]:
    """Follow the first list of objects inwards to where a question stands."""
    inner = row[name][0]
    deeper = (key for key, cell in inner.items() if isinstance(cell, list) and cell)
    deeper = (key for key in deeper if isinstance(cell := inner[key][0], dict) and cell)
    if "question" in inner or (key := next(deeper, None)) is None:
        return [name]
    return [name, *_path_to_rows(inner, key)]


def _fix(row: Mapping[str, Any]) -> str:
    """Say what to add to the recipe, or to do with the file."""
    nested = [
        str(name)
        for name, cell in row.items()
        if isinstance(cell, list) and cell and isinstance(cell[0], dict)
    ]
    if nested and not any(isinstance(cell, str) and len(cell.split()) > 1 for cell in row.values()):
        path = ".".join(_path_to_rows(row, nested[0]))
        return f"its questions lie deeper, in {', '.join(nested)}: say record_path: {path}"
    return f"map its columns, for example columns: {{{suggest_columns(row)}}}"
