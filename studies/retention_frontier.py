"""What is gained against what is lost of the language: replay, the base's own answers, and others.

    python -m studies.retention_frontier OUT [--quick] [--seeds 0,1,2] [--seconds 100] [--data DIR]

Every arm of retention-frontier.yaml trains for the same CPU seconds: a pilot of a few steps says
what a step and the base's answers cost, and so how many steps that makes; an arm with `text_route:
base` takes as many as its sibling. Learning rates come first: three for each of MMA, LoRA and full
tuning, for the same seconds, on a seed and on questions that are not scored. All arms start from a
seed's aligned connector and are asked the same new questions (the demo's columns IMG, TXT and NO).
What the language lost is read from prose that no run saw, from the base's answers to instructions
and from its answers after an image; with `--data DIR`, prose and instructions are `DIR/alpaca`'s.
Three arms are measured at lower strengths, too. Finished arms are kept; retention-frontier.json,
.png and .md in OUT are written anew after each of them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from studies.command import command_of, parser_of, read_options, run_study, take_out
from studies.record import write_study
from studies.retention_frontier_measures import Language, asked_of, language_of_base
from studies.retention_frontier_results import (
    ARMS,
    SAME_STEPS,
    STRENGTHS,
    differences,
    draw,
    family,
    gathered,
    rates_table,
    table,
)
from varifocal.assemble import open_run
from varifocal.demo import IMAGE_SKILLS, TEXT_SKILLS
from varifocal.errors import RunError
from varifocal.recipe import Recipe, load_recipe
from varifocal.run import RunDirectory
from varifocal.sciencebook import make_sciencebook
from varifocal.sweep import Point, Sweep, load_sweep, run_sweep
from varifocal.training.train import run_training
from varifocal.writing import write_json, write_text

HERE = Path(__file__).parent
PILOT_SEED = 1000
RATES = {"mma": (1e-3, 2e-3, 4e-3), "lora": (5e-4, 1e-3, 2e-3), "full": (2e-5, 5e-5, 1e-4)}
"""Learning rates that are tried, the usual one of four times as many tokens a step in each."""
RATES_SEED = 5
"""It tunes the rates, and nothing of it is scored."""
SECONDS = 100.0
"""CPU seconds of training and of the base's answers that every arm gets."""


@dataclass(frozen=True)
class Size:
    """How much is made, trained and asked.

    Args:
        train: questions to learn from, over all skills.
        val: questions that choose a rate, over all skills.
        test: questions to ask.
        texts: paragraphs, instructions and described images, of each so many.
        pilot_steps: that the cost of a step is measured on.
        overrides: of every point, and of the starts.
        of_starts: of the starts.
        of_keep: of the points with `training.keep`.
    """

    train: int
    val: int
    test: int
    texts: int
    pilot_steps: int
    overrides: tuple[str, ...] = ()
    of_starts: tuple[str, ...] = ()
    of_keep: tuple[str, ...] = ()


FULL = Size(train=1650, val=220, test=220, texts=16, pilot_steps=6)
QUICK = Size(
    train=110,
    val=11,
    test=11,
    texts=2,
    pilot_steps=1,
    overrides=("training.warmup_steps=0",),
    of_starts=("alignment.steps=10",),
    of_keep=("training.keep.num_examples=2", "training.keep.max_new_tokens=4"),
)
QUICK_SECONDS = 0.01
"""So few that every arm takes one step."""


