"""Does an instance's own choice of factors keep tasks out of each other's way? LoRA and MixLoRA.

    python -m studies.mixlora runs/mixlora --data DIR    # DIR holds nlvr and fashion_mnist

Each seed aligns one connector to words, then every setting of `mixlora.yaml` starts from it and
reads the same rows in the same order; all are scored on the same new questions. Some runs are
looked into: which tasks conflict, before the first step and after the last, and which factors which
task uses. The settings that the paper's claims rest on are run with all seeds before the others
are. Finished points are kept; `mixlora.json` is written again after each, the figures after a seed.
`--quick` takes two settings and a few steps. What came out: docs/studies/mixlora.md.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studies.command import command_of, parser_of, read_options, run_study, take_out
from studies.mixlora_figures import draw_all, print_tables
from studies.mixlora_results import collect
from studies.mixlora_tasks import Sizes, make_tasks
from studies.record import write_study
from varifocal.analysis.run_analysis import TaskSample, interference_of_run, routing_of_run
from varifocal.errors import RunError
from varifocal.recipe import Recipe, load_recipe
from varifocal.run import RunDirectory
from varifocal.sweep import DONE, Sweep, check_same_point, load_sweep, run_sweep
from varifocal.training.train import run_training
from varifocal.writing import claim_folder

SWEEP = Path(__file__).parent / "mixlora.yaml"
NOT_TRAINED = {"training.max_steps": 0}
"""A run's start: what its connector's alignment or weights leave."""

TURNS = (
    ("lora-r16", "r4-weighted", "r4-random"),
    ("r4-weighted-independent",),
    ("lora-r4",),
    ("lora-r32", "r2-weighted"),
    None,
)
"""Settings that every seed runs before the next ones come; None: all that are left."""

INTERFERENCE = ("lora-r16", "r4-weighted", "r4-hard")
BEFORE = ("lora-r16", "r4-weighted")
ROUTING = ("r4-weighted", "r4-hard")


@dataclass(frozen=True)
class Size:
    """How much is made, trained and looked at.

    Args:
        tasks: questions of each task.
        looked_at: examples of each task for interference and for routing.
        overrides: of every point, next to the sweep's own.
        turns: see `TURNS`.
    """

    tasks: Sizes
    looked_at: int
    overrides: dict[str, Any]
    turns: Sequence[Sequence[str] | None]


FULL = Size(Sizes(train=36, test=24, described=120), 8, {}, TURNS)
QUICK = Size(
    Sizes(train=4, test=2, described=8),
    2,
    {"training.max_steps": 2, "training.warmup_steps": 0, "training.logging_steps": 1},
    (("lora-r16", "r4-weighted"),),
)
NUM_GROUPS = 3
"""Groups of layers whose interference is measured alone."""


def main() -> None:
    """Run what is missing, then write and draw all."""
    quick = "two settings, a few steps, one seed"
    options = read_options(parser_of(__doc__, quick=quick, data="holds nlvr and fashion_mnist"))
    seeds = options.seeds
    if options.data is None:
        print("without --data NLVR and Fashion-MNIST are left out: four tasks of sciencebook")
    size, command = QUICK if options.quick else FULL, command_of("mixlora", options)
    take_out(options.out)
    study = Study(options.out, size, seeds, options.data, options.quick, command)
    for settings in study.size.turns:
        for seed in seeds:
            study.run(seed, settings)
            draw_all(study.write(), options.out)
    for seed in seeds:
        study.look_before(seed)
    results = study.write()
    draw_all(results, options.out)
    print_tables(results)


@dataclass(frozen=True)
class Study:
    """One call of the study.

    Args:
        out: where everything goes.
        size: how much.
        seeds: in the order in which they run.
        data: holds NLVR and Fashion-MNIST; None leaves them out.
        quick: which of the sizes this is.
        command: what is told to have made the figures.
    """

    out: Path
    size: Size
    seeds: Sequence[int]
    data: Path | None
    quick: bool
    command: str = ""

    def run(self, seed: int, settings: Sequence[str] | None) -> None:
        """Train, score and look into those of the settings that are not done yet.

        Args:
            seed: of the connector, the rows' order and the tuner's start.
            settings: their labels; None takes all.

        Raises:
            RunError: what is done was done with other settings than this call's.
        """
        folder, shared = self.folder(seed), self._shared(seed)
        for sweep in one_by_one(shared, settings):
            run = folder / sweep.points[0].label
            check_same_point(sweep.points[0], RunDirectory(run))
            if not (run / DONE).is_file():  # else only its report would be written again
                run_sweep(sweep, folder, progress=_tell)
            self._look(run)
            self.write()

    def look_before(self, seed: int) -> None:
        """Measure interference where no step is taken yet."""
        for sweep in one_by_one({**self._shared(seed), **NOT_TRAINED}, BEFORE):
            point = sweep.points[0]
            start = self.folder(seed) / "start" / point.label
            if not _file(start, "interference").is_file():
                run_training(point.recipe, start, resume=start.exists(), progress=_tell)
                self._interference(start)

    def _shared(self, seed: int) -> dict[str, Any]:
        """Make the tasks and the seed's connector, and return what all its recipes share."""
        shared = {**make_tasks(self.out / "tasks", self.size.tasks, self.data), "seed": seed}
        claim_folder(self.folder(seed))  # the sweep takes no folder that is not marked as ours
        connector = self.folder(seed) / "connector"
        self._align(connector, shared)
        weights = {"model.connector.weights": str(connector.resolve())}
        return {**shared, **weights, **self.size.overrides}

    def folder(self, seed: int) -> Path:
        """Where a seed's runs stand."""
        return self.out / f"seed{seed}"

    def _align(self, run: Path, shared: dict[str, Any]) -> None:
        """Align the seed's connector to words; everything else starts from it."""
        steps = {"alignment.steps": 10 if self.quick else 600}
        recipe = load_recipe("demo", {**shared, **steps, **NOT_TRAINED, "tuner": {"type": "none"}})
        if (run / "training.json").is_file():
            _check_steps(RunDirectory(run), recipe)
            return
        run_training(recipe, run, resume=run.exists(), progress=_tell)

    def _look(self, run: Path) -> None:
        """Measure what is measured on this setting, where it is not measured yet."""
        if run.name in INTERFERENCE and not _file(run, "interference").is_file():
            self._interference(run)
        if run.name in ROUTING and not _file(run, "routing").is_file():
            routing_of_run(run, TaskSample(per_task=self.size.looked_at))

    def _interference(self, run: Path) -> None:
        interference_of_run(run, TaskSample(per_task=self.size.looked_at), num_groups=NUM_GROUPS)

    def write(self) -> dict[str, Any]:
        """Write `mixlora.json` from all that is there."""
        folders = {seed: self.folder(seed) for seed in self.seeds}
        results = collect(folders)
        write_study(self.out / "mixlora.json", self.command, self.seeds, results)
        return results


def one_by_one(overrides: Mapping[str, Any], only: Sequence[str] | None) -> Iterator[Sweep]:
    """Yield a sweep of one point for each setting, in the sweep's order."""
    sweep = load_sweep(SWEEP, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])
    for point in sweep.points:
        if only is None or point.label in only:
            yield replace(sweep, points=(point,))


def _check_steps(run: RunDirectory, recipe: Recipe) -> None:
    """Refuse a connector of another alignment; its recipe may differ where nothing is aligned."""
    pages = (load_recipe(run.recipe, check_paths=False), recipe)
    before, now = (page.alignment and page.alignment.steps for page in pages)
    if before != now:
        raise RunError(
            f"{run.root} holds a connector of {before} alignment steps, and this call's has "
            f"{now}; call the study as before, or choose another OUT"
        )


def _file(run: Path, analysis: str) -> Path:
    return RunDirectory(run).analysis / f"{analysis}.json"


def _tell(stage: str, done: int, total: int, note: str = "") -> None:
    if done == total:
        print(stage, total, note, flush=True)


if __name__ == "__main__":
    run_study(main)
