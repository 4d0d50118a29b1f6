"""The MLAN study's figures, read from its run directories."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from studies.record import over_seeds
from varifocal.data.sciencebook import SKILLS
from varifocal.recipe import load_recipe
from varifocal.run import UNLOGGED, RunDirectory
from varifocal.sweep import DONE

SUITES = {
    "language": "unseen-language-test",
    "vision": "unseen-vision-test",
    "ScienceQA": "scienceqa-text-val",
    "NLVR": "dev",
}
"""What the study calls a suite -> the name of its files."""

Moment = dict[str, Any]
"""One scored moment of a run: `step`, `tokens`, and so on; `right` by suite, `skills` by skill."""


def collect(out: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Sum up every point that is done.

    Args:
        out: the study's folder.
        seeds: that count.

    Returns:
        `base` (suite -> figure over seeds), `shares` (a row a share), `claims`, `skills` and
        `points` (every scored moment of every run).
    """
    reader = Reader(out)
    bases = {seed: one for seed in seeds if (one := reader.base(seed))}
    points = [one for one in reader.points() if one["seed"] in bases]
    for point in points:
        start = {**bases[point["seed"]], "step": 0, **dict.fromkeys(COSTS, 0)}
        point["moments"] = [start, *point["moments"]]
    shares = [_share(share, points) for share in sorted({one["share"] for one in points})]
    return {
        "base": {suite: _over([one["right"] for one in bases.values()], suite) for suite in SUITES},
        "stage1": [
            {"seed": seed, **{key: one[key] for key in ("step", *COSTS)}}
            for seed, one in bases.items()
        ],
        "shares": shares,
        "claims": claims(points) if len(shares) > 1 else {},
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
        self._skill: dict[tuple[str, str], str] = {}
        for suite in ("unseen-language", "unseen-vision"):
            problems = json.loads((out / "data" / suite / "problems.json").read_text())
            for id_, problem in problems.items():
                self._skill[f"{suite}-test", id_] = titles[problem["skill"]]

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
        """Percent right by suite, and by sciencebook's skill."""
        right: dict[str, float] = {}
        skills: dict[str, list[bool]] = defaultdict(list)
        for name, suite in SUITES.items():
            file = directory / f"{suite}.predictions.jsonl"
            if not file.is_file():
                continue
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            right[name] = 100 * fmean(line["correct"] for line in lines)
            for line in lines:
                skill = self._skill.get((suite, line["id"]))
                if skill is not None:
                    skills[skill].append(line["correct"])
        return {"right": right, "skills": {name: 100 * fmean(of) for name, of in skills.items()}}


def _cost(spent: Mapping[str, int], seconds: float) -> dict[str, float]:
    """What a training had spent: pictures whose features were read, minutes of one core."""
    return {
        "tokens": spent["tokens"],
        "tokens_with_picture": spent["tokens_with_picture"],
        "pictures": spent["vision_lookups"],
        "tflop": spent["flops"] / 1e12,
        "minutes": seconds / 60,
    }


def _over(rights: Sequence[Mapping[str, float]], suite: str) -> dict[str, Any] | None:
    """A suite's figure over seeds; None where it was not asked."""
    values = [one[suite] for one in rights if suite in one]
    return over_seeds(values) if values else None


def _share(share: float, points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum a share up over seeds, at equal rows and at equal cost."""
    own = [one for one in points if one["share"] == share]
    ends = [one["moments"][-1] for one in own]
    budgets = budgets_of(points)
    cheap = [at_cost(one["moments"], budgets[one["seed"]]) for one in own]
    return {
        "share": share,
        "seeds": [one["seed"] for one in own],
        "cost": {key: over_seeds([end[key] for end in ends])["mean"] for key in ("step", *COSTS)},
        "equal_rows": {suite: _over([end["right"] for end in ends], suite) for suite in SUITES},
        "equal_cost": {suite: _over(cheap, suite) for suite in SUITES},
    }


def budgets_of(points: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """The tokens of each seed's cheapest share: what all may spend at equal cost."""
    budgets: dict[int, float] = {}
    for one in points:
        spent = one["moments"][-1]["tokens"]
        budgets[one["seed"]] = min(spent, budgets.get(one["seed"], spent))
    return budgets


def at_cost(moments: Sequence[Moment], tokens: float) -> dict[str, float]:
    """Percent right by suite once a run has spent so many tokens, between its scored moments.

    >>> start, end = {"language": 50.0, "vision": 40.0}, {"language": 52.0, "vision": 60.0}
    >>> at_cost([{"tokens": 0, "right": start}, {"tokens": 8, "right": end}], 2)
    {'language': 50.5, 'vision': 45.0}
    """
    spent = [one["tokens"] for one in moments]
    return {
        suite: float(np.interp(tokens, spent, [one["right"][suite] for one in moments]))
        for suite in ("language", "vision")
    }


def cost_to_reach(moments: Sequence[Moment], suite: str, right: float) -> float | None:
    """The tokens after which a run first has so many percent right; None if it never has.

    >>> along = [{"tokens": 0, "right": {"vision": 40.0}}, {"tokens": 8, "right": {"vision": 60.0}}]
    >>> cost_to_reach(along, "vision", 45.0), cost_to_reach(along, "vision", 61.0)
    (2.0, None)
    """
    before = moments[0]
    if before["right"][suite] >= right:
        return 0.0
    for one in moments[1:]:
        now, was = one["right"][suite], before["right"][suite]
        if now >= right:
            part = (right - was) / (now - was)
            return before["tokens"] + part * (one["tokens"] - before["tokens"])
        before = one
    return None


def claims(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The paper's three claims as differences, paired by seed and then taken over seeds.

    `middle` are the shares from 12.5 to 87.5 %. A slope is in points from one end of the middle to
    the other; a cliff is the middle's mean less the pure share's, both at equal rows.
    """
    whole = [seed for seed in budgets_of(points) if _is_whole(points, seed)]
    if not whole:
        return {}
    found: dict[str, Any] = {"seeds": whole}
    for suite in ("language", "vision"):
        rows = [_ends(points, seed, suite) for seed in whole]
        bases = [_of(points, seed, 0.0)["moments"][0]["right"][suite] for seed in whole]
        middles = [{share: y for share, y in row.items() if 0 < share < 1} for row in rows]
        found[suite] = {
            "gain_of_language_alone": _differences(rows, 1.0, bases),
            "gain_of_vision_alone": _differences(rows, 0.0, bases),
            "gain_of_middle": over_seeds(
                [fmean(m.values()) - b for m, b in zip(middles, bases, strict=True)]
            ),
            "slope_of_middle": over_seeds([_slope(middle) for middle in middles]),
            "cliff_at_all_language": over_seeds(
                [fmean(m.values()) - r[1.0] for m, r in zip(middles, rows, strict=True)]
            ),
            "cliff_at_no_language": over_seeds(
                [fmean(m.values()) - r[0.0] for m, r in zip(middles, rows, strict=True)]
            ),
            "tokens_to_what_vision_alone_reached": _saving(points, whole, suite),
        }
    found["tokens_a_row"] = _tokens_a_row(points, whole)
    return found


def _is_whole(points: Sequence[Mapping[str, Any]], seed: int) -> bool:
    """Whether a seed has the pure shares and all that any other seed has between."""
    shares = {one["share"] for one in points}
    return {0.0, 1.0} <= shares == {one["share"] for one in points if one["seed"] == seed}


def _of(points: Sequence[Mapping[str, Any]], seed: int, share: float) -> Mapping[str, Any]:
    return next(one for one in points if (one["seed"], one["share"]) == (seed, share))


def _ends(points: Sequence[Mapping[str, Any]], seed: int, suite: str) -> dict[float, float]:
    """Share -> percent right at the end of its run."""
    own = (one for one in points if one["seed"] == seed)
    return {one["share"]: one["moments"][-1]["right"][suite] for one in own}


def _differences(
    rows: Sequence[Mapping[float, float]], share: float, bases: Sequence[float]
) -> dict[str, Any]:
    return over_seeds([row[share] - base for row, base in zip(rows, bases, strict=True)])


def _slope(middle: Mapping[float, float]) -> float:
    """The straight line's rise over the middle shares; 0 where there is one alone."""
    if len(middle) < 2:
        return 0.0
    shares = sorted(middle)
    rise = np.polyfit(shares, [middle[share] for share in shares], 1)[0]
    return float(rise * (shares[-1] - shares[0]))


def _saving(points: Sequence[Mapping[str, Any]], seeds: Sequence[int], suite: str) -> Any:
    """By share, a value a seed: what vision alone spent over what the share took to be as good."""
    found: dict[str, list[float | None]] = defaultdict(list)
    for seed in seeds:
        last = _of(points, seed, 0.0)["moments"][-1]
        for share in sorted(_ends(points, seed, suite)):
            spent = cost_to_reach(_of(points, seed, share)["moments"], suite, last["right"][suite])
            found[f"{share:g}"].append(last["tokens"] / spent if spent else spent)
    return found


def _tokens_a_row(points: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, float]:
    """The mean length of a row with a picture and of one without, in tokens."""
    means = {}
    for kind, share in (("vision", 0.0), ("language", 1.0)):
        runs = [_of(points, seed, share) for seed in seeds]
        means[kind] = fmean(one["moments"][-1]["tokens"] / one["rows"] for one in runs)
    return means


def _skills(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By unseen skill: chance and percent right of base, pure shares and middle, over all seeds."""
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