class Study:
    """The study in its folder.

    Args:
        out: the folder.
        size: how much.
        seeds: of those in the sweep files.
        seconds: of each arm.
        data: folder with `alpaca`, or None.
        command: what is said to have made the figures.
    """

    def __init__(
        self,
        out: Path,
        size: Size,
        seeds: Sequence[int],
        seconds: float,
        data: Path | None = None,
        command: str = "",
    ) -> None:
        self.out, self.size, self.seeds = out.resolve(), size, seeds
        self.seconds, self.data, self.command = seconds, data, command

    def run(self) -> None:
        """Run whatever is missing, seed after seed."""
        self.prepare()
        self._write_base()
        for seed in self.seeds:
            self.align(seed)
            for arm in ARMS:
                self.train(arm, seed)
                self._measure(arm, seed)
                self.write()

    def prepare(self) -> None:
        """Make the data, say what a step of every arm costs, and tune the learning rates."""
        self._make_book()
        self.align(RATES_SEED)
        for arm in ARMS:
            self._pilot(arm)
        for name in RATES:
            self._tuned(name)

    def align(self, seed: int, folder: str = "start", overrides: Sequence[str] = ()) -> None:
        """Align a seed's connector."""
        given = [*self._root, *overrides, *self.size.of_starts]
        starts = load_sweep(HERE / "retention-frontier-start.yaml", given)
        run_sweep(_of(starts, seed), self.out / folder)

    def train(
        self, arm: str, seed: int, folder: str = "runs", overrides: Sequence[str] = ()
    ) -> RunDirectory:
        """Train an arm for its seconds, at its family's rate."""
        steps = self._steps(arm)
        sweep = _of(self._points(arm, steps, self._tuned(family(arm)), overrides), seed)
        run_sweep(sweep, self.out / folder)
        print(f"seed {seed}: {arm}, {steps} steps", flush=True)
        return RunDirectory(self.out / folder / sweep.points[0].label)

    def write(self) -> None:
        """Write the figures of all arms that are done, and draw them."""
        done: dict[str, dict[int, Any]] = {}
        for arm in ARMS:
            for strength in STRENGTHS.get(arm, (1.0,)):
                for seed in self.seeds:
                    file = self._file(arm, seed, strength)
                    if file.is_file():
                        name = arm if strength == 1 else f"{arm} at {strength:g}"
                        done.setdefault(name, {})[seed] = json.loads(file.read_text())
        base = json.loads((self.out / "base.json").read_text())
        results = gathered(base, done)
        results["cpu_seconds_of_an_arm"] = self.seconds
        results["pilots"] = json.loads((self.out / "pilot.json").read_text())
        results["rates"] = {name: self._tried(name) for name in RATES}
        write_study(self.out / "retention-frontier.json", self.command, self.seeds, results)
        draw(results, self.out / "retention-frontier.png")
        tables = table(results), differences(results), rates_table(results)
        write_text(self.out / "retention-frontier.md", "\n\n".join(tables) + "\n")

    @property
    def _root(self) -> list[str]:
        return [f"data.root={self.out}"]

    def _write_base(self) -> None:
        """Write the base's figures.

        Raises:
            RunError: arms were measured on other texts than this call gives.
        """
        file, figures = self.out / "base.json", self.language.figures
        if file.is_file() and json.loads(file.read_text())["sources"] != figures["sources"]:
            raise RunError(
                f"{file} was measured on other texts; give the former --data, or choose another OUT"
            )
        write_json(file, figures)

    def _make_book(self) -> None:
        book = self.out / "sciencebook"
        if not (book / "problems.json").is_file():
            skills = [*IMAGE_SKILLS, *TEXT_SKILLS]
            make_sciencebook(
                book,
                train=self.size.train,
                val=self.size.val,
                test=self.size.test,
                seed=0,
                skills=skills,
            )

    def _points(self, arm: str, steps: int, rate: float, overrides: Sequence[str] = ()) -> Sweep:
        """Read an arm's points of all seeds, with its steps and its rate."""
        given = [
            *self._root,
            f"model.connector.weights={self.out}/start/aligned,seed={{seed}}",
            *self.size.overrides,
            f"training.max_steps={steps}",
            f"training.learning_rate={rate}",
        ]
        sweep = load_sweep(HERE / "retention-frontier.yaml", given)
        more = [*overrides, *self.size.of_keep]
        points = [_with(point, more) for point in sweep.points if point.setting == arm]
        return replace(sweep, points=tuple(points))

    def _steps(self, arm: str) -> int:
        """Say how many steps of an arm its seconds hold."""
        pilot = self._pilot(SAME_STEPS.get(arm, arm))
        left = self.seconds - pilot["keep_seconds"]
        return max(int(left / pilot["step_seconds"]), 1)

    def _pilot(self, arm: str) -> dict[str, float]:
        """Read what a step of an arm costs, after a pilot where that is not written down yet."""
        file = self.out / "pilot.json"
        pilots = json.loads(file.read_text()) if file.is_file() else {}
        if arm not in pilots:
            points = self._points(arm, self.size.pilot_steps, RATES[family(arm)][0])
            # Of a seed of its own, so that no other arm has left the base's answers in the cache.
            seed = PILOT_SEED + len(pilots)
            page = _of(points, RATES_SEED).points[0].recipe.model_copy(update={"seed": seed})
            run = RunDirectory(self.out / "pilot" / arm)
            cost = run_training(page, run.root, resume=run.recipe.exists()).cost
            pilots[arm] = {
                "step_seconds": cost["seconds_cpu_training"] / cost["steps"],
                "keep_seconds": cost["seconds_cpu_keep"],
            }
            write_json(file, pilots)
        return pilots[arm]

    def _tuned(self, name: str) -> float:
        """Say which rate of a family answered most; of equal ones the lowest."""
        tried = self._tried(name)
        return max(sorted(map(float, tried)), key=lambda rate: tried[f"{rate:g}"]["average"])

    def _tried(self, name: str) -> dict[str, Any]:
        """Read what each rate of a family answered, after training where that is missing."""
        tried = {}
        for rate in RATES[name]:
            folder = self.out / "rates" / f"{name}-{rate:g}"
            file = folder / "asked.json"
            if not file.is_file():
                sweep = _of(self._points(name, self._steps(name), rate), RATES_SEED)
                run_sweep(sweep, folder)
                run = RunDirectory(folder / sweep.points[0].label)
                recipe, parts = open_run(run.root)
                source = recipe.data.evaluate[0].model_copy(update={"split": "val"})
                asked = asked_of(source, parts, run.evaluations, "val")
                write_json(file, asked["accuracy"])
                print(f"{name} at {rate:g}: {asked['accuracy']['average']:.1f} %", flush=True)
            tried[f"{rate:g}"] = json.loads(file.read_text())
        return tried

    @property
    def recipe(self) -> Recipe:
        """What MMA is trained with, but for its rate and steps."""
        return self._points("mma", 1, RATES["mma"][0]).points[0].recipe

    @cached_property
    def language(self) -> Language:
        """What the base reads and writes."""
        folder = RunDirectory(self.out / "base").evaluations
        return language_of_base(self.recipe, self.data, self.size.texts, folder)

    def _measure(self, arm: str, seed: int) -> None:
        """Ask and read an arm at each of its strengths, where that is not done yet."""
        run = RunDirectory(self.out / "runs" / f"{arm},seed={seed}")
        cost = json.loads(run.cost.read_text())
        pilot = json.loads((self.out / "pilot.json").read_text())[arm]
        for strength in STRENGTHS.get(arm, (1.0,)):
            file = self._file(arm, seed, strength)
            if file.is_file():
                continue
            recipe, parts = open_run(run.root, strength=strength)
            figures = {
                **asked_of(recipe.data.evaluate[0], parts, run.evaluations, f"at-{strength:g}"),
                **self.language.of(parts),
                "steps": cost["steps"],
                "step_seconds": cost["seconds_cpu_training"] / cost["steps"],
                "cpu_seconds": cost["seconds_cpu_training"] + pilot["keep_seconds"],
            }
            write_json(file, figures)

    def _file(self, arm: str, seed: int, strength: float) -> Path:
        return self.out / "runs" / f"{arm},seed={seed}" / f"measured-{strength:g}.json"


