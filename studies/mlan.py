"""Does language instruction carry over to images? The nine shares of MLAN's mixing table.

    python -m studies.mlan runs/mlan --data DIR    # DIR holds scienceqa-text and nlvr

A seed's connector first learns to describe images (stage 1). Then each share of language trains
on equally many rows of the trained skills (stage 2) and is scored, half way and at its end, on new
questions of these skills and on skills that it was never asked about, in both modalities. Finished
points are kept; after each one `mlan.json` and `mlan.png` are written again. `--quick` takes three
shares, a few steps and one seed, `--rows 64` an eighth of the rows. What came out:
docs/studies/mlan.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from studies.command import check_data, command_of, parser_of, read_options, run_study, take_out
from studies.mlan_figures import draw, print_table
from studies.mlan_results import collect
from studies.record import write_study
from varifocal.assemble import open_model
from varifocal.evaluation.sources import about_run, evaluate_recipe
from varifocal.recipe import FileSection, SourceSection
from varifocal.run import RunDirectory
from varifocal.sciencebook import SKILLS, compose, make_sciencebook
from varifocal.sweep import Point, Sweep, load_sweep, run_sweep

HERE = Path(__file__).parent
FILES = {"stage1": HERE / "mlan-stage1.yaml", "stage2": HERE / "mlan.yaml"}
PARTS = ("trained-language", "trained-vision", "unseen-language", "unseen-vision")
ASKED_REAL = (0.0, 0.5, 1.0)
"""Shares whose ends are asked real questions, too."""
REAL = ("scienceqa-text", "nlvr/dev.jsonl")
"""What is read of the real questions' folder."""
REAL_DONE = "dev.json"
"""Scores on NLVR, the last of the real sources."""


@dataclass(frozen=True)
class Size:
    """How much is made, trained and asked.

    Args:
        train: questions a trained skill; as many captions an image skill.
        test: questions that are scored, a skill of each part.
        overrides: of each stage's sweep.
        shares: of language that are trained; None takes the sweep's nine.
        real: questions of each real source.
    """

    train: int
    test: Mapping[str, int]
    overrides: Mapping[str, Mapping[str, Any]]
    shares: Sequence[float] | None
    real: int


ROWS = 512
"""Questions that every share trains on."""
DESCRIBED = 15
"""Images a skill that stage 1 has at least."""
QUESTIONS_A_ROW = 3.5
"""What fits into a packed row, and so into a step: about half of them is half way."""
QUICK = Size(
    train=3,
    test=dict.fromkeys(PARTS, 1),
    overrides={
        "stage1": {"alignment.steps": 10, "training.max_steps": 1},
        "stage2": {"data.mixture.total": 12, "training.save_steps": 1},
    },
    shares=(0.0, 0.5, 1.0),
    real=4,
)


