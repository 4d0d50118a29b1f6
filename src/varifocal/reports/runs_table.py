"""Runs side by side: what differs between their recipes, what they took and what they scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from varifocal.reports.runs import RunSummary, read_run
from varifocal.reports.runs_plot import report_plot
from varifocal.writing import claim_folder, write_json, write_text

NONE = "-"
"""What stands where a run has nothing to say."""

# Student's t, 97.5 % quantile, for 1, 2, ... degrees of freedom.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.16)
_NORMAL = 1.96


@dataclass(frozen=True)
class RunsRow:
    """One line of the table.

    Attributes:
        section: `run`, `recipe`, `cost` or `scores`.
        label: what it tells.
        cells: one text for each run.
        main: of a score, whether it stands for its suite.
    """

    section: str
    label: str
    cells: tuple[str, ...]
    main: bool = False


@dataclass(frozen=True)
class Mean:
    """A number over seeds.

    Attributes:
        mean: of the values.
        low, high: Student's 95 % interval of the mean; the value itself when there is one.
        least, most: the values' range.
        count: how many.
    """

    mean: float
    low: float
    high: float
    least: float
    most: float
    count: int

    def __str__(self) -> str:
        """Say the mean, and how sure it is."""
        if self.count == 1:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} ({self.low:.1f} to {self.high:.1f})"


@dataclass(frozen=True)
class RunsTable:
    """Runs side by side.

    Attributes:
        runs: in the order given.
        rows: the table's lines.
        groups: name of a group -> its runs' names; those of one setting with other seeds.
    """

    runs: Sequence[RunSummary]
    rows: Sequence[RunsRow]
    groups: Mapping[str, Sequence[str]]

    def to_dict(self) -> dict[str, Any]:
        """What `report.json` holds."""
        return {
            "runs": [_of_run(run) for run in self.runs],
            "differences": differences(self.runs),
            "groups": {name: _of_group(self, names) for name, names in self.groups.items()},
        }

    def write(self, directory: Path) -> tuple[Path, ...]:
        """Write `report.md`, `report.json`, and `report.png` where there is something to draw."""
        claim_folder(directory)
        files = [directory / "report.md", directory / "report.json"]
        write_json(files[1], self.to_dict())
        image = directory / "report.png"
        if report_plot(self.runs, image, knob=_one_number(self.runs), groups=self.groups):
            files.append(image)
        write_text(files[0], markdown(self, image.name if len(files) > 2 else None))
        return tuple(files)


def tabulate_runs(
    roots: Sequence[str | Path], groups: Mapping[str, Sequence[str]] | None = None
) -> RunsTable:
    """Read run directories and lay them side by side.

    Args:
        roots: run directories, unfinished and missing ones too.
        groups: name of a setting -> the names of its runs, to be averaged.
    """
    names = _names([Path(root) for root in roots])
    runs = [read_run(root, name) for root, name in zip(roots, names, strict=True)]
    return RunsTable(runs, [*_rows(runs)], groups or {})


def _names(roots: Sequence[Path]) -> list[str]:
    """Call each run by its directory, or by its whole path where two are called the same."""
    short = [root.resolve().name for root in roots]
    return [
        str(root) if short.count(name) > 1 else name
        for root, name in zip(roots, short, strict=True)
    ]


def differences(runs: Sequence[RunSummary]) -> dict[str, list[Any]]:
    """The knobs that are not the same in all runs that have a recipe.

    Returns:
        dotted key -> one value a run, None where it has none.
    """
    known = [run for run in runs if run.knobs]
    keys = dict.fromkeys(key for run in known for key in run.knobs if key in run.chosen)
    knobs = {key: [run.knobs.get(key) for run in runs] for key in keys}
    return {
        key: values
        for key, values in knobs.items()
        if any(run.knobs.get(key) != known[0].knobs.get(key) for run in known)
    }


def _rows(runs: Sequence[RunSummary]) -> list[RunsRow]:
    rows = [RunsRow("run", "state", tuple(run.state for run in runs))]
    rows += [
        RunsRow("recipe", key, tuple(NONE if value is None else str(value) for value in values))
        for key, values in differences(runs).items()
    ]
    cost: list[tuple[str, Callable[[RunSummary], str]]] = [
        ("trained parameters", lambda run: _count(run.trained_parameters)),
        *((label, _cost_cell(key, say)) for label, key, say in COST_ROWS),
        ("loss", lambda run: NONE if run.loss is None else f"{run.loss:.3f}"),
    ]
    cost_rows = (RunsRow("cost", label, tuple(cell(run) for run in runs)) for label, cell in cost)
    rows += [row for row in cost_rows if set(row.cells) != {NONE}]
    suites = dict.fromkeys(suite for run in runs for suite in run.scores)
    for suite in suites:
        of_suite = [run.scores.get(suite, {}) for run in runs]
        names = dict.fromkeys(name for scores in of_suite for name in scores)
        mains = {name for scores in of_suite for name, score in scores.items() if score["main"]}
        for name in sorted(names, key=lambda name: name not in mains):
            cells = tuple(_score(scores.get(name)) for scores in of_suite)
            rows.append(RunsRow("scores", _called(f"{suite} {name}"), cells, main=name in mains))
            rows += _reference_rows(suite, [scores.get(name) for scores in of_suite])
    return rows


REFERENCES: tuple[tuple[str, str], ...] = (
    ("chance", "guessing"),
    ("majority", "always the same answer"),
    ("longest", "the longest option"),
    ("by_sum", "by the sum of likelihoods"),
    ("by_mean", "by their mean"),
)
"""What stands next to a suite's main score, and what reports call it."""