def _of(sweep: Sweep, seed: int) -> Sweep:
    """Return the points of a seed."""
    return replace(sweep, points=tuple(p for p in sweep.points if p.recipe.seed == seed))


def _with(point: Point, overrides: Sequence[str]) -> Point:
    """Override a point; what is of `training.keep`, where it has that."""
    mine = [
        each
        for each in overrides
        if point.recipe.training.keep is not None or not each.startswith("training.keep")
    ]
    return replace(point, recipe=load_recipe(point.recipe, mine)) if mine else point


def main() -> None:
    """Run the study, or what is left of it."""
    parser = parser_of(__doc__, quick="every arm, one step, one seed", data="holds alpaca")
    parser.add_argument(
        "--seconds", type=float, help=f"CPU seconds of each arm, {SECONDS:g} by default"
    )
    options = read_options(parser)
    usual = QUICK_SECONDS if options.quick else SECONDS
    seconds = options.seconds or usual
    more = [f"--seconds {seconds:g}"] if seconds != usual else []
    command = command_of("retention_frontier", options, *more)
    take_out(options.out)
    size = QUICK if options.quick else FULL
    study = Study(options.out, size, options.seeds, seconds, options.data, command)
    study.run()
    study.write()


if __name__ == "__main__":
    run_study(main)
