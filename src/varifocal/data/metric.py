"""Which metric a source of questions is scored by, where its recipe does not say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from varifocal.data.example import Example
from varifocal.errors import DataError

if TYPE_CHECKING:
    from varifocal.recipe.data import MetricName, SourceSection

ANNOTATORS = 3
"""Right answers of every question from which on they are taken for those of annotators."""


def gold_answers(example: Example) -> tuple[str, ...]:
    """Return what a question's answer is compared with; nothing where it has no gold answer."""
    if example.answer_index is not None:
        return (example.choices[example.answer_index],)
    if example.answers:
        return example.answers
    last = example.messages[-1]
    text = last.text.strip() if last.role == "assistant" else ""
    return (text,) if text else ()


@dataclass
class Gold:
    """What the questions of a source have to be compared with.

    Attributes:
        count: questions.
        with_choices: of them, those with choices.
        fewest: right answers of the question without choices that has the fewest.
    """

    count: int = 0
    with_choices: int = 0
    fewest: int | None = None

    def add(self, has_choices: bool, num_answers: int) -> None:
        """Take one question in."""
        self.count += 1
        if has_choices:
            self.with_choices += 1
        else:
            self.fewest = num_answers if self.fewest is None else min(self.fewest, num_answers)

    @classmethod
    def of(cls, examples: Iterable[Example]) -> Gold:
        """Count what examples have."""
        gold = cls()
        for example in examples:
            gold.add(example.answer_index is not None, len(gold_answers(example)))
        return gold


def check_scorable(section: SourceSection, gold: Gold) -> None:
    """Refuse a source of `data.evaluate` that gives nothing to score.

    Args:
        section: the source.
        gold: what those of its questions have that can be asked.

    Raises:
        DataError: there is no question with a gold answer, or its metric does not fit.
    """
    if not gold.count:
        raise DataError(
            f"data.evaluate: no record of '{section.place}' has a question and its answer, so "
            "there is nothing to score; name other records, or leave the source out"
        )
    choose_metric(section.metric, gold, section.place)


def choose_metric(asked: MetricName | None, gold: Gold, place: str) -> MetricName:
    """Return the metric of a source.

    Questions that all have choices are scored by likelihood; those of which each has the answers of
    at least `ANNOTATORS` annotators by VQA's soft accuracy; all others by exact match.

    Args:
        asked: what the recipe says.
        gold: what the questions have.
        place: of the source, for the error text.

    Raises:
        DataError: some questions have choices and others none, or the metric that is asked for
            does not fit.
    """
    open_ones = gold.count - gold.with_choices
    have = f"'{place}': {gold.with_choices:,} of {gold.count:,} questions have choices"
    if asked == "likelihood" and open_ones:
        raise DataError(
            f"{have}, and the likelihood of choices is asked for; leave metric and --score "
            "options out, and written answers are compared"
        )
    if asked == "vqa" and gold.fewest is not None and gold.fewest < 2:
        raise DataError(
            f"'{place}': metric: vqa compares with the answers of several annotators, and a "
            "question has one; take exact, anls or contains"
        )
    if asked is not None:
        return asked
    if not open_ones:
        return "likelihood"
    if gold.with_choices:
        raise DataError(
            f"{have} and {open_ones:,} have none; say how all are scored with metric: exact, anls "
            "or contains, or put them into two sources"
        )
    return "vqa" if (gold.fewest or 0) >= ANNOTATORS else "exact"