def with_rows(rows: int) -> Size:
    """The nine shares with so many questions each, scored about half way and at the end.

    A trained skill has as many questions as the pure shares need without asking one twice.

    >>> with_rows(512).train, dict(with_rows(512).overrides["stage2"])
    (64, {'data.mixture.total': 512, 'training.save_steps': 73})
    """
    fewest = min(len(names) for part, names in skills().items() if part.startswith("trained"))
    half = max(1, int(rows / QUESTIONS_A_ROW / 2))
    return Size(
        train=max(DESCRIBED, -(-rows // fewest)),
        test={part: 6 if part.endswith("vision") else 4 for part in PARTS},
        overrides={
            "stage1": {},
            "stage2": {"data.mixture.total": rows, "training.save_steps": half},
        },
        shares=None,
        real=24,
    )


def main() -> None:
    """Run what is missing, then write, draw and print all."""
    quick = "three shares, a few steps, one seed"
    parser = parser_of(__doc__, quick=quick, data="holds scienceqa-text and nlvr")
    parser.add_argument("--rows", type=int, help=f"that every share trains on; {ROWS} by default")
    options = read_options(parser)
    if options.quick and options.rows is not None:
        parser.error("--quick has rows of its own; leave out one of --quick and --rows")
    if options.rows is not None and options.rows < 1:
        parser.error(f"--rows {options.rows}: a share trains on one at least")
    if options.data is None:
        print("without --data no real questions are asked: sciencebook's alone")
    check_data(options.data, *REAL)
    rows = [] if options.rows is None else [f"--rows {options.rows}"]
    study = Study(
        options.out,
        QUICK if options.quick else with_rows(options.rows or ROWS),
        options.seeds,
        options.data,
        command_of("mlan", options, *rows),
    )
    take_out(options.out)
    make_books(study.data, study.size)
    for seed in study.seeds:
        for stage in FILES:
            study.run(stage, [seed])
    for stage in FILES:
        study.run(stage, study.seeds)  # all is done: its report alone
    study.ask_real()
    print_table(study.write())


@dataclass(frozen=True)
class Study:
    """One call of the study.

    Args:
        out: where everything goes.
        size: how much.
        seeds: in the order in which they run.
        real: folder of the real sources; None asks none of them.
        command: what is told to have made the figures.
    """

    out: Path
    size: Size
    seeds: Sequence[int]
    real: Path | None
    command: str = ""

    @property
    def data(self) -> Path:
        """Where the made questions are."""
        return self.out.resolve() / "data"

    def run(self, stage: str, seeds: Sequence[int]) -> None:
        """Train and score the points of a stage that are not done."""
        run_sweep(self.sweep(stage, seeds), self.out / stage, progress=self._tell)

    def sweep(self, stage: str, seeds: Sequence[int]) -> Sweep:
        """Read a stage's sweep, with what this call asks for."""
        overrides: dict[str, Any] = {
            "data.root": str(self.data),
            **self.size.overrides[stage],
        }
        if stage == "stage2":
            first = self.out.resolve() / "stage1" / "seed={seed}"
            overrides["model.connector.weights"] = str(first)
        sweep = load_sweep(FILES[stage], overrides)
        points = (point for point in sweep.points if point.recipe.seed in seeds)
        if stage == "stage2" and self.size.shares is not None:
            points = (point for point in points if share_of(point) in self.size.shares)
        return replace(sweep, points=tuple(points))

    def ask_real(self) -> None:
        """Score each seed's stage 1 and the ends of `ASKED_REAL` on real questions."""
        runs = [
            self.out / "stage1" / point.label for point in self.sweep("stage1", self.seeds).points
        ]
        chosen = (
            one for one in self.sweep("stage2", self.seeds).points if share_of(one) in ASKED_REAL
        )
        runs += [self.out / "stage2" / point.label for point in chosen]
        for run in map(RunDirectory, runs):
            if self.real is not None and not (run.evaluations / REAL_DONE).is_file():
                recipe, parts = open_model(run.root)  # real questions may be longer than made ones
                sources = real_sources(self.real.resolve(), self.size.real)
                about = about_run(run.root, recipe, parts)
                for _ in evaluate_recipe(recipe, parts, run.evaluations, about, sources=sources):
                    self.write()

    def write(self) -> dict[str, Any]:
        """Write `mlan.json` and the figure from the points that are done."""
        results = collect(self.out, self.seeds)
        write_study(self.out / "mlan.json", self.command, self.seeds, results)
        if results["shares"]:
            draw(results, self.out / "mlan.png")
        return results

    def _tell(self, stage: str, done: int, total: int, note: str = "") -> None:
        if stage == "sweep" and (self.out / "stage2").is_dir():
            self.write()
        if done == total or stage == "sweep":
            print(stage, done, total, note, flush=True)


def share_of(point: Point) -> float:
    """The share of language that a point trains on."""
    share = point.recipe.data.mixture.language_fraction
    assert share is not None  # the sweep's grid sets it
    return share


def is_counted(name: str) -> bool:
    """Tell whether a skill's descriptions say the right answer and none of the others.

    The paper takes a connector that describes well for granted, and asks what instructions add; so
    the vision skills are those in which answering is what is left to learn.
    """
    questions = (compose(SKILLS[name], "train", number, 0)[1] for number in range(20))
    return all(
        [choice for choice in one.choices if words(choice) in words(one.caption)] == [one.answer]
        for one in questions
    )


def words(text: str) -> str:
    """Part a text into words, so that one in another shows.

    >>> words("on") in words("One red box.")
    False
    """
    return f" {' '.join(re.findall('[a-z0-9]+', text.lower()))} "


def skills() -> dict[str, list[str]]:
    """Name the skills of each part: every second one is trained, the others stay unseen."""
    vision = [name for name, one in SKILLS.items() if one.needs == "image" and is_counted(name)]
    language = [name for name, one in SKILLS.items() if one.needs != "image"]
    return {
        "trained-language": language[::2],
        "trained-vision": vision[::2],
        "unseen-language": language[1::2],
        "unseen-vision": vision[1::2],
    }


def make_books(data: Path, size: Size) -> None:
    """Make the questions, if they are not there yet; the same for all seeds."""
    for part, names in skills().items():
        if (data / part / "problems.json").is_file():
            continue
        train, asked = (len(names) * count for count in (size.train, size.test[part]))
        make_sciencebook(data / part, train=train, val=0, test=asked, seed=0, skills=names)


def real_sources(folder: Path, count: int) -> list[SourceSection]:
    """Name so many real questions of each modality, of a kind that no trained skill has.

    Args:
        folder: holds `scienceqa-text` and `nlvr`.
        count: of each.
    """
    text, images = (str(folder / name) for name in REAL)
    columns = {"question": "True or false? {sentence}", "choices": "true|false", "answer": "label"}
    return [
        FileSection(path=text, format="scienceqa", split="val", max_examples=count),
        FileSection(path=images, columns=columns, max_examples=count),
    ]


if __name__ == "__main__":
    run_study(main)
