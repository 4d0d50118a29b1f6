"""What a row of the table of benchmarks says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from varifocal.evaluation.answering import parse_answer
from varifocal.evaluation.items import Answer, Item
from varifocal.evaluation.scoring import Normalisation
from varifocal.evaluation.statistics import wilson

Method = Literal["likelihood", "generate"]
Answered = tuple[Item, Answer]


@dataclass(frozen=True)
class Measure:
    """One number of a benchmark.

    Attributes:
        name: its column in reports.
        value: percent, unless the name says another unit.
        low, high: 95 % interval in the value's unit; None where there is none.
        count: items that it is over.
        unparsed: of them, answers that name nothing; they earn nothing.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    count: int
    unparsed: int = 0


def name_of_choice(text: str, item: Item) -> str | None:
    """Return the text of the choice that a written answer names; see `parse_answer`."""
    choices = item.example.choices
    index = parse_answer(text, choices)
    return None if index is None else choices[index]


def exact(item: Item, answer: Answer) -> float:
    """Give 1 for the right choice, or for a parsed answer that is one of the references; else 0."""
    if answer.choice is not None:
        return float(answer.choice == item.example.answer_index)
    return float(answer.parsed in item.references)


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    Attributes:
        name: in `--suite`, of its data folder, and of the files of its scores.
        load: (folder, split or None for the one that is reported) -> items, from the official
            files or from a Hugging Face or parquet directory. DataError names what is missing.
        measure: items with their answers -> its numbers, the main one among them.
        files: what the folder has to hold, in words.
        protocol: how it is asked and scored, in a sentence.
        source: paper or address, and licence.
        main: name of the headline measure.
        method: "likelihood" takes the likeliest of the example's choices, "generate" lets the
            model write greedily.
        parse: (written text, item) -> the answer it names, or None.
        credit: what an answer earns, 0 to 1, as `correct` of the predictions; None: no such thing.
        max_new_tokens: of a written answer.
        normalisation: of the likelihood, "sum" or "mean" over a choice's tokens.
    """

    name: str
    load: Callable[[Path, str | None], Iterator[Item]]
    measure: Callable[[Sequence[Answered]], list[Measure]]
    files: str
    protocol: str
    source: str
    main: str
    method: Method = "likelihood"
    parse: Callable[[str, Item], str | None] = name_of_choice
    credit: Callable[[Item, Answer], float | None] = exact
    max_new_tokens: int = 16
    normalisation: Normalisation = "sum"


def accuracy(answered: Sequence[Answered], name: str = "accuracy") -> Measure:
    """Count the answers that `exact` finds right: percent, with Wilson's interval.

    Raises:
        ValueError: there is nothing to count.
    """
    right = sum(int(exact(item, answer)) for item, answer in answered)
    low, high = wilson(right, len(answered))
    unparsed = sum(answer.parsed is None for _, answer in answered)
    value = 100 * right / len(answered)
    return Measure(name, value, 100 * low, 100 * high, len(answered), unparsed)