def _reference_rows(suite: str, scores: Sequence[Mapping[str, Any] | None]) -> Iterator[RunsRow]:
    """Yield what blind rules score on a suite, and both ways of reading likelihoods."""
    for key, label in REFERENCES:
        values = [score.get(key) if score is not None else None for score in scores]
        cells = tuple(
            f"{value:.1f}" if isinstance(value, int | float) else NONE for value in values
        )
        if set(cells) != {NONE}:
            yield RunsRow("scores", f"{suite} ({label})", cells)


def _called(score: str) -> str:
    """Name a score; one that says its own unit in brackets is not in percent."""
    return score if score.endswith(")") else f"{score} %"


def _cost_cell(key: str, say: Callable[[Any], str]) -> Callable[[RunSummary], str]:
    return lambda run: say(run.cost.get(key))


def _count(value: Any) -> str:
    return f"{value:,.0f}" if isinstance(value, int | float) else NONE


def _scaled(factor: float, form: str) -> Callable[[Any], str]:
    return lambda value: format(value * factor, form) if isinstance(value, int | float) else NONE


COST_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("tokens", "tokens", _count),
    ("tokens of text rows", "tokens_text", _count),
    ("tokens of rows with images", "tokens_with_picture", _count),
    ("of these, image tokens", "tokens_image", _count),
    ("trained tokens", "tokens_trained", _count),
    ("vision tower passes", "vision_passes", _count),
    ("features looked up", "vision_lookups", _count),
    ("TFLOP", "flops", _scaled(1e-12, ",.3g")),
    ("minutes", "seconds_total", _scaled(1 / 60, ",.1f")),
    ("minutes of training steps", "seconds_training", _scaled(1 / 60, ",.1f")),
    ("tokens a second", "tokens_per_second", _count),
    ("peak memory GiB", "peak_memory_gib", _scaled(1, ".1f")),
)


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return NONE
    low, high = score.get("low"), score.get("high")
    known = isinstance(low, int | float) and isinstance(high, int | float)
    interval = f" ({low:.1f} to {high:.1f})" if known else ""
    return f"{score['value']:.1f}{interval}"


def _one_number(runs: Sequence[RunSummary]) -> str | None:
    """The only knob that differs, the seed aside, when all its values are numbers."""
    differing = {key: values for key, values in differences(runs).items() if key != "seed"}
    if len(differing) != 1:
        return None
    key, values = next(iter(differing.items()))
    numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in values)
    return key if numbers else None


