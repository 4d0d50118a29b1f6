"""Does sight need the text route? Questions with an image, text route trained or the base's.

    python -m studies.text_route OUT [--quick] [--seconds 300]

Two data sets: sciencebook, over five seeds, and easy-VQA (PyPI `easy-vqa`, which must be installed)
with sciencebook's text skills, over three, from connectors aligned to its own images. MMA trains
with its text route and with `text_route: base` from a seed's aligned connector, for equally many
steps, and is asked questions with an image alone. OUT may be the folder of
studies.retention_frontier: what it has aligned and tuned is not done again.
text-route.json and .md in OUT are written anew after each run.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.command import command_of, parser_of, read_options, run_study, take_out
from studies.easy_vqa import installed, write_easy_vqa
from studies.record import over_seeds, write_study
from studies.retention_frontier import FULL, QUICK, QUICK_SECONDS, Size, Study
from studies.retention_frontier_measures import asked_of
from studies.retention_frontier_results import in_brackets, row
from varifocal.assemble import open_run
from varifocal.demo import IMAGE_SKILLS
from varifocal.sciencebook import SKILLS, make_sciencebook
from varifocal.writing import write_json, write_text

ARMS = {"mma": "trained", "mma-base-text": "base"}
"""Arm of the frontier -> its text route."""
SECONDS = 300.0
"""CPU seconds of each run: three times the frontier's, after which both routes have learned."""
SEEDS = {"sciencebook": (0, 1, 2, 3, 4), "easy-vqa": (0, 1, 2)}
ASKED = {"sciencebook": 40, "easy-vqa": 200}
"""New questions with an image: of each skill, and in all."""
ALIGNED = 300
"""Steps of easy-VQA's connectors; its descriptions have few words."""
TRAINED = 600
"""Questions of easy-VQA, about as many as sciencebook's text skills have with three to four."""


@dataclass(frozen=True)
class Route:
    """The study in its folder.

    Args:
        study: trains, and has data, connectors and rates.
        small: a hundredth of the questions, and one seed.
    """

    study: Study
    small: bool = False

    def run(self, data: Path) -> None:
        """Run whatever is missing, seed after seed.

        Args:
            data: of the installed package.
        """
        self.study.prepare()
        self._make_questions(data)
        for name, seeds in SEEDS.items():
            for seed in seeds[: 1 if self.small else None]:
                self._align(name, seed)
                for arm in ARMS:
                    self._measure(name, arm, seed)
                    self.write()

    def write(self) -> None:
        """Write the figures of all runs that are done."""
        done = {
            name: {
                route: {
                    seed: json.loads(file.read_text())
                    for seed in seeds
                    if (file := self._file(name, arm, seed)).is_file()
                }
                for arm, route in ARMS.items()
            }
            for name, seeds in SEEDS.items()
        }
        results = {"sets": gathered(done), "cpu_seconds_of_a_run": self.study.seconds}
        out = self.study.out
        write_study(out / "text-route.json", self.study.command, SEEDS["sciencebook"], results)
        write_text(out / "text-route.md", f"{table(results)}\n")

    def _make_questions(self, data: Path) -> None:
        """Write the questions that are asked, and easy-VQA's that are trained on."""
        out, share = self.study.out, 0.01 if self.small else 1
        counts = {"train": int(TRAINED * share), "test": int(ASKED["easy-vqa"] * share)}
        write_easy_vqa(data, out / "easy-vqa", counts)
        if not (out / "asked" / "problems.json").is_file():
            skills = [skill for skill in IMAGE_SKILLS if SKILLS[skill].title in self._titles]
            count = max(int(ASKED["sciencebook"] * share), 1) * len(skills)
            make_sciencebook(out / "asked", train=0, val=0, test=count, seed=1, skills=skills)

    @property
    def _titles(self) -> Sequence[str]:
        """The skills that the frontier's arms learn."""
        (source,) = self.study.recipe.data.train
        return source.skills or ()

    def _measure(self, name: str, arm: str, seed: int) -> None:
        """Train an arm and ask it, where that is not done yet."""
        file = self._file(name, arm, seed)
        if file.is_file():
            return
        run = self.study.train(arm, seed, _folder(name), self._data(name, seed))
        recipe, parts = open_run(run.root)
        place = str(self.study.out / ("asked" if name == "sciencebook" else name))
        source = recipe.data.evaluate[0].model_copy(update={"path": place, "skills": None})
        asked = asked_of(source, parts, run.evaluations, "with-image")
        steps = json.loads(run.cost.read_text())["steps"]
        figures = {"right": asked["accuracy"]["IMG"], "questions": asked["questions"]["IMG"]}
        write_json(file, {**figures, "steps": steps})

    def _align(self, name: str, seed: int) -> None:
        """Align a seed's connector to a data set's images."""
        if name == "sciencebook":
            self.study.align(seed)
        else:
            own = json.dumps([self._shown])
            overrides = [f"data.train={own}", f"alignment.steps={ALIGNED}"]
            self.study.align(seed, f"start-{name}", overrides)

    def _data(self, name: str, seed: int) -> list[str]:
        """Override what is trained on: the frontier's, or easy-VQA next to its text skills."""
        if name == "sciencebook":
            return []
        shown = {SKILLS[skill].title for skill in IMAGE_SKILLS}
        texts = [title for title in self._titles if title not in shown]
        texts_of = {**self._shown, "path": str(self.study.out / "sciencebook"), "skills": texts}
        connector = self.study.out / f"start-{name}" / f"aligned,seed={seed}"
        return [
            f"data.train={json.dumps([self._shown, texts_of])}",
            f"model.connector.weights={connector}",
        ]

    @property
    def _shown(self) -> dict[str, str]:
        """The source of easy-VQA's questions."""
        path = str(self.study.out / "easy-vqa")
        return {"path": path, "format": "scienceqa", "split": "train"}

    def _file(self, name: str, arm: str, seed: int) -> Path:
        return self.study.out / _folder(name) / f"{arm},seed={seed}" / "with-image.json"


