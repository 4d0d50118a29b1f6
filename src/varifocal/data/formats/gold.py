"""Which choice a gold answer names: by its index, its text, its letter or its label."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from varifocal.data.formats.base import short
from varifocal.data.formats.questions import LETTERS, AnswerIs, Integers
from varifocal.errors import DataError


def gold_index(
    answer: Any,
    choices: Sequence[Any],
    where: str,
    *,
    answer_is: AnswerIs = "auto",
    integers: Integers | None = None,
    labels: Sequence[str] = (),
) -> int:
    """Return which choice a gold answer names; every reader of gold answers goes through here.

    With "auto", in this order: one of `labels`; for an integer, its place among choices that are
    texts, or the equal one of choices that are numbers; a text that equals a choice; a letter,
    alone or in brackets.

    Args:
        answer: as the file has it: an integer, a text ...
        choices: as the file has them, texts or numbers.
        where: file and place of the record, for the error text.
        answer_is: what the recipe says that answers are.
        integers: what `settle_integers` found of the source; None decides by this record alone.
        labels: names of the choices that the file gives itself, as ARC's "A" or "1".

    Raises:
        DataError: it names none, or it could name two and nothing says which.

    >>> gold_index(1, ["1", "2", "3"], "a.jsonl: line 1")
    1
    >>> gold_index("3", ["1", "2", "3"], "a.jsonl: line 1"), gold_index("B", ["no", "yes"], "")
    (2, 1)
    >>> gold_index(2, ["no", "yes"], "", answer_is="index_from_1")
    1
    """
    texts = [choice_text(choice) for choice in choices]
    if answer_is == "auto":
        return _by_what_it_looks_like(answer, choices, texts, where, integers, labels)
    place = _READERS[answer_is](answer, texts)
    if place is None:
        raise DataError(
            f"{where}: answer {short(answer)} is no {_NAMES[answer_is].format(count=len(texts))}, "
            f"as answer_is: {answer_is} asks, of the choices {', '.join(texts)}"
        )
    return place


def choice_text(value: Any) -> str:
    """Write an answer or a choice as text, JSON's true and false as they stand in the file."""
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _by_what_it_looks_like(
    answer: Any,
    choices: Sequence[Any],
    texts: Sequence[str],
    where: str,
    integers: Integers | None,
    labels: Sequence[str],
) -> int:
    if labels.count(choice_text(answer)) == 1:
        return labels.index(choice_text(answer))
    place = _value(answer, texts)
    if _is_integer(answer):
        place = _integer(_Readings.of(answer, choices), integers)
    elif place is None:
        place = _letter(answer, texts, lower=False)
    if place is None:
        raise DataError(
            f"{where}: answer {short(answer)} is none of the choices {', '.join(texts)}"
            f"{_fix(answer, texts, integers)}"
        )
    return place


def _integer(readings: _Readings, integers: Integers | None) -> int | None:
    if integers is None and readings.usual == "value" and readings.value is None:
        return readings.index
    return readings.index if (integers or readings.usual) == "index" else readings.value


def _fix(answer: Any, texts: Sequence[str], integers: Integers | None) -> str:
    """Say which `answer_is` would read an answer that cannot be read."""
    if _whole(answer) is None:
        return ""
    if not _is_integer(answer):
        return "; if it is a place among them, say answer_is: index"
    if integers == "value":
        return ", as the other integer answers are; answer_is: index takes it as a place"
    fix = f"; as an index it must be 0 to {len(texts) - 1}"
    if answer == len(texts):
        fix += ", and answer_is: index_from_1 counts from 1"
    if _value(answer, texts) is not None:
        fix += ", and answer_is: value takes the choice that equals it"
    return fix


def _is_integer(answer: Any) -> bool:
    return isinstance(answer, int) and not isinstance(answer, bool)


def _whole(answer: Any) -> int | None:
    """Return an integer, also of 1.0 and "1", which tables write where a column has gaps."""
    if isinstance(answer, bool):
        return None
    if isinstance(answer, float):
        return int(answer) if answer.is_integer() else None
    try:
        return int(str(answer).strip())
    except ValueError:
        return None


