"""LaVIN's ablation on sciencebook: what images, adapters in the image encoder and the router add.

    python -m studies.lavin runs/lavin --data DIR [--quick] [--seeds 0,1,2] [--settings LABEL,...]

Seven settings (studies/lavin.yaml) are trained for the same steps with three seeds and asked the
same new questions. DIR holds `alpaca`, whose answers are the plain text on which is measured what
was kept of the language; without it that column is left out. Finished points are kept, and
OUT/lavin.json, .png and .md (the tables) are written anew after each of them.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studies.command import command_of, parser_of, read_options, run_study, take_out
from studies.lavin_results import SETTINGS, differences, draw, gathered, table
from studies.record import write_study
from varifocal.assemble import Assembly, assemble, open_run
from varifocal.data.loading import load_source
from varifocal.errors import RunError
from varifocal.evaluation.benchmarks.scienceqa import choice_benchmark
from varifocal.evaluation.evaluated_model import EncodedAsker
from varifocal.evaluation.open_answers import items_of
from varifocal.evaluation.readings import rate_texts
from varifocal.evaluation.retention_data import gather_material
from varifocal.evaluation.runner import AskOptions
from varifocal.evaluation.runner import run as run_benchmark
from varifocal.recipe import Recipe
from varifocal.run import RunDirectory
from varifocal.sciencebook import make_sciencebook
from varifocal.sweep import Sweep, load_sweep, run_sweep
from varifocal.writing import write_json, write_text

HERE = Path(__file__).parent
IMAGE_SKILLS = ("circuits", "shapes", "thermometer")
TEXT_SKILLS = ("weather_or_climate", "opposites")
MEASURED = "measured.json"


@dataclass(frozen=True)
class Size:
    """How much is made, trained and asked.

    Args:
        train: questions to learn from, over all skills.
        test: questions to ask.
        texts: plain texts to read.
        overrides: of every point, and of the starts.
    """

    train: int
    test: int
    texts: int
    overrides: tuple[str, ...] = ()
    of_starts: tuple[str, ...] = ()


FULL = Size(train=1000, test=120, texts=16)
QUICK = Size(
    train=100,
    test=10,
    texts=4,
    overrides=("training.max_steps=1", "training.warmup_steps=0", "training.save_steps=1"),
    of_starts=("alignment.steps=10",),
)


class Study:
    """The study in its folder.

    Args:
        out: the folder.
        size: how much.
        seeds: of those in the sweep files.
        data: folder with `alpaca`, or None.
        command: what is told to have made the figures.
        settings: labels of those to train; by default all.
    """

    def __init__(
        self,
        out: Path,
        size: Size,
        seeds: Sequence[int],
        data: Path | None,
        command: str = "",
        settings: Sequence[str] = tuple(SETTINGS),
    ) -> None:
        self.out, self.size, self.seeds, self.data = out.resolve(), size, seeds, data
        self.command, self.settings = command, settings

    def run(self) -> None:
        """Run whatever is missing, seed after seed."""
        self._make_book()
        root = f"data.root={self.out}"
        starts = load_sweep(HERE / "lavin-start.yaml", [root, *self.size.of_starts])
        weights = f"model.connector.weights={self.out}/start/aligned,seed={{seed}}"
        points = load_sweep(HERE / "lavin.yaml", [root, weights, *self.size.overrides])
        self._measure_base(points)
        for seed in self.seeds:
            run_sweep(_of_seed(starts, seed), self.out / "start")
            sweep = _of_seed(points, seed)
            wanted = tuple(point for point in sweep.points if point.setting in self.settings)
            sweep = replace(sweep, points=wanted)
            run_sweep(sweep, self.out / "runs", lambda *told, s=sweep: self._tell(s, *told))

    def write(self) -> None:
        """Write the figures of all points that are done, and draw them."""
        base = json.loads((self.out / "base.json").read_text())
        done = {
            setting: {
                seed: _figures(run)
                for seed in self.seeds
                if ((run := self.out / f"runs/{setting},seed={seed}") / MEASURED).is_file()
            }
            for setting in SETTINGS
        }
        results = gathered(base, done)
        write_study(self.out / "lavin.json", self.command, self.seeds, results)
        draw(results, self.out / "lavin.png")
        write_text(self.out / "lavin.md", f"{table(results)}\n\n{differences(results)}\n")

    def _make_book(self) -> None:
        book = self.out / "sciencebook"
        if not (book / "problems.json").is_file():
            skills = [*IMAGE_SKILLS, *TEXT_SKILLS]
            make_sciencebook(
                book, train=self.size.train, val=0, test=self.size.test, seed=0, skills=skills
            )

    def _tell(self, sweep: Sweep, stage: str, done: int, total: int, note: str = "") -> None:
        """Measure and write after each point of a sweep."""
        if stage != "sweep":
            return
        for point in sweep.points[:done]:
            run = RunDirectory(self.out / "runs" / point.label)
            if not (run.root / MEASURED).is_file():
                recipe, parts = open_run(run.root)
                figures = self._measured(recipe, parts, run)
                trained = json.loads((run.root / "training.json").read_text())
                figures["trained_parameters"] = trained["trained_parameters"]
                figures["tokens"] = trained["tokens"]
                write_json(run.root / MEASURED, figures)
                self.write()
        print(f"{done} of {total} {note}", flush=True)

    def _measure_base(self, points: Sweep) -> None:
        """Measure the language model alone, before anything is trained.

        Raises:
            RunError: it was measured with the plain texts and is now called without, or reversed.
        """
        file = self.out / "base.json"
        if file.is_file():
            had = json.loads(file.read_text())["text_nats"] is not None
            if had != (self.data is not None):
                words = ("with", "without") if had else ("without", "with")
                raise RunError(
                    f"{file} was measured {words[0]} --data, and this call is {words[1]}; call the "
                    "study as before, or choose another OUT"
                )
            return
        recipe = next(each.recipe for each in points.points if each.setting == "text-only")
        run = RunDirectory(self.out / "base")
        write_json(file, self._measured(recipe, assemble(recipe), run))

    def _measured(self, recipe: Recipe, parts: Assembly, run: RunDirectory) -> dict[str, Any]:
        """Ask the new questions, and read plain text with the adapter on."""
        result = run_benchmark(
            choice_benchmark("sciencebook-test", "sciencebook", "likelihood", 64),
            items_of(list(load_source(recipe.data.evaluate[0]))),
            EncodedAsker(parts),
            run.evaluations,
            options=AskOptions(blind=parts.load_images is None, token_budget=4096),
        )
        return {
            "accuracy": {one.name: one.value for one in result.measures},
            "questions": {one.name: one.count for one in result.measures},
            "chance": {one.name: one.chance for one in result.measures},
            "text_nats": self._text_nats(recipe, parts),
        }

    def _text_nats(self, recipe: Recipe, parts: Assembly) -> float | None:
        """Nats a token of plain text that was in no training data; None without texts."""
        if self.data is None:
            return None
        texts = gather_material(recipe, parts.encoder, self.data, None, self.size.texts).texts
        parts.model.eval()
        ratings = rate_texts(parts.model, texts)
        return -sum(rating.score for rating in ratings) / sum(rating.tokens for rating in ratings)


def _figures(run: Path) -> dict[str, Any]:
    """What was measured of a run, and its processor seconds, those before a resumption too."""
    cost = json.loads(RunDirectory(run).cost.read_text())
    return {
        **json.loads((run / MEASURED).read_text()),
        "cpu_seconds": round(cost["seconds_cpu_total"], 1),
    }


def _of_seed(sweep: Sweep, seed: int) -> Sweep:
    return replace(sweep, points=tuple(p for p in sweep.points if p.recipe.seed == seed))


def _settings_of(labels: str) -> tuple[str, ...]:
    """Read labels of settings, in the study's order.

    >>> _settings_of("router,images")
    ('images', 'router')
    """
    wanted = labels.split(",")
    if unknown := [label for label in wanted if label not in SETTINGS]:
        raise argparse.ArgumentTypeError(
            f"no setting '{unknown[0]}'; there are {', '.join(SETTINGS)}"
        )
    return tuple(label for label in SETTINGS if label in wanted)


def main() -> None:
    """Run the study, or what is left of it."""
    parser = parser_of(__doc__, quick="every setting, one step, one seed", data="holds alpaca")
    parser.add_argument("--settings", type=_settings_of, help="labels; all by default")
    options = read_options(parser)
    settings = options.settings or tuple(SETTINGS)
    more = [] if options.settings is None else [f"--settings {','.join(settings)}"]
    size, command = QUICK if options.quick else FULL, command_of("lavin", options, *more)
    take_out(options.out)
    study = Study(options.out, size, options.seeds, options.data, command, settings)
    study.run()
    study.write()


if __name__ == "__main__":
    run_study(main)
