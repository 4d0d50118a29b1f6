"""What is gained against what is lost of the language: replay, the base's own answers, and others.

    python -m studies.retention_frontier OUT [--quick] [--seeds 0,1,2] [--seconds 240] [--data DIR]

Every arm of retention-frontier.yaml trains for the same CPU seconds: a pilot of a few steps says
what a step and the base's answers cost, and so how many steps that makes. All start from a seed's
aligned connector and are asked the same new questions (the demo's columns IMG, TXT and NO). What
the language lost is read from prose that no run saw, from the base's answers to instructions and
from its answers after an image; with `--data DIR`, prose and instructions are `DIR/alpaca`'s. Three
arms are measured at several strengths, too. Finished arms are kept; retention-frontier.json, .png
and .md in OUT are written anew after each of them.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from studies.command import command_of, parser_of, read_options, run_study, take_out
from studies.record import write_study
from studies.retention_frontier_results import ARMS, STRENGTHS, draw, gathered, table
from varifocal.assemble import Assembly, assemble, open_run
from varifocal.data.loading import load_source
from varifocal.demo import PICTURE_SKILLS, TEXT_SKILLS
from varifocal.errors import RunError
from varifocal.evaluation.benchmarks.scienceqa import choice_benchmark
from varifocal.evaluation.evaluated_model import EncodedAsker, without_images
from varifocal.evaluation.generation import evaluation_mode
from varifocal.evaluation.likelihood import Question
from varifocal.evaluation.open_answers import items_of
from varifocal.evaluation.readings import Reading, after_images, greedy_continuations, read
from varifocal.evaluation.retention_data import Material, gather_material
from varifocal.evaluation.runner import AskOptions
from varifocal.evaluation.runner import run as run_benchmark
from varifocal.models.decoding import stop_ids
from varifocal.recipe import Recipe, load_recipe
from varifocal.run import RunDirectory
from varifocal.sciencebook import make_sciencebook
from varifocal.sweep import Point, Sweep, load_sweep, run_sweep
from varifocal.training.train import train
from varifocal.writing import write_json, write_text

HERE = Path(__file__).parent
PILOT_SEED = 1000
SECONDS = 240.0
"""CPU seconds of training and of the base's answers that every arm gets."""


@dataclass(frozen=True)
class Size:
    """How much is made, trained and asked.

    Args:
        train: questions to learn from, over all skills.
        test: questions to ask.
        texts: paragraphs, instructions and described images, of each so many.
        pilot_steps: that the cost of a step is measured on.
        overrides: of every point, and of the starts.
        of_starts: of the starts.
        of_keep: of the points with `training.keep`.
    """

    train: int
    test: int
    texts: int
    pilot_steps: int
    overrides: tuple[str, ...] = ()
    of_starts: tuple[str, ...] = ()
    of_keep: tuple[str, ...] = ()


FULL = Size(train=1650, test=220, texts=48, pilot_steps=6)
QUICK = Size(
    train=110,
    test=11,
    texts=2,
    pilot_steps=1,
    overrides=("training.per_device_train_batch_size=1", "training.warmup_steps=0"),
    of_starts=("alignment.steps=10",),
    of_keep=("training.keep.num_examples=2", "training.keep.max_new_tokens=4"),
)
QUICK_SECONDS = 0.01
"""So few that every arm takes one step."""