def _index(answer: Any, texts: Sequence[str], first: int = 0) -> int | None:
    whole = _whole(answer)
    return whole - first if whole is not None and 0 <= whole - first < len(texts) else None


def _value(answer: Any, texts: Sequence[str]) -> int | None:
    text = choice_text(answer)
    return texts.index(text) if texts.count(text) == 1 else None


def _letter(answer: Any, texts: Sequence[str], lower: bool = True) -> int | None:
    letter = choice_text(answer).strip("().")
    letter = letter.upper() if lower else letter
    known = len(letter) == 1 and letter in LETTERS[: len(texts)]
    return LETTERS.index(letter) if known else None


_READERS: Mapping[str, Callable[[Any, Sequence[str]], int | None]] = {
    "index": _index,
    "index_from_1": lambda answer, texts: _index(answer, texts, first=1),
    "value": _value,
    "letter": _letter,
}
_NAMES = {
    "index": "index from 0 to below {count}",
    "index_from_1": "index from 1 to {count}",
    "value": "text that equals one",
    "letter": "letter",
}


@dataclass(frozen=True)
class _Readings:
    """What an integer answer can mean.

    Attributes:
        index: the choice at that place, or None where there is none.
        value: the choice that equals it, or None.
        usual: what it is unless the file says otherwise.
    """

    index: int | None
    value: int | None
    usual: Integers

    @classmethod
    def of(cls, answer: int, choices: Sequence[Any]) -> _Readings:
        texts = [choice_text(choice) for choice in choices]
        usual: Integers = (
            "value" if all(not isinstance(choice, str) for choice in choices) else "index"
        )
        return cls(_index(answer, texts), _value(answer, texts), usual)


def settle_integers(gold: Iterable[tuple[str, Any, Sequence[Any]]]) -> Integers | None:
    """Find out what the integer answers of a source are.

    An integer is an index among choices that are texts, and a value among numbers, as long as no
    record of the source contradicts it. A record that can only be read the other way is no
    contradiction if all of them read the same that way.

    Args:
        gold: of each record (where, answer, choices), the choices as the file has them.

    Returns:
        None where no answer is an integer.

    Raises:
        DataError: two records contradict each other, or the source seems to count from 1; the text
            names a record and says what settles it. It is no record's fault, so none is skipped.
    """
    first: dict[str, str] = {}
    least = None
    usual: Integers | None = None
    for where, answer, choices in gold:
        if not _is_integer(answer):
            continue
        readings = _Readings.of(answer, choices)
        usual = usual or readings.usual
        least = answer if least is None else min(least, answer)
        sentence = f"{where} has answer {answer} next to the choices {short(list(choices))}"
        first.setdefault(_kind_of(readings, answer, len(choices)), sentence)
    if usual is None:
        return None
    if "past the last" in first and least == 1:
        raise DataError(
            f"{first['past the last']}: no answer of the file is 0, so it seems to count from 1; "
            "say answer_is: index_from_1, or answer_is: index if it does not"
        )
    return _without_contradiction(first, usual)


def _kind_of(readings: _Readings, answer: int, count: int) -> str:
    if readings.index is None and readings.value is None:
        return "past the last" if answer == count else "neither"
    if readings.index is None:
        return "value"
    if readings.value is None:
        return "index"
    return "same" if readings.index == readings.value else "either"


def _without_contradiction(first: dict[str, str], usual: Integers) -> Integers:
    other: Integers = "value" if usual == "index" else "index"
    if other not in first:
        return usual
    against = first.get(usual) or first.get("either")
    if against is None:
        return other
    raise DataError(
        f"{first[other]}, which can only be {_MEANING[other]}, but {against}, which can be "
        f"{_MEANING[usual]}; say which the answers of this source are: answer_is: index, "
        "index_from_1 or value"
    )


_MEANING = {"index": "a place among them", "value": "one of them"}
