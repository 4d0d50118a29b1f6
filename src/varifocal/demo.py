"""The demo: a real language model learns to see, in minutes, on two CPU cores.

It makes sciencebook data, scores the frozen start, trains `recipes/demo.yaml`, scores again and
draws what happened. Every stage leaves a file, so an interrupted demo goes on where it stopped,
and a finished one is only read back.
"""

import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varifocal.assemble import Assembly, assemble, open_run
from varifocal.data.example import Example
from varifocal.data.loading import load_source
from varifocal.errors import RunError
from varifocal.evaluation.benchmark import Answer, Prompt
from varifocal.evaluation.benchmarks.scienceqa import AVERAGE, choice_benchmark
from varifocal.evaluation.evaluated_model import Asker, EncodedAsker
from varifocal.evaluation.open_answers import items_of
from varifocal.evaluation.retention import FACTORS, SAME, measure_retention
from varifocal.evaluation.runner import About, AskOptions
from varifocal.evaluation.runner import run as run_benchmark
from varifocal.evaluation.sources import about_run
from varifocal.models.likelihood import Normalisation
from varifocal.plotting import loss_curve, routing_plot
from varifocal.progress import Progress, silent
from varifocal.recipe import Recipe, load_recipe
from varifocal.reports.card_scores import read_object_if_any
from varifocal.reports.contact_sheet import SheetCard, contact_sheet
from varifocal.run import RunDirectory
from varifocal.sciencebook import SKILLS, make_sciencebook
from varifocal.training.cost import peak_memory_gib
from varifocal.training.train import run_training
from varifocal.tuners import routing_table
from varifocal.writing import write_json

IMAGE_SKILLS = (
    "circuits",
    "concentrations",
    "counting",
    "fractions",
    "magnets",
    "shapes",
    "thermometer",
)
TEXT_SKILLS = ("capitals", "opposites", "parts_of_speech", "weather_or_climate")
COLUMNS = ("IMG", "TXT", "NO", AVERAGE)
NUM_CARDS = 6
_SHOWN = (
    *("quick", "before", "before_blind", "after", "intervals", "skills"),
    *("trained_parameters", "minutes", "peak_memory_gib", "question", "image"),
)
"""What a finished demo shows of its `demo.json`."""


@dataclass(frozen=True)
class Size:
    """How much is made, trained and asked.

    Args:
        train: questions to learn from, over all skills.
        test: questions to score on, over all skills.
        language: paragraphs, instructions and described images that show what the language model
            has lost.
        overrides: of the demo recipe.
    """

    train: int
    test: int
    language: int
    overrides: Mapping[str, Any]


FULL = Size(train=1650, test=440, language=16, overrides={})
QUICK = Size(
    train=176,
    test=44,
    language=4,
    overrides={
        "training.max_steps": 8,
        "training.logging_steps": 1,
        "alignment.steps": 100,
    },
)


def run_demo(
    root: str | Path, *, quick: bool = False, progress: Progress | None = None
) -> dict[str, Any]:
    """Run the demo, or what is left of it, or only read its result.

    Args:
        root: the run directory.
        quick: the same stages on a tenth of the data, with a few steps.
        progress: told of every stage.

    Returns:
        what `demo.json` holds: `before` and `after` (percent right by column; `before` is the
        grafted, untrained model), `before_blind` (the language model alone), `skills`,
        `language` (what plain language has lost, see `score_language`),
        `trained_parameters`, `minutes`, `peak_memory_gib`, and what to ask next (`ask_command`).

    Raises:
        RunError: the directory holds a demo of the other size.
        Stopped: Ctrl-C; call again to go on.
    """
    progress = progress or silent
    stored = Path(root) / "demo.json"
    if stored.is_file():
        return _read_back(stored, quick)
    run = RunDirectory.create(root, resume=True)
    with run.lock():
        result = _do(run, quick, progress)
        write_json(stored, result)
    return result


