"""The MixLoRA study's figures: from run directories to means over seeds."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.record import over_seeds
from varifocal.analysis.tasks import name_task
from varifocal.data.loading import load_source
from varifocal.evaluation.sources import suite_name
from varifocal.recipe import load_recipe
from varifocal.run import RunDirectory
from varifocal.sweep import DONE

ALL = "all"
CLAIMS = (
    ("MixLoRA against LoRA of its rank", "r4-weighted", "lora-r4"),
    ("MixLoRA against LoRA of rank 16", "r4-weighted", "lora-r16"),
    ("half the rank against LoRA of rank 32", "r2-weighted", "lora-r32"),
    ("an instance's choice against chance", "r4-weighted", "r4-random"),
    ("a fixed choice against chance", "r4-hard", "r4-random"),
    ("learnt against fixed routers", "r4-weighted", "r4-hard"),
    ("conditional against independent, learnt", "r4-weighted", "r4-weighted-independent"),
    ("conditional against independent, fixed", "r4-hard", "r4-hard-independent"),
    ("an instance's choice against chance, r 2", "r2-weighted", "r2-random"),
    ("conditional against independent, r 2", "r2-weighted", "r2-weighted-independent"),
)
"""What is compared, seed by seed: its name, a setting, and the one it is held against."""

Runs = Mapping[str, Mapping[int, Path]]


def collect(folders: Mapping[int, Path]) -> dict[str, Any]:
    """Gather what finished runs have written.

    Args:
        folders: a seed's runs, each named by its setting.

    Returns:
        `tasks`, `settings`, `differences`, `interference` and `routing`, as `mixlora.json` has it.
    """
    runs = _finished(folders)
    scores = {
        name: {seed: scores_of(run) for seed, run in own.items()} for name, own in runs.items()
    }
    start = {seed: folder / "start" for seed, folder in folders.items()}
    after = _looks(runs, "interference", _interference)
    return {
        "tasks": _tasks(scores),
        "settings": {name: _setting(runs[name], scores[name]) for name in runs},
        "differences": [
            {
                "claim": claim,
                "of": of,
                "against": against,
                **_difference(scores[of], scores[against]),
            }
            for claim, of, against in CLAIMS
            if scores.get(of, {}).keys() & scores.get(against, {}).keys()
        ],
        "interference": {
            "before": _looks(_finished(start, "training.json"), "interference", _interference),
            "after": after,
        },
        "negative_share_differences": _share_differences(after),
        "routing": _looks(runs, "routing", _routing),
    }


def _finished(folders: Mapping[int, Path], mark: str = DONE) -> Runs:
    """Sort finished runs by setting, in the order in which they were finished first."""
    found = [
        (file.stat().st_mtime, seed, file.parent)
        for seed, folder in folders.items()
        for file in folder.glob(f"*/{mark}")
    ]
    runs: dict[str, dict[int, Path]] = {}
    for _, seed, run in sorted(found):
        runs.setdefault(run.name, {})[seed] = run
    return runs


def scores_of(run: Path) -> dict[str, dict[str, float]]:
    """Loss of the right answer among the options in nats, and percent right, by task.

    Next to them what a guess gets: `chance`, and `even_loss` where every option is as likely.
    """
    recipe = load_recipe(RunDirectory(run).recipe)
    by_task: dict[str, list[tuple[float, bool, int]]] = defaultdict(list)
    for source in recipe.data.evaluate:
        name = suite_name(source, "likelihood")
        lines = (RunDirectory(run).evaluations / f"{name}.predictions.jsonl").read_text()
        for example, line in zip(load_source(source), lines.splitlines(), strict=True):
            answer = json.loads(line)
            loss = loss_of(answer["scores"], answer["options"].index(answer["gold"][0]))
            by_task[name_task(example)].append((loss, answer["correct"], len(answer["scores"])))
    scores = {
        task: {
            "questions": len(rows),
            "loss": fmean(loss for loss, _, _ in rows),
            "accuracy": 100 * fmean(right for _, right, _ in rows),
            "chance": 100 * fmean(1 / options for _, _, options in rows),
            "even_loss": fmean(log(options) for _, _, options in rows),
        }
        for task, rows in by_task.items()
    }
    keys = ("loss", "accuracy", "chance", "even_loss")
    means = {key: fmean(one[key] for one in scores.values()) for key in keys}
    return {ALL: {"questions": sum(one["questions"] for one in scores.values()), **means}, **scores}


def loss_of(scores: Sequence[float], gold: int) -> float:
    """The right answer's loss when the options share all the probability, in nats.

    >>> round(loss_of([-1.0, -1.0], 0), 4)
    0.6931
    """
    most = max(scores)
    return log(sum(exp(one - most) for one in scores)) + most - scores[gold]


def _tasks(scores: Mapping[str, Mapping[int, Any]]) -> dict[str, Any]:
    """What each task asks, from any run: all were asked the same."""
    one: dict[str, Any] = next((run for own in scores.values() for run in own.values()), {})
    return {
        task: {key: figures[key] for key in ("questions", "chance", "even_loss")}
        for task, figures in one.items()
    }


def _setting(runs: Mapping[int, Path], scores: Mapping[int, Any]) -> dict[str, Any]:
    """One setting's cost and scores over its seeds."""
    training = [json.loads((run / "training.json").read_text()) for run in runs.values()]
    tasks = list(next(iter(scores.values())))
    return {
        "seeds": list(runs),
        "trained_parameters": training[0]["trained_parameters"],
        "tokens": [one["tokens"] for one in training],
        "tasks": {
            task: {
                key: over_seeds([one[task][key] for one in scores.values()])
                for key in ("loss", "accuracy")
            }
            for task in tasks
        },
        **_watched(runs.values()),
    }


