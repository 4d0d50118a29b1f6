"""Run directories as they stand, finished or not: recipe, cost, scores and losses.

Reads files only, and takes what is there: a file that is missing, or that a kill cut short, leaves
its place empty.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varifocal.errors import RecipeError
from varifocal.recipe import load_recipe
from varifocal.recipe.strict_yaml import dotted, read_page
from varifocal.run import UNLOGGED, RunDirectory, checkpoint_step
from varifocal.trained_weights import is_finished, scores_folder

_NOT_KNOBS = ("name", "provenance")


@dataclass(frozen=True)
class RunSummary:
    """What one run directory tells.

    Attributes:
        name: the directory's own.
        root: the directory.
        state: `finished`, or in words how far it came.
        finished: whether it is.
        knobs: dotted key -> value of the recipe, defaults included; empty when there is none.
        chosen: those keys that say something else than the default.
        trained_parameters: how many; None before the end.
        loss: of the last line of metrics.
        cost: as `cost.json`; of an unfinished run, as its newest checkpoint has it.
        scores: suite -> measure -> `value` (percent, unless the measure's name says otherwise),
            `low`, `high`, `count`, and `main`: whether it stands for the suite; that one is first,
            and has `chance`, `majority` and `longest` of blind rules, `by_sum` and `by_mean`.
        metrics: lines of `metrics.jsonl`.
    """

    name: str
    root: Path
    state: str
    finished: bool
    knobs: Mapping[str, Any] = field(default_factory=dict)
    chosen: frozenset[str] = frozenset()
    trained_parameters: int | None = None
    loss: float | None = None
    cost: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()


def read_run(root: str | Path, name: str | None = None) -> RunSummary:
    """Read what a run directory has; nothing missing is an error.

    Args:
        root: the directory.
        name: what to call it; its own name by default.
    """
    run = RunDirectory(Path(root))
    metrics = _metrics(run)
    training = _json(run.root / "training.json")
    finished = bool(training) and is_finished(run)
    counts = training.get("trained_parameters")
    knobs, chosen = _knobs(run.recipe)
    losses = [line["loss"] for line in metrics if isinstance(line.get("loss"), int | float)]
    return RunSummary(
        name=name or run.root.resolve().name,
        root=run.root,
        state="finished" if finished else _how_far(run, metrics),
        finished=finished,
        knobs=knobs,
        chosen=frozenset(chosen),
        trained_parameters=sum(counts.values()) if isinstance(counts, dict) else None,
        loss=losses[-1] if losses else None,
        cost=(_json(run.cost) or _cost_of(training) if finished else {}) or _cost_so_far(run),
        scores=_scores(scores_folder(run)),
        metrics=metrics,
    )


def _how_far(run: RunDirectory, metrics: Sequence[Mapping[str, Any]]) -> str:
    if not run.recipe.is_file():
        return "no run here"
    saved = run.newest_checkpoint()
    steps = [line["step"] for line in metrics if isinstance(line.get("step"), int)]
    if saved is None:
        return f"unfinished, step {steps[-1]}, not saved" if steps else "unfinished, not begun"
    scored = scores_folder(run)
    of = f", scored at step {checkpoint_step(scored)}" if scored != run.evaluations else ""
    return f"unfinished, saved at step {checkpoint_step(saved)}{of}"


def _cost_so_far(run: RunDirectory) -> dict[str, Any]:
    """Sum what the newest checkpoint says that its processes have spent."""
    saved = run.newest_checkpoint()
    state = _json(saved / UNLOGGED) if saved else {}
    sums: dict[str, Any] = {}
    for spent in state.get("spent") or ():
        for key, value in spent.items():
            sums[key] = sums.get(key, 0) + value
    return sums | {f"seconds_{key}": value for key, value in state.get("seconds", {}).items()}


def _cost_of(training: Mapping[str, Any]) -> dict[str, Any]:
    """What `training.json` alone tells: runs of Varifocal 0.1 have no `cost.json`."""
    named = {
        "tokens": training.get("tokens"),
        "tokens_trained": training.get("supervised_tokens"),
        "vision_passes": training.get("vision_passes"),
        "seconds_training": training.get("training_seconds"),
        "peak_memory_gib": training.get("peak_memory_gib"),
    }
    return {key: value for key, value in named.items() if isinstance(value, int | float)}


def _knobs(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A recipe's knobs, all and those chosen; of a page that is no recipe now, what it says."""
    try:
        recipe = load_recipe(path, check_paths=False)
    except RecipeError:
        page = _page(path)
        return page, page
    full, chosen = (
        flat(recipe.model_dump(mode="json", exclude=set(_NOT_KNOBS), exclude_defaults=only))
        for only in (False, True)
    )
    return full, chosen


def _page(path: Path) -> dict[str, Any]:
    try:
        page = read_page(path)
    except RecipeError:
        return {}
    return flat({key: value for key, value in page.items() if key not in _NOT_KNOBS})


def flat(page: Any, location: tuple[Any, ...] = ()) -> dict[str, Any]:
    """Lay a page out as dotted keys and plain values.

    >>> flat({"data": {"train": [{"path": "a"}], "max_length": 8}})
    {'data.train[0].path': 'a', 'data.max_length': 8}
    """
    if isinstance(page, Mapping) and page:
        parts: Any = page.items()
    elif isinstance(page, list) and page:
        parts = enumerate(page)
    else:
        return {dotted(location): page}
    return {k: v for key, inner in parts for k, v in flat(inner, (*location, key)).items()}


def _scores(directory: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """The measures of every suite that has a score, the main one first."""
    scores = {}
    for path in sorted(directory.glob("*.json")):
        page = _json(path)
        if read := _measures(page):
            scores[path.stem] = read
    return scores


_BLIND = ("chance", "majority", "longest")
_WAYS = ("by_sum", "by_mean")


def _of_page(page: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands next to the main measure: blind rules, and both ways of likelihood."""
    blind, ways = page.get("baselines"), page.get("by_normalisation")
    known = blind if isinstance(blind, dict) else {}
    both = ways if isinstance(ways, dict) else {}
    return {
        **{key: known.get(key) for key in _BLIND},
        **{key: both.get(key.removeprefix("by_")) for key in _WAYS},
    }


def _measures(page: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Take what has a number; the main measure has what blind rules score next to it."""
    listed = page.get("measures")
    read = {
        str(measure.get("name")): {
            **{key: measure.get(key) for key in ("value", "low", "high", "count")},
            "main": measure.get("name") == page.get("main"),
            **(_of_page(page) if measure.get("name") == page.get("main") else {}),
        }
        for measure in (listed if isinstance(listed, list) else ())
        if isinstance(measure, dict) and isinstance(measure.get("value"), int | float)
    }
    return dict(sorted(read.items(), key=lambda item: not item[1]["main"]))


def _metrics(run: RunDirectory) -> list[dict[str, Any]]:
    try:
        return [line for line in run.read_metrics() if isinstance(line, dict)]
    except (OSError, UnicodeDecodeError):
        return []


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, or nothing where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
