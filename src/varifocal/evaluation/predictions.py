"""Prediction files as they stand in a run's `eval`: a line an answered item.

A line says what was asked and answered, and whatever a page needs to show it (images, options,
tags), so that the data need not be read again. What a line does not say stays empty.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from varifocal.errors import DataError, RunError
from varifocal.evaluation.baselines import Baselines
from varifocal.evaluation.benchmark import Answer, Benchmark, Item, Prompt
from varifocal.locking import alone
from varifocal.run import RunDirectory
from varifocal.trained_weights import command_for, scores_folder
from varifocal.writing import write_text

StoredLine = dict[str, Any]

_NUMBERS = ("scores", "hits", "ids")


class Ledger:
    """Predictions as JSON lines, each marked with what it was made by.

    Args:
        path: the file.
        identity: what decides an answer next to its prompt; lines of another one are not kept.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self._path, self._identity = path, identity
        self._kept: list[StoredLine] = []

    def read(self, prompts: Mapping[str, Prompt], trust: bool = True) -> dict[str, Answer]:
        """Return the answers that an earlier call left to the very same prompts, by id.

        Args:
            prompts: by id.
            trust: False keeps nothing.
        """
        self._kept, answers = [], {}
        lines: list[str] = []
        if self._path.is_file():  # a kill may have cut a character; other breaks are text
            lines = self._path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in filter(None, map(_line_or_none, lines)) if trust else ():
            name = str(line.get("id"))
            prompt = prompts.get(name)
            asked = prompt is not None and line.get("prompt_sha") == prompt.sha
            if asked and line.get("made_by") == self._identity and name not in answers:
                self._kept.append(line)
                scores, hits, ids = (tuple(line.get(key) or ()) for key in _NUMBERS)
                answers[name] = Answer(line.get("text"), scores=scores, hits=hits, ids=ids)
        return answers

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep others from the file for the while; a kill lets go of it.

        Raises:
            RunError: another process has it, or the folder cannot be written.
        """
        with alone(self._path.parent, self._path.name):
            yield

    @contextmanager
    def open(self) -> Iterator[Callable[[StoredLine], None]]:
        """Yield what appends a line; a line is on the disk when it returns.

        Raises:
            RunError: the disk does not take it.
        """
        self.finish(self._kept)  # without the line that a kill cut, and without others' lines
        with self._path.open("a", encoding="utf-8") as file:
            yield lambda line: self._append(file, line)

    def finish(self, lines: Sequence[StoredLine]) -> None:
        """Write all lines in their order, whole or not at all."""
        write_text(self._path, "".join(map(self._text, lines)))

    def _append(self, file: Any, line: StoredLine) -> None:
        try:
            file.write(self._text(line))
            file.flush()
        except OSError as error:
            raise RunError(
                f"{self._path} cannot be written ({error.strerror}); what was answered before is "
                "kept: fix that and repeat the command"
            ) from error

    def _text(self, line: StoredLine) -> str:
        return json.dumps({**line, "made_by": self._identity}, ensure_ascii=False) + "\n"


def line_of(benchmark: Benchmark, item: Item, prompt: Prompt, answer: Answer) -> StoredLine:
    """Return a line of the predictions: what was asked, what is right, and what was answered."""
    example = item.example
    asked = next(message for message in reversed(example.messages) if message.role == "user")
    output: dict[str, Any] = {"text": answer.text}
    if answer.text is None:
        output = {"choice": answer.choice, "scores": list(answer.scores)}
        output["num_tokens"] = list(prompt.option_lengths)
    shown = {
        "hits": list(answer.hits),
        "ids": list(answer.ids),
        "options": list(example.choices),
        "images": [str(image.path) for image in example.images if image.path is not None],
        "tags": dict(item.tags),
        "columns": list(benchmark.columns(example)),
        "group": item.group,
    }
    return {
        "id": item.id,
        "prompt_sha": prompt.sha,
        "question": asked.text,
        "gold": list(item.references),
        **output,
        "parsed": answer.parsed,
        "correct": benchmark.credit(item, answer),
        **{key: value for key, value in shown.items() if value},
    }


def _line_or_none(text: str) -> StoredLine | None:
    """Read a line; None for one that a kill cut short."""
    try:
        line = json.loads(text)
    except json.JSONDecodeError:
        return None
    return line if isinstance(line, dict) else None


ENDING = ".predictions.jsonl"


@dataclass(frozen=True)
class Line:
    """One answered question.

    Attributes:
        id: the item's.
        credit: what the answer earned, 0 to 1; None where an item alone earns nothing.
        answer: the option chosen, the answer read from the text, or the text itself.
        is_read: False where the text named no answer.
        gold: the right answer, or several, joined by " | ".
        prompt_sha: of the prompt; None in files that do not have it.
        question: the user's turn; "" where the file does not say.
        options: what could be answered.
        images: files of the images.
        columns: ScienceQA's columns in which it counts.
        tags: skill, category and the like.
        group: what is scored together.
    """

    id: str
    credit: float | None
    answer: str
    is_read: bool
    gold: str
    prompt_sha: str | None = None
    question: str = ""
    options: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Predictions:
    """A suite's predictions.

    Attributes:
        suite: its name.
        file: where they stand.
        lines: id -> line, in the file's order.
        protocol: how the answers were made, as the score file says; empty without one.
        left_out: items that could not be asked, as the score file says.
        baselines: of blind rules on all items, as the score file says.
    """

    suite: str
    file: Path
    lines: Mapping[str, Line]
    protocol: Mapping[str, Any]
    left_out: int = 0
    baselines: Baselines = field(default_factory=Baselines)


def find_predictions(place: Path) -> dict[str, Path]:
    """Find the prediction files of a run, of an `eval` folder, or take the one that is named.

    Returns:
        suite -> file.

    Raises:
        RunError: there are none.
    """
    if place.is_file() and place.name.endswith(ENDING):
        return {place.name.removesuffix(ENDING): place}
    for folder in (scores_folder(RunDirectory(place)), place):
        if files := sorted(folder.glob(f"*{ENDING}")):
            return {file.name.removesuffix(ENDING): file for file in files}
    raise RunError(
        f"no predictions at {place}: neither eval/*{ENDING} nor *{ENDING}; "
        f"make some with: varifocal eval {shlex.quote(str(place))}"
    )


def read_predictions(file: Path) -> Predictions:
    """Read one file; a last line that a kill cut short is left out.

    Raises:
        DataError: a line is no prediction, or an id stands there twice.
    """
    lines: dict[str, Line] = {}
    texts = file.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
            line = _line(row)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            if number == len(texts) and not text.endswith("\n"):
                break
            raise DataError(f"{file}: line {number} is no prediction ({error!r})") from error
        if "prediction" in row:
            raise DataError(f"{file} is of a former kind; make it anew with: {command_for(file)}")
        if line.id in lines:
            raise DataError(f"{file}: line {number}: the id '{line.id}' stands there twice")
        lines[line.id] = line
    suite = file.name.removesuffix(ENDING)
    page = _score_page(file.with_name(f"{suite}.json"))
    left_out = page.get("items_left_out", 0)
    counted = left_out if isinstance(left_out, int) else 0
    return Predictions(suite, file, lines, _protocol(page), counted, _baselines(page))


def _line(row: Mapping[str, Any]) -> Line:
    parsed, text = row.get("parsed"), row.get("text")
    return Line(
        id=str(row["id"]),
        credit=_credit(row),
        answer=str(
            next((value for value in (parsed, text, row.get("choice")) if value is not None), "")
        ),
        is_read=row.get("choice") is not None or parsed is not None,
        gold=_gold(row["gold"]),
        prompt_sha=row.get("prompt_sha"),
        question=str(row.get("question") or ""),
        options=tuple(map(str, row.get("options") or ())),
        images=tuple(map(str, row.get("images") or ())),
        columns=tuple(row.get("columns") or ()),
        tags={str(key): str(value) for key, value in (row.get("tags") or {}).items()},
        group=str(row.get("group") or ""),
    )


def _credit(row: Mapping[str, Any]) -> float | None:
    value = row.get("correct", row.get("credit"))
    return None if value is None else float(value)


def _gold(gold: object) -> str:
    if isinstance(gold, list | tuple):
        return " | ".join(dict.fromkeys(map(str, gold)))
    return str(gold)


def _score_page(file: Path) -> dict[str, Any]:
    """Return a score file; nothing where there is none."""
    try:
        page = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return page if isinstance(page, dict) else {}


def _baselines(page: Mapping[str, Any]) -> Baselines:
    baselines = page.get("baselines")
    if not isinstance(baselines, dict):
        return Baselines()
    rates = {name: baselines.get(name) for name in ("chance", "majority", "longest")}
    known = {name: float(rate) for name, rate in rates.items() if isinstance(rate, int | float)}
    return Baselines(**known, majority_answer=str(baselines.get("majority_answer") or ""))


def _protocol(page: Mapping[str, Any]) -> dict[str, Any]:
    """What the score file says of how the answers were made."""
    return {key: page[key] for key in ("protocol", "method", "blind") if key in page}