def _do(run: RunDirectory, quick: bool, progress: Progress) -> dict[str, Any]:
    """Do what is left of a demo."""
    started = time.monotonic()
    size = QUICK if quick else FULL
    recipe = prepare_demo(run, size, progress)
    examples = list(load_source(recipe.data.evaluate[0]))
    before = score_start(run, recipe, examples, progress)
    training = run_training(recipe, run.root, resume=run.recipe.is_file(), progress=progress)
    _, parts = open_run(run.root)
    about = about_run(run.root, recipe, parts)
    after = _score(run, EncodedAsker(parts), examples, "after", progress, about=about)
    draw_sheet(run, parts, examples, after["predictions"])
    del parts
    language = score_language(run, size.language, progress)
    return {
        "quick": quick,
        "before": _columns(before["start"]),
        "before_blind": _columns(before["blind"]),
        "after": _columns(after),
        "intervals": {
            name: {key: [scores["columns"][key][end] for end in ("low", "high")] for key in COLUMNS}
            for name, scores in (("before", before["start"]), ("after", after))
        },
        "skills": _skills(examples, before["start"], after),
        "language": language,
        "trained_parameters": sum(training.trained_parameters.values()),
        "trained_parameters_by_part": training.trained_parameters,
        "minutes": round((time.monotonic() - started) / 60, 2),
        "peak_memory_gib": round(peak_memory_gib(), 2),
        "plots": [str(path) for path in sorted(run.plots.glob("*.png"))],
        **_to_ask(run, examples),
    }


def prepare_demo(run: RunDirectory, size: Size, progress: Progress) -> Recipe:
    """Make the data, if it is not there yet, and read the recipe for it."""
    book = run.root / "sciencebook"
    if not (book / "problems.json").is_file():
        make_sciencebook(
            book,
            train=size.train,
            val=0,
            test=size.test,
            seed=0,
            skills=[*IMAGE_SKILLS, *TEXT_SKILLS],
            progress=lambda done, total: progress("draw", done, total, "questions"),
        )
    return load_recipe("demo", {"data.root": str(run.root.resolve()), **size.overrides})