def _watched(runs: Iterable[Path]) -> dict[str, Any]:
    """How the factors were used at the last logged step; {} for LoRA."""
    names = ("factor_entropy", "factor_top_load", "router_sharpness")
    last = [next(iter(_rows_with(run, names[0])), {}) for run in runs]
    return {name: over_seeds([one[name] for one in last]) for name in names if name in last[0]}


def _rows_with(run: Path, key: str) -> list[dict[str, Any]]:
    return [row for row in reversed(RunDirectory(run).read_metrics()) if key in row]


def _difference(of: Mapping[int, Any], against: Mapping[int, Any]) -> dict[str, Any]:
    """Differences paired by seed, by task and over all."""
    seeds = [seed for seed in of if seed in against]
    tasks = list(of[seeds[0]])
    return {
        "seeds": seeds,
        "tasks": {
            task: {
                key: over_seeds([of[seed][task][key] - against[seed][task][key] for seed in seeds])
                for key in ("loss", "accuracy")
            }
            for task in tasks
        },
    }


def _looks(runs: Runs, analysis: str, figures: Any) -> dict[str, Any]:
    """An analysis' figures by setting, where it was made."""
    found: dict[str, Any] = {}
    for name, own in runs.items():
        files = {seed: RunDirectory(run).analysis / f"{analysis}.json" for seed, run in own.items()}
        there = {
            seed: json.loads(file.read_text()) for seed, file in files.items() if file.is_file()
        }
        if there:
            found[name] = {"seeds": list(there), **figures(list(there.values()))}
    return found


def _share_differences(after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Negative shares against LoRA's, paired by seed."""
    against = after.get("lora-r16")
    return [
        {"of": name, "against": "lora-r16", "all": _paired(one, against, "negative_share")}
        for name, one in after.items()
        if against and name != "lora-r16" and one["seeds"] == against["seeds"]
    ]


def _paired(of: Mapping[str, Any], against: Mapping[str, Any], key: str) -> dict[str, Any]:
    pairs = zip(of[key][ALL]["values"], against[key][ALL]["values"], strict=True)
    return over_seeds([one - other for one, other in pairs])


def _interference(pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    blocks = {ALL: [page[ALL] for page in pages]}
    blocks |= {name: [page["layers"][name] for page in pages] for name in pages[0]["layers"]}
    return {
        "tasks": pages[0]["tasks"],
        "examples": pages[0]["examples"],
        "trained_parameters": pages[0][ALL]["trained_parameters"],
        "negative_share": {
            name: over_seeds([one["negative_share"] or 0.0 for one in own])
            for name, own in blocks.items()
        },
        "surely_negative_share": over_seeds(
            [one["surely_negative"] / max(one["pairs"], 1) for one in blocks[ALL]]
        ),
        "mean_effect": over_seeds([fmean(_pairs(one)) for one in blocks[ALL]]),
        "mean_harm": over_seeds(
            [fmean(max(-cell, 0) for cell in _pairs(one)) for one in blocks[ALL]]
        ),
        "pairs": [one["pairs"] for one in blocks[ALL]],
        "matrices": [one["interference"] for one in blocks[ALL]],
        "vague": [page["vague"] for page in pages],
    }


def _pairs(block: Mapping[str, Any]) -> list[float]:
    """The cells off the diagonal that have a number."""
    return [
        cell
        for i, row in enumerate(block["interference"])
        for j, cell in enumerate(row)
        if i != j and cell is not None
    ]


def _routing(pages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Entropy and overlap over all routers, and the tasks' shares of one pool's factors a layer."""
    pools = [[pool for one in page["modules"].values() for pool in one.values()] for page in pages]
    return {
        "tasks": pages[0]["tasks"],
        "examples": pages[0]["examples"],
        "entropy": over_seeds([fmean(one["entropy"] for one in own) for own in pools]),
        "overlap": over_seeds([fmean(one["mean_overlap"] for one in own) for own in pools]),
        "overlaps": [page["overlap"] for page in pages],
        "telling": _telling(pages[0]["modules"]),
    }


def _telling(modules: Mapping[str, Mapping[str, Any]], count: int = 2) -> dict[str, Any]:
    """The routers, of the first seed, whose tasks share least: their tasks' shares of factors."""
    named = [
        (pool["mean_overlap"], f"{module.partition('layers.')[2]} {name}", pool["usage"])
        for module, pools in modules.items()
        for name, pool in pools.items()
    ]
    return {name: usage for _, name, usage in sorted(named)[:count]}
