"""The MLAN study's figures, read from its run directories."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import exp, log
from pathlib import Path
from statistics import fmean
from typing import Any

from studies.mlan_claims import ASKED, at_cost, budgets_of, claims
from studies.record import over_seeds
from varifocal.recipe import load_recipe
from varifocal.run import UNLOGGED, RunDirectory
from varifocal.sciencebook import SKILLS
from varifocal.sweep import DONE

SUITES = {
    **{name: f"{name.replace(' ', '-')}-test" for name in ASKED},
    "ScienceQA": "scienceqa-text-val",
    "NLVR": "dev",
}
"""What the study calls a suite -> the name of its files."""

Moment = dict[str, Any]
"""One scored moment of a run: `step` and `COSTS`; each of `MEASURES` by suite; `skills`: percent
right by skill."""

MEASURES = ("right", "evidence")
"""Percent right; and the log-probability, in nats, that the right choice has among a question's
choices, which says more on few questions: a blind guess has -0.69 among two and -1.10 among three.
Of both, more is better."""


def collect(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Sum up every point that is done.

    Args:
        out: the study's folder.
        seeds: that count.

    Returns:
        `chance` and `base` (measure -> suite -> figure), `shares` (a row a share), `claims`
        (by measure), `skills` and `points` (every scored moment of every run).
    """
    reader = Reader(out)
    bases = {seed: one for seed in seeds if (one := reader.base(seed))}
    points = [one for one in reader.points() if one["seed"] in bases]
    for point in points:
        start = {**bases[point["seed"]], "step": 0, **dict.fromkeys(COSTS, 0)}
        point["moments"] = [start, *point["moments"]]
    shares = [_share(share, points) for share in sorted({one["share"] for one in points})]
    return {
        "base": _by_measure(list(bases.values())),
        "stage1": [
            {"seed": seed, **{key: one[key] for key in ("step", *COSTS)}}
            for seed, one in bases.items()
        ],
        "chance": reader.chance,
        "shares": shares,
        "claims": {measure: claims(points, measure) for measure in MEASURES},
        "skills": _skills(points),
        "points": points,
    }


COSTS = ("tokens", "tokens_with_picture", "pictures", "tflop", "minutes")


class Reader:
    """Reads the study's run directories.

    Args:
        out: the study's folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        titles = {skill.title: name for name, skill in SKILLS.items()}
        self.chance: dict[str, dict[str, float]] = {}
        self._skill: dict[tuple[str, str], str] = {}
        for name in ASKED:
            file = out / "data" / name.replace(" ", "-") / "problems.json"
            for id_, problem in json.loads(file.read_text()).items():
                self._skill[SUITES[name], id_] = titles[problem["skill"]]

    def base(self, seed: int) -> Moment | None:
        """The stage-1 model of a seed, untuned, with what stage 1 cost; None before it is done."""
        run = RunDirectory(self.out / "stage1" / f"seed={seed}")
        return self._end(run) if (run.root / DONE).is_file() else None

    def points(self) -> Iterator[dict[str, Any]]:
        """The points of stage 2 that are done, with their moments."""
        for file in sorted((self.out / "stage2").glob(f"*/{DONE}")):
            run = RunDirectory(file.parent)
            recipe = load_recipe(run.recipe, check_paths=False)
            yield {
                "share": recipe.data.mixture.language_fraction,
                "seed": recipe.seed,
                "rows": recipe.data.mixture.total,
                "moments": [*self._checkpoints(run), self._end(run)],
            }

    def _checkpoints(self, run: RunDirectory) -> Iterator[Moment]:
        """The scored checkpoints of a run before its end."""
        for step in run.steps()[:-1]:
            if run.evaluations_at(step).is_dir():
                state = json.loads((run.checkpoint(step) / UNLOGGED).read_text())
                (spent,) = state["spent"]  # one process
                cost = _cost(spent, state["seconds"]["cpu_training"])
                yield {"step": step, **cost, **self._scores(run.evaluations_at(step))}

    def _end(self, run: RunDirectory) -> Moment:
        page = json.loads(run.cost.read_text())
        cost = _cost(page, page["seconds_cpu_training"])
        return {"step": page["steps"], **cost, **self._scores(run.evaluations)}

    def _scores(self, directory: Path) -> dict[str, Any]:
        """Each measure by suite, and percent right by sciencebook's skill."""
        found: dict[str, Any] = {measure: {} for measure in MEASURES}
        skills: dict[str, list[bool]] = defaultdict(list)
        for name, suite in SUITES.items():
            file = directory / f"{suite}.predictions.jsonl"
            if not file.is_file():
                continue
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            found["right"][name] = 100 * fmean(line["correct"] for line in lines)
            found["evidence"][name] = fmean(
                evidence(line["scores"], line["options"].index(line["gold"][0])) for line in lines
            )
            counts = [len(line["options"]) for line in lines]
            self.chance[name] = {
                "questions": len(lines),
                "right": 100 * fmean(1 / count for count in counts),
                "evidence": fmean(-log(count) for count in counts),
            }
            for line in lines:
                skill = self._skill.get((suite, line["id"]))
                if skill is not None:
                    skills[skill].append(line["correct"])
        return {**found, "skills": {name: 100 * fmean(of) for name, of in skills.items()}}