@dataclass(frozen=True)
class Language:
    """What is read to see what was lost, and what the base says to it.

    Attributes:
        material: paragraphs, instructions and described images.
        written: the base's answers to the instructions.
        described: its answers to the descriptions.
        figures: of the base itself.
    """

    material: Material
    written: list[Question]
    described: list[Question]
    figures: dict[str, Any]


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
        self._make_book()
        self._write_base()
        given = [*self._root, *self.size.of_starts]
        starts = load_sweep(HERE / "retention-frontier-start.yaml", given)
        for seed in self.seeds:
            run_sweep(_of(starts, seed), self.out / "start")
            for arm in ARMS:
                steps = self._steps(arm)
                sweep = _of(self._points(arm, steps), seed)
                run_sweep(sweep, self.out / "runs")
                self._measure(arm, seed)
                self.write()
                print(f"seed {seed}: {arm}, {steps} steps", flush=True)

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
        results = gathered(base, done, json.loads((self.out / "pilot.json").read_text()))
        results["cpu_seconds_of_an_arm"] = self.seconds
        write_study(self.out / "retention-frontier.json", self.command, self.seeds, results)
        draw(results, self.out / "retention-frontier.png")
        write_text(self.out / "retention-frontier.md", f"{table(results)}\n")

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
            skills = [*PICTURE_SKILLS, *TEXT_SKILLS]
            make_sciencebook(
                book, train=self.size.train, val=0, test=self.size.test, seed=0, skills=skills
            )

    def _points(self, arm: str, steps: int) -> Sweep:
        """Read an arm's points of all seeds, with its steps."""
        weights = f"model.connector.weights={self.out}/start/aligned,seed={{seed}}"
        given = [*self._root, weights, *self.size.overrides, f"training.max_steps={steps}"]
        sweep = load_sweep(HERE / "retention-frontier.yaml", given)
        points = [point for point in sweep.points if point.setting == arm]
        if self.size.of_keep:
            points = [_with(point, self.size.of_keep) for point in points]
        return replace(sweep, points=tuple(points))

    def _steps(self, arm: str) -> int:
        """Say how many steps of an arm its seconds hold, by a pilot whose cost is written down."""
        file = self.out / "pilot.json"
        pilots = json.loads(file.read_text()) if file.is_file() else {}
        if arm not in pilots:
            sweep = _of(self._points(arm, self.size.pilot_steps), self.seeds[0])
            # Of a seed of its own, so that no other arm has left the base's answers in the cache.
            page = sweep.points[0].recipe.model_copy(update={"seed": PILOT_SEED + len(pilots)})
            run = RunDirectory(self.out / "pilot" / arm)
            cost = train(page, run.root, resume=run.recipe.exists()).cost
            pilots[arm] = {
                "step_seconds": cost["seconds_cpu_training"] / cost["steps"],
                "keep_seconds": cost["seconds_cpu_keep"],
            }
            write_json(file, pilots)
        left = self.seconds - pilots[arm]["keep_seconds"]
        return max(int(left / pilots[arm]["step_seconds"]), 1)

    @cached_property
    def language(self) -> Language:
        """Let the base read and write, before anything is trained."""
        recipe = load_sweep(HERE / "retention-frontier-start.yaml", self._root).points[0].recipe
        alone = recipe.model.model_copy(update={"vision_tower": None, "connector": None})
        data = recipe.data.model_copy(update={"overflow": "truncate_prompt"})
        base = assemble(recipe.model_copy(update={"model": alone, "data": data}))
        material = gather_material(recipe, base.encoder, self.data, None, self.size.texts)
        written = greedy_continuations(base.model, base.encoder, material.instructions, _quiet)
        about = [without_images(scene) for scene in material.scenes]
        prompts = base.encoder.for_prompts(None)
        described = greedy_continuations(base.model, prompts, about, _quiet)
        found = Language(material, written, described, {})
        figures = {
            **self._asked(recipe, base, RunDirectory(self.out / "base"), "start"),
            **_read(base, found, described),
            "sources": dict(material.sources),
        }
        return replace(found, figures=figures)

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
            scenes = after_images(
                parts.encoder, self.language.material.scenes, self.language.described
            )
            figures = {
                **self._asked(recipe, parts, run, f"at-{strength:g}"),
                **_read(parts, self.language, scenes),
                "steps": cost["steps"],
                "cpu_seconds": cost["seconds_cpu_training"] + pilot["keep_seconds"],
            }
            write_json(file, figures)

    def _file(self, arm: str, seed: int, strength: float) -> Path:
        return self.out / "runs" / f"{arm},seed={seed}" / f"measured-{strength:g}.json"

    def _asked(
        self, recipe: Recipe, parts: Assembly, run: RunDirectory, name: str
    ) -> dict[str, Any]:
        """Ask the new questions, without their images where the model takes none."""
        result = run_benchmark(
            choice_benchmark(f"sciencebook-{name}", "sciencebook", "likelihood", 64),
            items_of(list(load_source(recipe.data.evaluate[0]))),
            EncodedAsker(parts),
            run.evaluations,
            way=AskOptions(blind=parts.load_images is None, token_budget=4096),
        )
        return {
            "accuracy": {one.name: one.value for one in result.measures},
            "questions": {one.name: one.count for one in result.measures},
        }


def _read(parts: Assembly, language: Language, scenes: Sequence[Question]) -> dict[str, Any]:
    """Read prose, the base's answers, and its answers after an image."""
    ends = stop_ids(parts.model, parts.encoder.end_of_turn_id)
    with evaluation_mode(parts.model):
        texts = read(parts.model, language.material.texts)
        answers = read(parts.model, language.written, ends=ends)
        after = read(parts.model, scenes, parts.load_images, ends=ends)
    return {
        "prose_nats": _nats(texts),
        "after_image_nats": _nats(after),
        "answers_same": 100 * sum(one.hits == one.tokens for one in answers) / len(answers),
    }


def _nats(readings: Sequence[Reading]) -> float:
    return sum(one.nats for one in readings) / sum(one.tokens for one in readings)


def _of(sweep: Sweep, seed: int) -> Sweep:
    """Return the points of a seed."""
    return replace(sweep, points=tuple(p for p in sweep.points if p.recipe.seed == seed))


def _with(point: Point, overrides: Sequence[str]) -> Point:
    """Override a point that has `training.keep`."""
    if point.recipe.training.keep is None:
        return point
    return replace(point, recipe=load_recipe(point.recipe, list(overrides)))


def _quiet(*_: Any) -> None:
    """Report to nobody."""


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
