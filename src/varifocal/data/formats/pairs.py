"""Rows of a prompt and what is to follow it, under the names that public sets give the two."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from varifocal.data.example import Example
from varifocal.data.formats.base import ParseOptions, short, text_of
from varifocal.data.formats.conversations import conversation, parse_conversation
from varifocal.data.formats.questions import PLACEHOLDER
from varifocal.data.readers.base import Record
from varifocal.data.readers.images import image_cells
from varifocal.errors import DataError


@dataclass(frozen=True)
class _Pair:
    """What a public layout calls the parts of a row.

    Attributes:
        prompt, answer: columns that a row must have.
        more: column whose text follows the prompt on the next line.
        system: column of a system message.
    """

    prompt: str
    answer: str
    more: str = ""
    system: str = "system"


_PROMPT_COMPLETION = (
    _Pair("prompt", "completion"),  # TRL
    _Pair("instruction", "response", more="context"),  # Dolly
    _Pair("question", "response", system="system_prompt"),  # OpenOrca
    _Pair("inputs_pretokenized", "targets_pretokenized"),  # P3
    _Pair("inputs", "targets"),  # the Flan collection
    _Pair("prompt", "response"),
)
_QUERY_RESPONSE = (_Pair("query", "response"),)  # ms-swift


def is_prompt_completion(record: Record) -> bool:
    """Tell whether a row has a prompt and a completion, under TRL's names or a public set's."""
    return _pair_of(record, _PROMPT_COMPLETION) is not None


def is_query_response(record: Record) -> bool:
    """Tell whether a row has ms-swift's query and response."""
    return _pair_of(record, _QUERY_RESPONSE) is not None


def parse_prompt_completion(record: Record, asked: ParseOptions) -> Example:
    """Make an example of TRL's {"prompt", "completion"}, texts or lists of turns.

    Dolly's {"instruction", "context", "response"}, OpenOrca's {"system_prompt", "question",
    "response"}, the Flan collection's {"inputs", "targets"} and P3's two `..._pretokenized` are the
    same in other words. The row's images come first unless `<image>` gives them a place.

    Raises:
        DataError: one of the two is missing or empty, or one is a text and the other a list.
    """
    pair = _needed(record, _PROMPT_COMPLETION)
    prompt, answer = record.row[pair.prompt], record.row[pair.answer]
    if not isinstance(prompt, list):
        return _of_texts(record, pair, asked)
    if not isinstance(answer, list):
        raise DataError(
            f"{record.where}: '{pair.prompt}' is a list of turns, so '{pair.answer}' must be one, "
            f"not {short(answer)}"
        )
    # As in TRL, of a conversation so far nothing is learnt.
    turns = [*map(_unlearnt, prompt), *answer]
    row = ChainMap({"messages": turns, "conversations": None}, record.row)  # type: ignore[arg-type]
    return parse_conversation(replace(record, row=row), asked)


def _unlearnt(turn: Any) -> Any:
    is_answer = isinstance(turn, dict) and turn.get("role") == "assistant"
    return {"weight": 0, **turn} if is_answer else turn


def parse_query_response(record: Record, asked: ParseOptions) -> Example:
    """Make an example of ms-swift's {"query", "response"}, with optional "history" and "system".

    Raises:
        DataError: a text is missing or no text, or the history is no list of pairs.
    """
    return _of_texts(record, _needed(record, _QUERY_RESPONSE), asked)


def _pair_of(record: Record, pairs: tuple[_Pair, ...]) -> _Pair | None:
    row = record.row
    fits = (p for p in pairs if row.get(p.prompt) is not None and row.get(p.answer) is not None)
    return next((p for p in fits if isinstance(row[p.prompt], (str, list))), None)


def _needed(record: Record, pairs: tuple[_Pair, ...]) -> _Pair:
    pair = _pair_of(record, pairs)
    if pair is None:
        known = ", ".join(f"{pair.prompt} and {pair.answer}" for pair in pairs)
        raise DataError(f"{record.where}: {known} are looked for; it has {', '.join(record.row)}")
    return pair


def _of_texts(record: Record, pair: _Pair, asked: ParseOptions) -> Example:
    row, where = record.row, record.where
    question = text_of(row, pair.prompt, where)
    if not question:
        raise DataError(f"{where}: '{pair.prompt}' is empty")
    if pair.more and (more := text_of(row, pair.more, where)):
        question = f"{question}\n{more}"
    turns: list[tuple[str, object]] = []
    if system := text_of(row, pair.system, where):
        turns.append(("system", system))
    for before, then in history_of(record):
        turns += [("user", before), ("assistant", then)]
    turns += [("user", question), ("assistant", text_of(row, pair.answer, where))]
    return conversation(with_images_first(turns, record), record, asked)


def with_images_first(turns: list[tuple[str, object]], record: Record) -> list[tuple[str, object]]:
    """Put the places of a row's images in front of the first question, if no text has any."""
    count = len(image_cells(record.row, record.where))
    if not count or any(PLACEHOLDER in str(text) for _, text in turns):
        return turns
    first = next(number for number, (speaker, _) in enumerate(turns) if speaker == "user")
    return [
        (speaker, PLACEHOLDER * count + str(text) if number == first else text)
        for number, (speaker, text) in enumerate(turns)
    ]


def history_of(record: Record) -> Iterator[tuple[str, str]]:
    """Yield the earlier questions and answers of a row's "history".

    Raises:
        DataError: it is no list of pairs of texts.
    """
    pairs: Any = record.row.get("history") or []
    if not isinstance(pairs, list):
        raise DataError(f"{record.where}: 'history' must be a list of pairs, not {short(pairs)}")
    for pair in pairs:
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise DataError(f"{record.where}: 'history' holds {short(pair)}, no pair of texts")
        yield pair[0], pair[1]