def score_start(
    run: RunDirectory, recipe: Recipe, examples: Sequence[Example], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Score the frozen language model without images, and with an untrained connector."""
    asker: Asker | None = None
    scores = {}
    for name, blind in (("blind", True), ("start", False)):
        scores_of_run = _read_scores(run, "start-blind" if blind else "start")
        if scores_of_run is None:
            asker = asker or OncePerPrompt(EncodedAsker(assemble(recipe)))
            scores_of_run = _score(run, asker, examples, "start", progress, blind=blind)
        scores[name] = scores_of_run
    return scores


class OncePerPrompt:
    """Scores equal prompts of a frozen model once: without their images, many questions are alike.

    Args:
        asker: of a model whose weights stay as they are.
    """

    def __init__(self, asker: Asker) -> None:
        self.model, self._asker = asker.model, asker
        self._known: dict[tuple[bytes, Normalisation], Answer] = {}
        self.prepare, self.write = asker.prepare, asker.write

    def score(self, prompts: Sequence[Prompt], normalisation: Normalisation) -> list[Answer]:
        """Return each option's log-probability in nats, for one batch."""
        new = {
            prompt.key: prompt
            for prompt in prompts
            if (prompt.key, normalisation) not in self._known
        }
        answers = self._asker.score(list(new.values()), normalisation) if new else []
        for key, answer in zip(new, answers, strict=True):
            self._known[key, normalisation] = answer
        return [self._known[prompt.key, normalisation] for prompt in prompts]


def score_language(run: RunDirectory, limit: int, progress: Progress) -> dict[str, float]:
    """Measure what plain language has lost, against the base; `varifocal retention` has it all.

    Returns:
        `perplexity` and `perplexity_after_image`, factors of the base's (1 is the base); and
        `answers_same`, the percentage of greedy answers to plain instructions that stay the base's.
    """
    command = shlex.join(["varifocal", "retention", str(run.root), "--limit", str(limit)])
    measured, _ = measure_retention(
        run.root,
        limit=limit,
        command=command,
        progress=lambda stage, done, total, note="": progress(f"language, {stage}", done, total),
    )
    lines = {line.name: line for line in measured.rows}
    factors = [lines[name].change for name in FACTORS]
    assert all(factors)  # prose and described images come with Varifocal
    perplexity, after_image = (round(factor.value, 3) for factor in factors if factor)
    return {
        "perplexity": perplexity,
        "perplexity_after_image": after_image,
        "answers_same": round(lines[SAME].on.value, 1),
    }


def _score(
    run: RunDirectory,
    asker: Asker,
    examples: Sequence[Example],
    name: str,
    progress: Progress,
    blind: bool = False,
    about: About | None = None,
) -> dict[str, Any]:
    result = run_benchmark(
        choice_benchmark(name, "sciencebook", "likelihood", 64),
        items_of(examples),
        asker,
        run.evaluations,
        options=AskOptions(blind=blind, token_budget=4096),
        about=about,
        progress=lambda stage, done, total, note="": progress(f"score {stage}", done, total, note),
    )
    scores_of_run = _read_scores(run, result.name)
    assert scores_of_run is not None  # it has just been written
    return scores_of_run


def _read_scores(run: RunDirectory, name: str) -> dict[str, Any] | None:
    """Return scores as they were written, by column, and the predictions by id; or None."""
    file = run.evaluations / f"{name}.json"
    if not file.is_file():
        return None
    measures = read_object_if_any(file).get("measures")
    if measures is None:
        raise RunError(
            f"{file} is damaged or of a former kind; delete the folder {run.evaluations} and "
            "repeat the command, which scores anew"
        )
    lines = (run.evaluations / f"{name}.predictions.jsonl").read_text().split("\n")
    predictions = (json.loads(line) for line in lines if line)
    return {
        "columns": {measure["name"]: measure for measure in measures},
        "predictions": {row["id"]: row for row in predictions},
    }


def _columns(scores: Mapping[str, Any]) -> dict[str, float]:
    """Percent right, by column."""
    return {name: round(scores["columns"][name]["value"], 1) for name in COLUMNS}


def _skills(
    examples: Sequence[Example], before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """By skill: whether it needs the image, chance, and percent right before and after."""
    titles = {skill.title: name for name, skill in SKILLS.items()}
    by_skill: dict[str, list[str]] = {}
    for example in examples:
        by_skill.setdefault(titles[example.tags["skill"]], []).append(example.id)

    def percent(scores: Mapping[str, Any], ids: list[str]) -> float:
        return round(100 * sum(scores["predictions"][id_]["correct"] for id_ in ids) / len(ids), 1)

    return {
        name: {
            "needs": SKILLS[name].needs,
            "questions": len(ids),
            "chance": round(100 * SKILLS[name].chance, 1),
            "before": percent(before, ids),
            "after": percent(after, ids),
        }
        for name, ids in by_skill.items()
    }


def draw_sheet(
    run: RunDirectory,
    parts: Assembly,
    examples: Sequence[Example],
    predictions: Mapping[str, Mapping[str, Any]],
) -> None:
    """Draw the loss, the routing weights and six answered images."""
    loss_curve(run.read_metrics(), run.plots / "loss.png")
    routing_plot(routing_table(parts.model), run.plots / "routing.png")
    cards = [
        _card(example, predictions[example.id]) for example in _one_of_each(examples)[:NUM_CARDS]
    ]
    contact_sheet(cards, run.plots / "answers.png", title="Answers after training")


def _one_of_each(examples: Sequence[Example]) -> list[Example]:
    """The first question with an image of each skill: picked by order, not by its answer."""
    first: dict[str, Example] = {}
    for example in examples:
        if example.images:
            first.setdefault(example.tags["skill"], example)
    return list(first.values())


def _card(example: Example, prediction: Mapping[str, Any]) -> SheetCard:
    return SheetCard(
        image=example.images[0].open(),
        question=_question(example),
        options=example.choices,
        answer=prediction["parsed"],
        gold=prediction["gold"][0],
        correct=prediction["correct"] == 1,
    )


def _question(example: Example) -> str:
    """The question's own line of the prompt."""
    return example.messages[0].text.strip().splitlines()[0].removeprefix("Question: ")


def _to_ask(run: RunDirectory, examples: Sequence[Example]) -> dict[str, str]:
    """Return a question that the run was not trained on, and where in the run its image lies."""
    example = _one_of_each(examples)[0]
    image = os.path.relpath(str(example.images[0].path), run.root.resolve())
    return {"question": " ".join(example.messages[0].text.split()), "image": image}


def ask_command(root: str | Path, result: Mapping[str, Any]) -> str:
    """Return the command that asks a demo's run, wherever it lies now.

    >>> ask_command("my runs/demo", {"question": "Why?", "image": "a.png"})
    "varifocal ask 'my runs/demo' 'Why?' --image 'my runs/demo/a.png'"
    """
    image = str(Path(root) / result["image"])
    return shlex.join(["varifocal", "ask", str(root), result["question"], "--image", image])


def _read_back(stored: Path, quick: bool) -> dict[str, Any]:
    result = read_object_if_any(stored)
    lacking = [key for key in _SHOWN if key not in result]
    if lacking:
        raise RunError(
            f"{stored} is damaged or of a former kind (it lacks {lacking[0]}); choose another "
            "--out, or delete the folder and repeat the command"
        )
    if result["quick"] != quick:
        size = "quick" if result["quick"] else "full"
        raise RunError(f"{stored.parent} holds a {size} demo; choose another --out for this one")
    return result