def _folder(name: str) -> str:
    """Name the folder of a data set's runs."""
    return f"text-route-{name}"


def gathered(done: dict[str, dict[str, dict[int, Any]]]) -> dict[str, Any]:
    """Put the runs together.

    Args:
        done: data set -> text route -> seed -> what was measured.

    Returns:
        By data set: percent right over seeds of each route, and `base` less `trained`, paired by
        seed, over the seeds that have both.
    """
    sets = {}
    for name, routes in done.items():
        seeds = sorted(routes["trained"].keys() & routes["base"].keys())
        if not seeds:
            continue
        right = {
            route: [points[seed]["right"] for seed in seeds] for route, points in routes.items()
        }
        pairs = zip(right["base"], right["trained"], strict=True)
        first = routes["base"][seeds[0]]
        sets[name] = {
            "seeds": seeds,
            "steps": [routes["base"][seed]["steps"] for seed in seeds],
            "questions": first["questions"],
            **{route: over_seeds(values) for route, values in right.items()},
            "difference": over_seeds([base - trained for base, trained in pairs]),
        }
    return sets


def table(results: dict[str, Any]) -> str:
    """Write the figures as a Markdown table."""
    head = ["questions with an image", "seeds", "steps", "questions", "text route trained, %"]
    head += ["text_route: base, %", "difference, points"]
    lines = [row(head), "|---|" + "---:|" * (len(head) - 1)]
    for name, figures in results["sets"].items():
        cells = [name, str(len(figures["seeds"])), str(figures["steps"][0])]
        cells += [str(figures["questions"])]
        cells += [in_brackets(figures[route], ".1f") for route in ("trained", "base")]
        lines.append(row([*cells, in_brackets(figures["difference"], "+.1f")]))
    return "\n".join(lines)


def main() -> None:
    """Run the study, or what is left of it."""
    parser = parser_of(__doc__, quick="both arms, one step, one seed", data=None)
    parser.add_argument(
        "--seconds", type=float, help=f"CPU seconds of each run, {SECONDS:g} by default"
    )
    options = read_options(parser)
    usual = QUICK_SECONDS if options.quick else SECONDS
    seconds = options.seconds or usual
    more = [f"--seconds {seconds:g}"] if seconds != usual else []
    data = installed()
    take_out(options.out)
    size: Size = QUICK if options.quick else FULL
    command = command_of("text_route", options, *more)
    study = Study(options.out, size, options.seeds, seconds, command=command)
    route = Route(study, small=options.quick)
    route.run(data)
    route.write()


if __name__ == "__main__":
    run_study(main)
