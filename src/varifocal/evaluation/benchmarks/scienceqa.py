"""Multiple-choice questions in formats that training reads too: ScienceQA, sciencebook, NLVR.

ScienceQA's columns are those of the official script (Lu et al. 2022): NAT, SOC, LAN by subject; TXT
for every question with a text context (a hint), IMG for every question with an image (so a question
with both counts in both), NO for those with neither; G1-6 and G7-12 by grade; and the average over
all questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from varifocal.data.example import Example
from varifocal.data.formats.base import ParseOptions
from varifocal.data.formats.scienceqa import parse_scienceqa
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.evaluation.baselines import of_choices
from varifocal.evaluation.benchmark import Answered, Benchmark, Item, Measure, Method, accuracy
from varifocal.evaluation.benchmarks.loading import read_table
from varifocal.recipe import FileSection, SourceSection

_SCIENCEQA_FILES = "ScienceQA's problems.json, pid_splits.json and images/SPLIT/ID/image.png"
_FULL = "ScienceQA-FULL"

AVERAGE = "average"
_SUBJECTS = {"NAT": "natural science", "SOC": "social science", "LAN": "language science"}
_GRADES = {"G1-6": range(1, 7), "G7-12": range(7, 13)}
COLUMNS = (*_SUBJECTS, "TXT", "IMG", "NO", *_GRADES, AVERAGE)


def scienceqa_items(section: SourceSection) -> Iterator[Item]:
    """Yield a source's multiple-choice questions in their order.

    Raises:
        DataError: a record is broken, or has no choices.
    """
    for result in open_source(section):
        if isinstance(result, DataError):
            raise result
        yield _item_of(result)


def columns_of(example: Example) -> tuple[str, ...]:
    """Name the columns a question counts in.

    Args:
        example: with the tags `subject`, `grade` ("grade3") and `hint` ("yes" or "no") of
            a `scienceqa` source, and its images.
    """
    tags = example.tags
    hint, image = tags.get("hint") == "yes", bool(example.images)
    digits = tags.get("grade", "").removeprefix("grade")
    grade = int(digits) if digits.isdecimal() else 0
    member = {
        **{column: tags.get("subject") == subject for column, subject in _SUBJECTS.items()},
        "TXT": hint,
        "IMG": image,
        "NO": not hint and not image,
        **{column: grade in grades for column, grades in _GRADES.items()},
        AVERAGE: True,
    }
    return tuple(column for column in COLUMNS if member[column])


def by_column(answered: Sequence[Answered]) -> list[Measure]:
    """Score ScienceQA's columns that have questions; the average is over questions."""
    members: dict[str, list[Answered]] = {column: [] for column in COLUMNS}
    for item, answer in answered:
        for column in columns_of(item.example):
            members[column].append((item, answer))
    return [
        replace(accuracy(part, column), chance=_chance(part))
        for column, part in members.items()
        if part
    ]


def _chance(answered: Sequence[Answered]) -> float | None:
    gold = [(item.example.choices, item.example.answer_index) for item, _ in answered]
    return of_choices([(choices, right) for choices, right in gold if right is not None]).chance


def _load_scienceqa(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield ScienceQA's questions, of its official files or of a Hugging Face directory."""
    split = split or "test"
    if (folder / "problems.json").is_file():
        return scienceqa_items(FileSection(path=str(folder), format="scienceqa", split=split))
    return _scienceqa_table(folder, split)


def _scienceqa_table(folder: Path, split: str) -> Iterator[Item]:
    """Yield the rows of derek-thomas/ScienceQA or lmms-lab/ScienceQA, which have no ids."""
    names = ("val", "validation") if split in ("val", "validation") else (split,)
    configuration = _FULL if (folder / _FULL).is_dir() else "*"
    for record in read_table(folder, names, _SCIENCEQA_FILES, configuration):
        row = {**record.row, "id": record.row.get("id") or record.place}
        asked = ParseOptions(source=record.source, format="scienceqa", image_folder=folder)
        example = parse_scienceqa(replace(record, row=row), asked)
        yield _item_of(example)


def _item_of(example: Example) -> Item:
    if example.answer_index is None:
        raise DataError(f"{example.name}: no choices, or no gold answer to compare with")
    gold = example.choices[example.answer_index]
    return Item(example.id, example, (gold,), tags=example.tags)


def _load_nlvr(folder: Path, split: str | None) -> Iterator[Item]:
    columns = {
        "question": "True or false? {sentence}",
        "choices": "true|false",
        "answer": "label",
        "image": "image",
    }
    path = folder / f"{split or 'dev'}.jsonl"
    return scienceqa_items(FileSection(path=str(path), format="table", columns=columns))


def _measure_nlvr(answered: Sequence[Answered]) -> list[Measure]:
    return [accuracy(answered)]


def choice_benchmark(name: str, place: str, method: Method, max_new_tokens: int) -> Benchmark:
    """Return how a source of multiple-choice questions is asked and scored.

    Args:
        name: of the score's files.
        place: the source's.
        method: "likelihood" takes the likeliest choice, "generate" reads a written answer.
        max_new_tokens: of a written answer.
    """
    how = {
        "likelihood": "the likeliest choice, by the sum over its tokens",
        "generate": f"a greedy answer of up to {max_new_tokens} tokens, read strictly",
    }
    return Benchmark(
        name=name,
        load=_load_scienceqa,
        measure=by_column,
        files=_SCIENCEQA_FILES,
        protocol=f"the question as it is trained; {how[method]}; accuracy by ScienceQA's columns",
        source=place,
        main=AVERAGE,
        method=method,
        max_new_tokens=max_new_tokens,
        columns=columns_of,
    )


_SCIENCEQA = Benchmark(
    name="scienceqa",
    load=_load_scienceqa,
    measure=by_column,
    columns=columns_of,
    files=f"{_SCIENCEQA_FILES}; or derek-thomas/ScienceQA: data/test-*.parquet, or "
    "lmms-lab/ScienceQA: ScienceQA-FULL/test-*.parquet",
    protocol=(
        "question, context and lettered choices; the likeliest choice's text, by the sum over its "
        "tokens; accuracy by subject, context and grade (Lu et al. 2022, section 5)"
    ),
    source="https://github.com/lupantech/ScienceQA (Lu et al. 2022), CC BY-NC-SA 4.0",
    main=AVERAGE,
    max_new_tokens=64,
)

ROWS = (
    _SCIENCEQA,
    replace(
        _SCIENCEQA,
        name="sciencebook",
        files="what 'varifocal data make sciencebook FOLDER' writes",
        source="made by Varifocal, Apache-2.0",
    ),
    Benchmark(
        name="nlvr",
        load=_load_nlvr,
        measure=_measure_nlvr,
        files="dev.jsonl with id, sentence, label and image, and the images beside it",
        protocol="'True or false?' and the sentence; the likelier of true and false; accuracy",
        source="https://lil.nlp.cornell.edu/nlvr (Suhr et al. 2017), CC BY 4.0",
        main="accuracy",
    ),
)
