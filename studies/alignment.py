"""Word alignment of the connector: against none, and against a caption stage.

Three sweeps a seed, in this order: the stages (alignment-stages.yaml), sciencebook after each
(alignment-book.yaml), and, where `--data` holds nlvr/, NLVR after them (alignment-nlvr.yaml).

    python -m studies.alignment OUT --data ../shared/data

Finished points are kept, so a stopped study goes on; JSON and figure (OUT/alignment.json and .png)
are written anew after every sweep of a seed, and the tables are printed in the end. OUT/words.png
shows which visual tokens say which words. docs/studies/alignment.md says how to read all of them.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from studies.alignment_figures import curves
from studies.alignment_results import TASKS, collect
from studies.alignment_tables import tables
from studies.command import check_data, command_of, parser_of, read_options, run_study, take_out
from studies.record import write_study
from varifocal.analysis.words import words_of_run
from varifocal.data.loading import load_source
from varifocal.recipe import FileSection, Recipe
from varifocal.sciencebook import make_sciencebook
from varifocal.sweep import Sweep, load_sweep, run_sweep

HERE = Path(__file__).parent
SKILLS = ("circuits", "shapes", "thermometer")
TRAIN, TEST = 480, 90
NLVR_FILES = ("nlvr/train.jsonl", "nlvr/dev.jsonl")
QUICK_TRAIN, QUICK_TEST = 64, 16
QUICK_NLVR = ("data.train[0].max_examples=24", "data.evaluate[0].max_examples=12")
QUICK_STEPS, QUICK_ALIGNMENT_STEPS = 2, 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write down what is there after every sweep."""
    quick = "a few steps on a few questions, one seed"
    options = read_options(parser_of(__doc__, quick=quick, data="holds nlvr"), arguments)
    seeds = options.seeds
    check_data(options.data, *NLVR_FILES)
    nlvr = options.data and (options.data / "nlvr").resolve()
    take_out(options.out)
    prepare(options.out, options.quick, nlvr)
    os.chdir(options.out)  # the sweeps' paths start there
    here = Path()
    for name, sweep in sweeps(seeds, options.quick, with_nlvr=nlvr is not None):
        run_sweep(sweep, here / name, _tell)
        if name == "stages":
            words_image(here, sweep)
        write(here, command_of("alignment", options), seeds)
    print(tables(collect(here, seeds)))
    if nlvr is None:
        print("left out: NLVR; give its folder with --data")


def prepare(out: Path, quick: bool, nlvr: Path | None) -> None:
    """Make the questions, the same for all seeds, and put NLVR next to them."""
    if not (out / "sciencebook" / "problems.json").is_file():
        train, test = (QUICK_TRAIN, QUICK_TEST) if quick else (TRAIN, TEST)
        make_sciencebook(
            out / "sciencebook", train=train, val=0, test=test, seed=0, skills=list(SKILLS)
        )
    for name in ("nlvr-data", "nlvr"):  # the second, an older call's, led the runs into the data
        if (out / name).is_symlink():
            (out / name).unlink()
    if nlvr is not None:
        (out / "nlvr-data").symlink_to(nlvr)


def sweeps(seeds: Sequence[int], quick: bool, *, with_nlvr: bool) -> Iterator[tuple[str, Sweep]]:
    """Yield the sweeps in their order, each cut to one seed."""
    for seed in seeds:
        for name in ("stages", "book", "nlvr")[: 3 if with_nlvr else 2]:
            few = QUICK_NLVR if quick and name == "nlvr" else ()
            sweep = load_sweep(HERE / f"alignment-{name}.yaml", ["data.root=.", *few])
            points = [point for point in sweep.points if point.recipe.seed == seed]
            if quick:
                points = [replace(point, recipe=shortened(point.recipe)) for point in points]
            yield name, replace(sweep, points=tuple(points))


def shortened(recipe: Recipe) -> Recipe:
    """The recipe with a few steps; a sweep's own overrides give way to those of its points."""
    alignment = recipe.alignment
    if alignment is not None:
        fewer = min(alignment.steps, QUICK_ALIGNMENT_STEPS)
        alignment = alignment.model_copy(update={"steps": fewer})
    steps = {"max_steps": min(recipe.training.max_steps, QUICK_STEPS), "save_steps": 1}
    return recipe.model_copy(
        update={
            "alignment": alignment,
            "training": recipe.training.model_copy(update=steps),
        }
    )


def words_image(out: Path, sweep: Sweep) -> None:
    """Draw which visual tokens say which words, once, on the first new question of each skill."""
    if (out / "words.png").is_file():
        return
    source = FileSection(path="sciencebook", format="scienceqa", split="test")
    first: dict[str, Path] = {}
    for example in load_source(source):
        place = example.images[0].path
        assert place is not None  # sciencebook's images are files
        first.setdefault(example.tags["skill"], place)
    aligned = next(point.label for point in sweep.points if point.setting == "words")
    words_of_run(out / "stages" / aligned, images=list(first.values()), out=out)


def write(out: Path, called: str, seeds: Sequence[int]) -> None:
    """Write the JSON and the figure from what is there."""
    results = collect(out, seeds)
    write_study(out / "alignment.json", called, seeds, results)
    if any(results[task] for task in TASKS):
        curves(results, out / "alignment.png")


def _tell(stage: str, done: int, total: int, note: str = "") -> None:
    if done == total or (stage in ("sweep", "train") and done):
        print(stage, done, total, note, flush=True)


if __name__ == "__main__":
    run_study(main)
