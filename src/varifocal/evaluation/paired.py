"""The table of a comparison: both scores, their difference and its test, over kinds of items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from varifocal.evaluation.predictions import Line
from varifocal.evaluation.statistics import (
    Interval,
    bootstrap,
    bootstrap_mean,
    mcnemar,
    paired_bootstrap,
    wilson,
)

Kind = Literal["won", "lost", "changed"]

EVERYTHING = "all"
"""The row over all shared items."""

MOST_VALUES = 24
"""A tag with more values than these names items rather than kinds of items; it gets no rows."""

_AVERAGE = "average"  # of ScienceQA's columns, the one that all questions are in


@dataclass(frozen=True)
class PairedRow:
    """Both models on some of the shared items, in percent.

    Attributes:
        name: which items: `all`, a column, `tag: value`; or a measure of its own.
        count: how many.
        first, second: each model's score with its 95 % interval, Wilson's where an answer is right
            or wrong, else the bootstrap's.
        difference: second minus first, points, with the paired bootstrap's interval.
        won, lost: items on which the second, or the first, alone is right (earns more).
        both, neither: items on which they earn the same, something or nothing.
        p: McNemar's exact test of won against lost (a sign test where credit comes in parts).
    """

    name: str
    count: int
    first: Interval
    second: Interval
    difference: Interval
    won: int | None = None
    lost: int | None = None
    both: int | None = None
    neither: int | None = None
    p: float | None = None


@dataclass(frozen=True)
class Pair:
    """An item that both have answered, under the same prompt.

    Attributes:
        kind: what the second made of it: won, lost, or as much earned by another answer; None when
            the answers are the same.
        first, second: the two lines.
    """

    kind: Kind | None
    first: Line
    second: Line

    @property
    def sides(self) -> tuple[Line, Line]:
        """Both lines."""
        return self.first, self.second


def paired_rows(suite: str, pairs: Sequence[Pair], seed: int) -> Iterator[PairedRow]:
    """Yield the row over all, those of other measures, then columns and tags.

    Args:
        suite: its name; MME's has a measure of its own.
        pairs: what both have answered; items without credit are left out.
        seed: of the bootstrap.
    """
    pairs = [p for p in pairs if p.first.credit is not None and p.second.credit is not None]
    if not pairs:
        return
    yield _row(EVERYTHING, pairs, seed)
    if {_word(pair.first.gold) for pair in pairs} == {"yes", "no"}:
        yield _f1(pairs, seed)
    if suite.startswith("mme"):
        yield from _of_groups(pairs, seed)
    for name, members in _members(pairs):
        yield _row(name, members, seed)


def _row(name: str, pairs: Sequence[Pair], seed: int) -> PairedRow:
    return _credits_row(
        name, [_credit(p.first) for p in pairs], [_credit(p.second) for p in pairs], seed
    )


def _credit(line: Line) -> float:
    assert line.credit is not None  # `paired_rows` has left others out
    return line.credit


def _credits_row(
    name: str, before: Sequence[float], after: Sequence[float], seed: int
) -> PairedRow:
    """Compare what two models earned on the same items."""
    couples = list(zip(before, after, strict=True))
    won, lost = (sum(b > a for a, b in couples), sum(b < a for a, b in couples))
    both = sum(a == b and a > 0 for a, b in couples)
    return PairedRow(
        name,
        len(couples),
        _score(before, seed),
        _score(after, seed),
        _percent(paired_bootstrap(before, after, seed=seed)),
        won,
        lost,
        both,
        len(couples) - won - lost - both,
        mcnemar(won, lost),
    )


def _score(credits: Sequence[float], seed: int) -> Interval:
    if set(credits) <= {0.0, 1.0}:
        right = int(sum(credits))
        return _percent(Interval(right / len(credits), *wilson(right, len(credits))))
    return _percent(bootstrap_mean(credits, seed=seed))


def _percent(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)


def _f1(pairs: Sequence[Pair], seed: int) -> PairedRow:
    """Compare F1 of "yes", as POPE reports it; an answer that is neither is no "yes"."""
    gold = np.array([_word(pair.first.gold) == "yes" for pair in pairs])
    answers = [
        np.array([_word(line.answer) == "yes" for line in lines])
        for lines in ([p.first for p in pairs], [p.second for p in pairs])
    ]

    def f1(answers: Any) -> Callable[[Any], float]:
        def of(picked: Any) -> float:
            below = gold[picked].sum() + answers[picked].sum()
            return 2 * (gold & answers)[picked].sum() / below if below else float("nan")

        return of

    first, second = f1(answers[0]), f1(answers[1])
    return PairedRow(
        "F1 of yes",
        len(pairs),
        _percent(bootstrap(len(pairs), first, seed=seed)),
        _percent(bootstrap(len(pairs), second, seed=seed)),
        _percent(bootstrap(len(pairs), lambda at: second(at) - first(at), seed=seed)),
    )


def _of_groups(pairs: Sequence[Pair], seed: int) -> Iterator[PairedRow]:
    """Yield MME's accuracy+: an image counts where all its questions are answered right."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.first.group, []).append(pair)
    if "" in groups or len(groups) == len(pairs):
        return
    before, after = (
        [
            float(all(_credit(pair.sides[number]) == 1 for pair in group))
            for group in groups.values()
        ]
        for number in (0, 1)
    )
    yield _credits_row("accuracy+", before, after, seed)


def _members(pairs: Sequence[Pair]) -> Iterator[tuple[str, list[Pair]]]:
    """Yield the items of each column and of each value of a tag that sorts items into kinds."""
    columns = dict.fromkeys(name for pair in pairs for name in pair.first.columns)
    for column in columns:
        if column != _AVERAGE:
            yield column, [pair for pair in pairs if column in pair.first.columns]
    tags = dict.fromkeys(tag for pair in pairs for tag in tags_of(pair))
    for tag in tags:
        values = sorted(
            {tags_of(pair)[tag] for pair in pairs if tag in tags_of(pair)}, key=_by_number
        )
        if 1 < len(values) <= MOST_VALUES:
            for value in values:
                yield f"{tag}: {value}", [p for p in pairs if tags_of(p).get(tag) == value]


def tags_of(pair: Pair) -> Mapping[str, str]:
    """Return an item's tags, from whichever file has them."""
    return pair.first.tags or pair.second.tags


def _by_number(text: str) -> tuple[int, str]:
    """Sort "grade2" before "grade12"."""
    digits = "".join(character for character in text if character.isdigit())
    return int(digits or 0), text


def _word(text: str) -> str:
    return text.strip().rstrip(".").casefold()
