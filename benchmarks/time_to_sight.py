"""CPU seconds from the frozen start to 80 % of the demo's image questions, recipe by recipe.

    python -m benchmarks.time_to_sight OUT [--entries NAMES] [--seeds 0,1,2,3,4] [--quick]

An entry is a file of `benchmarks/sight`: its date, a sentence, and what it sets in the demo's
recipe. Each is trained on the demo's own 1,650 questions and leaves ten checkpoints, which are
scored on the 280 test questions with an image. An entry sees from the second of two successive
checkpoints on that both answer 80 % or more. Its seconds are those of the training process until
then: encoding, features, alignment and steps. Loading the frozen parts and the scoring are reported
apart.

Which checkpoint it is, bisection finds: an entry that saw twice is taken to see later, too. All
entries of a seed run before those of the next one. What is done in OUT is not done again. The table
is printed, and `OUT/time-to-sight.json` has all of it.
"""

import argparse
import gc
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from varifocal.assemble import open_run
from varifocal.data.loading import load_source
from varifocal.demo import FULL, IMAGE_SKILLS, QUICK, Size, prepare_demo
from varifocal.evaluation.benchmarks.scienceqa import AVERAGE, choice_benchmark
from varifocal.evaluation.evaluated_model import EncodedAsker
from varifocal.evaluation.open_answers import items_of
from varifocal.evaluation.runner import AskOptions
from varifocal.evaluation.runner import run as run_benchmark
from varifocal.progress import silent
from varifocal.recipe import Recipe, load_recipe
from varifocal.run import UNLOGGED, RunDirectory
from varifocal.sciencebook import SKILLS
from varifocal.training.train import run_training
from varifocal.writing import write_json

ENTRIES = Path(__file__).parent / "sight"
PERCENT = 80.0
CHECKPOINT_EVERY = 0.1
"""Share of an entry's steps."""
COUNTED = ("encoding", "vision_features", "alignment", "training")
"""Stages of a training that count; `loading` is reported apart."""


@dataclass(frozen=True)
class Entry:
    """A recipe on the leaderboard.

    Attributes:
        name: of its file.
        date: when it was entered.
        about: what it is, in a sentence.
        set: its overrides of the demo's recipe, by dotted key.
    """

    name: str
    date: str
    about: str
    set: Mapping[str, Any]


@dataclass(frozen=True)
class Sight:
    """What one entry came to with one seed.

    Attributes:
        seconds: CPU seconds until it saw; None if it never did.
        step: the step of that checkpoint.
        stages: CPU seconds of the whole training, by stage, `loading` included.
        right: percent of the image questions, by the step of each checkpoint that was scored.
        scoring_seconds: CPU seconds of each of these scores.
    """

    seconds: float | None
    step: int | None
    stages: dict[str, float]
    right: dict[int, float]
    scoring_seconds: dict[int, float]


def load_entries(names: Sequence[str] = (), folder: Path = ENTRIES) -> list[Entry]:
    """Read entries, those with the names in their order; by default all."""
    files = [folder / f"{name}.yaml" for name in names] or sorted(folder.glob("*.yaml"))
    entries = []
    for file in files:
        page = yaml.safe_load(file.read_text())
        entries.append(Entry(file.stem, str(page["date"]), page["about"], page["set"]))
    return entries


