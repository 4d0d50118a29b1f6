"""What the files of `eval/` tell a model card: every score, and some of the answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from varifocal.trained_weights import command_for

_LINES_READ = 200  # of a predictions file; samples are taken from its beginning


@dataclass(frozen=True)
class ScoreLine:
    """One number of a score file.

    Attributes:
        suite: the file's name.
        measure: what was measured.
        value: percent, unless the name says otherwise.
        low, high: its 95 % interval, or None.
        count: items it is over.
        unparsed: of them, answers that could not be read.
        protocol: how it was measured, in words.
        main: whether it stands for the suite.
        next to: what blind rules score, and both ways of reading likelihoods, in words.
        left_out: items that could not be asked.
    """

    suite: str
    measure: str
    value: float
    low: float | None
    high: float | None
    count: int
    unparsed: int
    protocol: str
    main: bool
    next_to: str = ""
    left_out: int = 0

    @property
    def interval(self) -> str:
        """The interval in words."""
        if self.low is None or self.high is None:
            return "none"
        return f"{self.low:.1f} to {self.high:.1f}"


@dataclass(frozen=True)
class Sample:
    """An answered question.

    Attributes:
        suite, id: where it is from.
        question, gold, answer: in words; `answer` is None when it could not be read.
        correct: the verdict, or None where there is none for one item.
        image: its file, if it has one and it is known.
    """

    suite: str
    id: str
    question: str
    gold: str
    answer: str | None
    correct: bool | None
    image: Path | None

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        return {True: "right", False: "wrong", None: "not judged alone"}[self.correct]


def read_scores(directory: Path) -> list[ScoreLine]:
    """Read every score file of a run's `eval`; files that are none of ours are passed over."""
    lines: list[ScoreLine] = []
    for path in sorted(directory.glob("*.json")):
        page = read_object_if_any(path)
        if isinstance(page.get("measures"), list):
            lines += _of_measures(path.stem, page)
    return lines


def former_scores(directory: Path) -> list[str]:
    """Say of each score file that an older version wrote that it is not read."""
    return [
        f"{path} is of a former kind and is not read; delete it, and score anew with: "
        f"{command_for(path)}"
        for path in sorted(directory.glob("*.json"))
        if isinstance((page := read_object_if_any(path)).get("columns"), dict)
        and "measures" not in page
    ]


def _of_measures(suite: str, page: Mapping[str, Any]) -> list[ScoreLine]:
    """Return one line a measure."""
    words = str(page.get("protocol", ""))
    marks = [word for word in ("blind",) if page.get(word)]
    limit, main = page.get("limit"), page.get("main")
    marks += [f"first {limit} items"] if limit else []
    strength = page.get("strength", 1)
    marks += [f"adapter at strength {strength:g}"] if _is_number(strength) and strength != 1 else []
    protocol = "; ".join([words, *marks])
    blind, ways = page.get("baselines"), page.get("by_normalisation")
    both = {f"by_{key}": value for key, value in ways.items()} if isinstance(ways, dict) else {}
    figures = _in_figures(blind if isinstance(blind, dict) else {}, both)
    return [
        ScoreLine(
            suite, str(measure.get("name")),
            measure["value"], measure.get("low"), measure.get("high"),
            measure.get("count", 0), measure.get("unparsed", 0),
            protocol, measure.get("name") == main,
            figures if measure.get("name") == main else _in_figures(measure, {}),
            page.get("items_left_out") or 0,
        )
        for measure in page["measures"]
        if isinstance(measure, dict) and _is_number(measure.get("value"))
    ]  # fmt: skip


def _in_figures(blind: Mapping[str, Any], ways: Mapping[str, Any]) -> str:
    """Say what blind rules score, and both ways of reading likelihoods."""
    answer = f"always '{shorten(str(blind.get('majority_answer', '')), 30, placeholder='...')}'"
    named = {
        "guessing": blind.get("chance"),
        answer: blind.get("majority"),
        "the longest option": blind.get("longest"),
        "by sum": ways.get("by_sum"),
        "by mean": ways.get("by_mean"),
    }
    return ", ".join(f"{name} {value:.1f}" for name, value in named.items() if _is_number(value))


def read_samples(directory: Path, count: int, suite: str | None = None) -> list[Sample]:
    """Take a few answers of each kind: right and wrong ones in turn, those with images first.

    Args:
        directory: the run's `eval`.
        count: most samples.
        suite: whose predictions; by default those of the first file that is neither blind nor
            of a scaled adapter.
    """
    files = sorted(directory.glob("*.predictions.jsonl"))
    names = [path.name.removesuffix(".predictions.jsonl") for path in files]
    others = re.compile("blind|-strength-|^start$")
    shown = [name for name in names if not others.search(name)]
    if suite is None and not shown:
        return []
    chosen = suite or shown[0]
    samples = [
        _sample(chosen, line)
        for line in _lines(directory / f"{chosen}.predictions.jsonl")
        if "parsed" in line  # a line of a former kind has none
    ]
    known = [sample for sample in samples if sample.question or sample.image]
    known.sort(key=lambda sample: sample.image is None)
    right = [sample for sample in known if sample.correct is not False]
    wrong = [sample for sample in known if sample.correct is False]
    wanted = right[: max(count - len(wrong), -(-count // 2))]
    return [*wanted, *wrong[: count - len(wanted)]]


def _sample(suite: str, line: Mapping[str, Any]) -> Sample:
    name = str(line.get("id", ""))
    gold, answer = line.get("gold"), line.get("parsed")
    if isinstance(gold, list):
        gold = " / ".join(map(str, dict.fromkeys(gold)))
    correct, images = line.get("correct"), line.get("images")
    candidates = map(Path, filter(lambda path: isinstance(path, str), images or ()))
    return Sample(
        suite=suite,
        id=name,
        question=str(line.get("question") or ""),
        gold="" if gold is None else str(gold),
        answer=None if answer is None else str(answer),
        correct=correct >= 0.5 if isinstance(correct, int | float) else None,
        image=next((path for path in candidates if path.is_file()), None),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    try:
        with path.open(encoding="utf-8") as file:
            for _, text in zip(range(_LINES_READ), file, strict=False):
                line = json.loads(text)
                lines += [line] if isinstance(line, dict) else []
    except (OSError, ValueError):
        pass
    return lines


def read_object_if_any(path: Path) -> dict[str, Any]:
    """Return a JSON object, or nothing where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