def mean_of(values: Sequence[float]) -> Mean:
    """Average numbers of runs that differ in nothing but their seed.

    Raises:
        ValueError: there are none.

    >>> print(mean_of([50.0, 52.0, 54.0]))
    52.0 (47.0 to 57.0)
    """
    if not values:
        raise ValueError("there is nothing to average")
    count, mean = len(values), fmean(values)
    reach = 0.0
    if count > 1:
        quantile = _T[count - 2] if count - 2 < len(_T) else _NORMAL
        reach = quantile * stdev(values) / math.sqrt(count)
    return Mean(mean, mean - reach, mean + reach, min(values), max(values), count)


def _of_group(report: RunsTable, names: Sequence[str]) -> dict[str, Any]:
    """Average the scores and the cost of a group's finished runs."""
    runs = [run for run in report.runs if run.name in names and run.finished]
    scores: dict[str, list[float]] = {}
    for run in runs:
        for suite, columns in run.scores.items():
            for column, score in columns.items():
                scores.setdefault(f"{suite} {column}", []).append(score["value"])
    costs = {
        key: [run.cost[key] for run in runs if isinstance(run.cost.get(key), int | float)]
        for key in ("tokens", "tokens_trained", "flops", "seconds_total")
    }
    return {
        "runs": list(names),
        "finished": len(runs),
        "scores": {name: asdict(mean_of(values)) for name, values in scores.items()},
        "cost": {name: fmean(values) for name, values in costs.items() if values},
    }


def group_rows(report: RunsTable) -> tuple[list[str], list[list[str]]]:
    """The table over seeds: its head, and one line for each group.

    Only the suites' main measures stand in it; `report.json` has all.
    """
    groups = {name: _of_group(report, names) for name, names in report.groups.items()}
    all_scores = dict.fromkeys(name for group in groups.values() for name in group["scores"])
    mains = {row.label for row in report.rows if row.main}
    scores = [name for name in all_scores if _called(name) in mains] or [*all_scores]
    head = ["", "seeds", "tokens", "TFLOP", "minutes", *map(_called, scores)]
    lines = []
    for name, group in groups.items():
        cost = group["cost"]
        cells = [str(Mean(**group["scores"][s])) if s in group["scores"] else NONE for s in scores]
        numbers = [
            _count(cost.get("tokens")),
            _scaled(1e-12, ",.3g")(cost.get("flops")),
            _scaled(1 / 60, ",.1f")(cost.get("seconds_total")),
        ]
        lines.append([name, f"{group['finished']} of {len(group['runs'])}", *numbers, *cells])
    return head, lines


def _of_run(run: RunSummary) -> dict[str, Any]:
    keys = {"name", "state", "finished", "trained_parameters", "loss", "cost", "scores", "knobs"}
    return {"root": str(run.root)} | {
        key: dict(value) if isinstance(value, Mapping) else value
        for key, value in vars(run).items()
        if key in keys
    }


def markdown(report: RunsTable, image: str | None = None) -> str:
    """The report as a page: the table over seeds, the runs' table, the image.

    Args:
        report: what was found.
        image: the image's file name next to the page.
    """
    parts = ["# Runs side by side"]
    if report.groups:
        parts += ["## Over seeds", _table(*group_rows(report)), _OVER_SEEDS]
    names = [run.name for run in report.runs]
    parts += ["## Runs", _table(["", *names], [[row.label, *row.cells] for row in report.rows])]
    if image:
        parts.append(f"![accuracy against cost, and losses]({image})")
    parts.append(_NOTE)
    return "\n\n".join(parts) + "\n"


_OVER_SEEDS = "Means over finished seeds, with Student's 95 % interval where there are several."
_NOTE = (
    "Scores with 95 % intervals over items. The cost of an unfinished run is that up to its newest "
    "checkpoint; a resumed run's minutes count all its parts."
)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|---|" + "---:|" * (len(head) - 1)
    return "\n".join([line(head), rule, *map(line, lines)])