def first_to_hold(steps: Sequence[int], right: Callable[[int], float], least: float) -> int | None:
    """Find the second of the first two successive steps that are right `least` often, or None.

    Args:
        steps: in their order.
        right: percent right as of a step.
        least: percent.

    >>> first_to_hold([10, 20, 30, 40], {10: 50.0, 20: 81.0, 30: 80.0, 40: 90.0}.get, 80.0)
    30
    """

    def holds(index: int) -> bool:
        return right(steps[index]) >= least and right(steps[index - 1]) >= least

    low, high = 1, len(steps) - 1
    if high < 1 or not holds(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return steps[high]


def measure(recipe: Recipe, root: Path, least: float) -> Sight:
    """Train an entry, or what is left of it, and score as many of its checkpoints as needed."""
    run = RunDirectory(root)
    if not (root / "training.json").is_file():
        cache = root.parent.resolve() / "cache" / root.name  # of its own: its features count
        os.environ["VARIFOCAL_CACHE"] = str(cache)
        run_training(recipe, root, resume=run.recipe.is_file())
    steps = planned_steps(run.steps())
    costs = {step: _cpu_seconds(run.checkpoint(step) / UNLOGGED) for step in steps}
    scores: dict[int, dict[str, float]] = {}

    def right(step: int) -> float:
        scores[step] = scores.get(step) or _score(run, step)
        return scores[step]["right"]

    step = first_to_hold(list(costs), right, least)
    right(max(costs))
    return Sight(
        None if step is None else sum(costs[step][name] for name in COUNTED),
        step,
        costs[max(costs)],
        {key: scores[key]["right"] for key in sorted(scores)},
        {key: scores[key]["seconds"] for key in sorted(scores)},
    )


def planned_steps(steps: Sequence[int]) -> list[int]:
    """Leave out the checkpoints that an interruption wrote.

    >>> planned_steps([10, 20, 24, 30, 100])
    [10, 20, 30, 100]
    """
    every = math.ceil(CHECKPOINT_EVERY * steps[-1])
    return [step for step in steps if step % every == 0 or step == steps[-1]]


def _cpu_seconds(file: Path) -> dict[str, float]:
    """Read by stage what had been spent when a checkpoint was written."""
    seconds = json.loads(file.read_text())["seconds"]
    return {name: seconds[f"cpu_{name}"] for name in ("loading", *COUNTED)}


def _score(run: RunDirectory, step: int) -> dict[str, float]:
    """Score a checkpoint, if that is not done yet."""
    stored = run.evaluations_at(step) / "right.json"
    if not stored.is_file():
        recipe, parts = open_run(run.root, checkpoint=step)
        examples = load_source(recipe.data.evaluate[0])
        began = time.process_time()
        result = run_benchmark(
            choice_benchmark("sight", "sciencebook", "likelihood", 64),
            items_of(list(examples)),
            EncodedAsker(parts),
            run.evaluations_at(step),
            options=AskOptions(token_budget=4096),
        )
        seconds = time.process_time() - began
        average = next(each.value for each in result.measures if each.name == AVERAGE)
        write_json(stored, {"right": average, "seconds": seconds})
        del parts
        gc.collect()
    return json.loads(stored.read_text())


def run_all(
    out: Path,
    entries: Sequence[Entry],
    seeds: Sequence[int],
    *,
    size: Size = FULL,
    least: float = PERCENT,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Measure all entries with all seeds, and write `time-to-sight.json` after each.

    Args:
        out: the folder of the runs.
        entries: in the table's order; the first is what the others are compared with.
        seeds: of the runs; the questions are those of the demo.
        size: of the questions, with overrides of every recipe.
        least: percent of the image questions that have to be right.
        report: called with a line for each run, and with the table so far.
    """
    prepare_demo(RunDirectory.create(out / "demo", resume=True), size, silent)
    results: dict[str, dict[int, Sight]] = {entry.name: {} for entry in entries}
    page: dict[str, Any] = {}
    for seed in seeds:
        for entry in entries:
            recipe = _recipe_of(entry, seed, out / "demo", size)
            sight = measure(recipe, out / f"{entry.name},seed={seed}", least)
            results[entry.name][seed] = sight
            report(f"{entry.name}, seed {seed}: {sight.right}, sees: {sight.seconds} CPU s")
            page = {
                "percent": least,
                "entries": [_row(each, results[each.name]) for each in entries],
            }
            write_json(out / "time-to-sight.json", page)
    report(table(page))
    return page


def _recipe_of(entry: Entry, seed: int, book: Path, size: Size) -> Recipe:
    """Return the demo's recipe with an entry's settings and ten checkpoints."""
    source = {"path": "sciencebook", "format": "scienceqa", "split": "test"}
    common = {
        "name": entry.name,
        "seed": seed,
        "data.root": str(book.resolve()),
        "data.evaluate": [{**source, "skills": [SKILLS[name].title for name in IMAGE_SKILLS]}],
        "training.save_total_limit": None,
        "training.save_steps": CHECKPOINT_EVERY,
    }
    return load_recipe("demo", {**common, **entry.set, **size.overrides})


def _row(entry: Entry, by_seed: Mapping[int, Sight]) -> dict[str, Any]:
    """Put an entry and what its seeds came to into one object; a seed that never saw is last."""
    seconds = [s.seconds if s.seconds is not None else float("inf") for s in by_seed.values()]
    middle = median(seconds) if seconds else float("inf")
    return {
        **asdict(entry),
        "median_seconds": None if middle == float("inf") else middle,
        "seeds": {seed: asdict(sight) for seed, sight in by_seed.items()},
    }


def table(page: Mapping[str, Any]) -> str:
    """Write the leaderboard in Markdown; ratios are to the first entry's median."""
    lines = [
        "| entry | date | CPU s to sight: median (each seed) | of the first | at step | features "
        "| alignment | whole training | right at its end % | one scoring |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    first = page["entries"][0]["median_seconds"]
    for entry in page["entries"]:
        sights, middle = list(entry["seeds"].values()), entry["median_seconds"]
        if not sights:
            continue
        stages = [
            (s["stages"]["vision_features"], s["stages"]["alignment"], _whole(s), _at_end(s))
            for s in sights
        ]
        features, alignment, whole, end = (median(column) for column in zip(*stages, strict=True))
        scoring = median(each for s in sights for each in s["scoring_seconds"].values())
        cells = [
            *(entry["name"], entry["date"]),
            f"{_number(middle)} ({', '.join(_number(s['seconds']) for s in sights)})",
            f"{middle / first:.2f}" if middle and first else "",
            ", ".join(str(s["step"] or "never") for s in sights),
            *(f"{each:.0f}" for each in (features, alignment, whole)),
            *(f"{end:.1f}", f"{scoring:.0f}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _whole(sight: Mapping[str, Any]) -> float:
    return sum(sight["stages"][name] for name in COUNTED)


def _at_end(sight: Mapping[str, Any]) -> float:
    return sight["right"][max(sight["right"], key=int)]


def _number(seconds: float | None) -> str:
    return "never" if seconds is None else f"{seconds:.0f}"


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the runs are stored there; done ones are read back")
    parser.add_argument("--entries", type=_names, default=[], help="names, the first one first")
    parser.add_argument("--seeds", type=_names, default=["0", "1", "2", "3", "4"])
    parser.add_argument("--quick", action="store_true", help="8 steps on a tenth of the questions")
    given = parser.parse_args(arguments)
    run_all(
        given.out,
        load_entries(given.entries),
        [int(seed) for seed in given.seeds],
        size=QUICK if given.quick else FULL,
        least=0.0 if given.quick else PERCENT,
    )


if __name__ == "__main__":
    main()
