"""Multiple-choice questions in formats that training reads too: ScienceQA, sciencebook, NLVR."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from varifocal.data.example import Example
from varifocal.data.formats.base import ParseOptions
from varifocal.data.formats.scienceqa import parse_scienceqa
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answered, Benchmark, Item, Measure, accuracy
from varifocal.evaluation.benchmarks.loading import read_table
from varifocal.evaluation.scienceqa import COLUMNS, columns_of
from varifocal.recipe import SourceSection

_SCIENCEQA_FILES = "ScienceQA's problems.json, pid_splits.json and images/SPLIT/ID/image.png"
_FULL = "ScienceQA-FULL"


def items_of(section: SourceSection) -> Iterator[Item]:
    """Yield a source's multiple-choice questions in their order.

    Raises:
        DataError: a record is broken, or has no choices.
    """
    for found in open_source(section):
        if isinstance(found, DataError):
            raise found
        yield _item_of(found)


def by_column(answered: Sequence[Answered]) -> list[Measure]:
    """Score ScienceQA's columns that have questions; the average is over questions."""
    members: dict[str, list[Answered]] = {column: [] for column in COLUMNS}
    for item, answer in answered:
        for column in columns_of(item.example):
            members[column].append((item, answer))
    return [accuracy(found, column) for column, found in members.items() if found]


def _load_scienceqa(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield ScienceQA's questions, of its official files or of a Hugging Face directory."""
    split = split or "test"
    if (folder / "problems.json").is_file():
        return items_of(SourceSection(path=str(folder), format="scienceqa", split=split))
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
    return items_of(SourceSection(path=str(path), format="table", columns=columns))


def _measure_nlvr(answered: Sequence[Answered]) -> list[Measure]:
    return [accuracy(answered)]


_SCIENCEQA = Benchmark(
    name="scienceqa",
    load=_load_scienceqa,
    measure=by_column,
    files=f"{_SCIENCEQA_FILES}; or derek-thomas/ScienceQA: data/test-*.parquet, or "
    "lmms-lab/ScienceQA: ScienceQA-FULL/test-*.parquet",
    protocol=(
        "question, context and lettered choices; the likeliest choice's text, by the sum over its "
        "tokens; accuracy by subject, context and grade (Lu et al. 2022, section 5)"
    ),
    source="https://github.com/lupantech/ScienceQA (Lu et al. 2022), CC BY-NC-SA 4.0",
    main="average",
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
