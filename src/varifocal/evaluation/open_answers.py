"""Questions of a recipe's own that are answered in words: how each metric asks, reads and counts.

The first line of what the model wrote is compared, unless a right answer has several lines. A
question that has choices is read as one: its letter counts as well as its text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from varifocal.data.example import Example
from varifocal.data.metric import gold_answers
from varifocal.evaluation.benchmark import (
    Answer,
    Answered,
    Benchmark,
    Item,
    Measure,
    name_of_choice,
)
from varifocal.evaluation.metrics.text_match import anls, normalise_short, says
from varifocal.evaluation.metrics.vqa import soft_accuracy
from varifocal.evaluation.statistics import bootstrap_mean, wilson

OpenMetric = Literal["exact", "vqa", "anls", "contains"]

_NAMES: dict[OpenMetric, str] = {
    "exact": "exact match",
    "vqa": "VQA accuracy",
    "anls": "ANLS (x100)",
    "contains": "answer contained",
}
_PROTOCOLS: dict[OpenMetric, str] = {
    "exact": "equal to a right answer but for case, blanks and the final full stop",
    "vqa": "VQA soft accuracy against the annotators' answers, as VQA v2's script (Antol et al. "
    "2015); few annotators cannot give 100",
    "anls": "1 - the normalised edit distance to the nearest right answer, 0 from 0.5 on (Biten et "
    "al. 2019)",
    "contains": "the words of a right answer stand in it, one after the other",
}


def items_of(examples: Sequence[Example]) -> list[Item]:
    """Make items of examples that have a gold answer; an id that comes again gets a number."""
    counts: Counter[str] = Counter()
    items = []
    for example in examples:
        counts[example.id] += 1
        again = f" ({counts[example.id]})" if counts[example.id] > 1 else ""
        items.append(
            Item(f"{example.id}{again}", example, gold_answers(example), tags=example.tags)
        )
    return items


def benchmark_of(metric: OpenMetric, name: str, place: str, max_new_tokens: int) -> Benchmark:
    """Return how a source of questions is asked and scored, as a row of the table of benchmarks.

    Args:
        metric: the main one; the others are measured as well, as far as they are defined.
        name: of the score's files.
        place: the source's.
        max_new_tokens: of a written answer.
    """
    return Benchmark(
        name=name,
        load=_not_loaded,
        measure=lambda answered: measure(metric, answered),
        files="",
        protocol=f"the question as it is trained; greedy answer of up to {max_new_tokens} tokens, "
        f"its first line; {_PROTOCOLS[metric]}",
        source=place,
        main=_NAMES[metric],
        method="generate",
        parse=read_open_answer,
        credit=lambda item, answer: credit(metric, item, answer),
        max_new_tokens=max_new_tokens,
    )


def _not_loaded(folder: Path, split: str | None) -> Iterator[Item]:
    raise NotImplementedError("a recipe's source is read by its own section")


def read_open_answer(text: str, item: Item) -> str | None:
    """Return the answer in a written text, or None where there is none."""
    if item.example.choices:
        return name_of_choice(text, item)
    whole = text.strip()
    if any("\n" in reference for reference in item.references):
        return whole or None
    return whole.split("\n", maxsplit=1)[0].strip() or None


def credit(metric: OpenMetric, item: Item, answer: Answer) -> float:
    """Return what an answer earns, 0 to 1; one that could not be read earns nothing."""
    if answer.parsed is None:
        return 0.0
    if item.example.choices:
        return float(answer.parsed in item.references)
    return _CREDITS[metric](answer.parsed, item.references)


def _exact(answer: str, references: Sequence[str]) -> float:
    return float(normalise_short(answer) in map(normalise_short, references))


def _contains(answer: str, references: Sequence[str]) -> float:
    return float(any(says(answer, reference) for reference in references))


_CREDITS: dict[OpenMetric, Callable[[str, Sequence[str]], float]] = {
    "exact": _exact,
    "vqa": lambda answer, references: soft_accuracy(answer, references, "vqa2"),
    "anls": anls,
    "contains": _contains,
}


def measure(main: OpenMetric, answered: Sequence[Answered]) -> list[Measure]:
    """Measure answers by every metric that is defined for all of them, the main one first."""
    several = all(item.example.choices or len(item.references) > 1 for item, _ in answered)
    others: tuple[OpenMetric, ...] = ("exact", "contains", "anls", "vqa")
    chosen: list[OpenMetric] = [o for o in others if o != main and (several or o != "vqa")]
    return [_measure(main, answered), *(_measure(name, answered) for name in chosen)]


def _measure(metric: OpenMetric, answered: Sequence[Answered]) -> Measure:
    earned = [credit(metric, item, answer) for item, answer in answered]
    count, unparsed = len(earned), sum(answer.parsed is None for _, answer in answered)
    if set(earned) <= {0.0, 1.0}:
        low, high = wilson(int(sum(earned)), count)
        value = sum(earned) / count
    else:
        interval = bootstrap_mean(earned)
        value, low, high = interval.value, interval.low, interval.high
    return Measure(_NAMES[metric], 100 * value, 100 * low, 100 * high, count, unparsed)