def evidence(scores: Sequence[float], gold: int) -> float:
    """The log-probability, in nats, of the right choice among a question's choices.

    >>> round(evidence([-5.0, -5.0], 0), 3), round(evidence([-5.0, -9.0], 0), 3)
    (-0.693, -0.018)
    """
    most = max(scores)
    return scores[gold] - most - log(sum(exp(one - most) for one in scores))


def _cost(spent: Mapping[str, int], seconds: float) -> dict[str, float]:
    """What a training had spent: images whose features were read, minutes of one core."""
    return {
        "tokens": spent["tokens"],
        "tokens_with_picture": spent["tokens_with_picture"],
        "pictures": spent["vision_lookups"],
        "tflop": spent["flops"] / 1e12,
        "minutes": seconds / 60,
    }


def _by_measure(moments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Measure -> suite -> figure over seeds; None where a suite was not asked."""
    return {
        measure: {suite: _over([one[measure] for one in moments], suite) for suite in SUITES}
        for measure in MEASURES
    }


def _over(scores: Sequence[Mapping[str, float]], suite: str) -> dict[str, Any] | None:
    values = [one[suite] for one in scores if suite in one]
    return over_seeds(values) if values else None


def _share(share: float, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum a share up over seeds, at equal rows and at equal cost."""
    own = [one for one in points if one["share"] == share]
    ends = [one["moments"][-1] for one in own]
    budgets = budgets_of(points)
    cheap = [
        {measure: at_cost(one["moments"], budgets[one["seed"]], measure) for measure in MEASURES}
        for one in own
    ]
    return {
        "share": share,
        "seeds": [one["seed"] for one in own],
        "cost": {key: fmean(end[key] for end in ends) for key in ("step", *COSTS)},
        "equal_rows": _by_measure(ends),
        "equal_cost": _by_measure(cheap),
    }


def _skills(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By skill: chance and percent right of base, pure shares and middle, over all seeds."""
    groups = {
        "base": [one["moments"][0] for one in points if one["share"] == 0],
        "no_language": [one["moments"][-1] for one in points if one["share"] == 0],
        "middle": [one["moments"][-1] for one in points if 0 < one["share"] < 1],
        "all_language": [one["moments"][-1] for one in points if one["share"] == 1],
    }
    names = dict.fromkeys(
        name for moments in groups.values() for one in moments for name in one["skills"]
    )
    return {
        name: {"chance": 100 * SKILLS[name].chance}
        | {
            group: fmean(one["skills"][name] for one in moments)
            for group, moments in groups.items()
            if moments
        }
        for name in names
    }
