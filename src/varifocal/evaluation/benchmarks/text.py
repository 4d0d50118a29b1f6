"""Language benchmarks that MLAN reports: RACE, OpenBookQA, BoolQ, HellaSwag."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from varifocal.data.example import Question
from varifocal.data.formats.questions import question_text
from varifocal.data.json_files import read_json_object
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answered, Benchmark, Item, Measure, accuracy
from varifocal.evaluation.benchmarks.loading import (
    first_file,
    index_of,
    letter_index,
    make_item,
    needed_text,
    read_records,
    read_table,
    texts_of,
    value_of,
)

_RACE_FILES = "RACE's SPLIT/middle/*.txt and SPLIT/high/*.txt"
_OPENBOOK_FILES = "OpenBookQA's Data/Main/test.jsonl"
_BOOLQ_FILES = "BoolQ's dev.jsonl"
_HELLASWAG_FILES = "hellaswag_val.jsonl"

_LEVELS = ("middle", "high")
_MARK = re.compile(r"\[.*?\]")


def _choose(
    name: str,
    where: str,
    asked: str,
    choices: Sequence[str],
    gold: int,
    context: str = "",
    **tags: str,
) -> Item:
    """Ask a multiple-choice question in the words that training uses."""
    return make_item(
        name,
        where,
        question_text(asked, context, choices),
        question=Question(asked, context),
        choices=choices,
        gold=gold,
        tags=tags,
    )


def load_race(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield RACE's questions; tag `level` is "middle" or "high" where it is known.

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "test"
    roots = [root for root in (folder / split, folder / "RACE" / split) if root.is_dir()]
    files = [file for root in roots[:1] for level in _LEVELS for file in _passages(root / level)]
    for file in files:
        yield from _passage(file)
    if files:
        return
    for record in read_table(folder, (split,), _RACE_FILES, "all"):
        row, where = record.row, record.where
        choices = texts_of(row, "options", where)
        name = needed_text(row, "example_id", where)
        level = {"level": next((level for level in _LEVELS if level in name), "all")}
        asked = needed_text(row, "question", where)
        gold = letter_index(value_of(row, "answer", where), len(choices), where, "answer")
        name = f"{name} {record.place}"
        yield _choose(
            name, where, asked, choices, gold, needed_text(row, "article", where), **level
        )


def _passages(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.txt"), key=lambda file: (len(file.stem), file.stem))


def _passage(file: Path) -> Iterator[Item]:
    """Yield the questions of one official file: a passage with its questions."""
    row, where = read_json_object(file), str(file)
    article, asked = needed_text(row, "article", where), texts_of(row, "questions", where)
    answers, options = texts_of(row, "answers", where), value_of(row, "options", where)
    if not isinstance(options, list) or not len(asked) == len(answers) == len(options):
        raise DataError(f"{where}: 'questions', 'options' and 'answers' differ in number")
    for number, (question, answer) in enumerate(zip(asked, answers, strict=True)):
        place = f"{where}: question {number}"
        choices = texts_of({"options": options[number]}, "options", place)
        gold = letter_index(answer, len(choices), place, "answers")
        name = f"{file.parent.name}{file.stem}-{number}"
        level = file.parent.name
        yield _choose(name, place, question, choices, gold, article, level=level)


def load_openbookqa(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield OpenBookQA's questions, without the book's fact.

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "test"
    file = first_file(folder, f"{split}.jsonl", f"Data/Main/{split}.jsonl", f"*/*/*/{split}.jsonl")
    records = read_records(file) if file else read_table(folder, (split,), _OPENBOOK_FILES, "main")
    for record in records:
        row, where = record.row, record.where
        stem, labels, choices = _openbook_parts(row, where)
        key = needed_text(row, "answerKey", where)
        if key not in labels:
            raise DataError(f"{where}: 'answerKey' is {key!r}, none of {', '.join(labels)}")
        name = needed_text(row, "id", where)
        yield _choose(name, where, stem, choices, labels.index(key))


def _openbook_parts(row: Any, where: str) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Return stem, labels and choices of an official or a Hugging Face row."""
    if isinstance(question := row.get("question"), dict):
        parts = value_of(question, "choices", where)
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise DataError(f"{where}: 'choices' must be a list of objects")
        labels = tuple(needed_text(part, "label", where) for part in parts)
        choices = tuple(needed_text(part, "text", where) for part in parts)
        return needed_text(question, "stem", where), labels, choices
    parts = value_of(row, "choices", where)
    if not isinstance(parts, dict):
        raise DataError(f"{where}: 'choices' must hold the lists 'text' and 'label'")
    choices, labels = texts_of(parts, "text", where), texts_of(parts, "label", where)
    if len(choices) != len(labels):
        raise DataError(f"{where}: {len(choices)} choices, {len(labels)} labels")
    return needed_text(row, "question_stem", where), labels, choices


def load_boolq(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield BoolQ's questions; those of its test have no published answers, so dev is taken.

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "dev"
    file = first_file(folder, f"{split}.jsonl", f"BoolQ/{split}.jsonl")
    names = (split, "validation") if split == "dev" else (split,)
    for record in read_records(file) if file else read_table(folder, names, _BOOLQ_FILES):
        row, where = record.row, record.where
        answer = row["label"] == 1 if row.get("label") in (0, 1) else value_of(row, "answer", where)
        if not isinstance(answer, bool):
            raise DataError(f"{where}: 'answer' must be true or false, not {answer!r}")
        asked = needed_text(row, "question", where).rstrip("?") + "?"
        passage = needed_text(row, "passage", where)
        yield _choose(
            record.place,
            where,
            asked[0].upper() + asked[1:],
            ("yes", "no"),
            int(not answer),
            passage,
        )


def load_hellaswag(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield HellaSwag's beginnings with four endings each; tag `source` is what they are from.

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "val"
    file = first_file(folder, f"hellaswag_{split}.jsonl", f"data/hellaswag_{split}.jsonl")
    names = (split, "validation") if split == "val" else (split,)
    for record in read_records(file) if file else read_table(folder, names, _HELLASWAG_FILES):
        row, where = record.row, record.where
        endings = tuple(map(_without_marks, texts_of(row, "endings", where)))
        start = f"{needed_text(row, 'activity_label', where)}: {_beginning(row, where)}"
        yield make_item(
            f"{row.get('source_id', '')} {record.place}".strip(),
            where,
            f"Go on with this text.\n{_without_marks(start)}",
            question=Question(_without_marks(start)),
            choices=endings,
            gold=index_of(value_of(row, "label", where), len(endings), where, "label"),
            tags={"source": str(row.get("source_id", "")).split("~")[0]},
        )


def _beginning(row: Any, where: str) -> str:
    """Join the first sentence to the begun second one, which is written in small letters."""
    first, second = (str(row.get(key) or "").strip() for key in ("ctx_a", "ctx_b"))
    return f"{first} {second.capitalize()}" if first else needed_text(row, "ctx", where)


def _without_marks(text: str) -> str:
    """Take WikiHow's marks out of a text, as lm-eval does: a title ends a sentence.

    >>> _without_marks("How to cut [title] Take it. [step] Use scissors.")
    'How to cut. Take it. Use scissors.'
    """
    return " ".join(_MARK.sub("", text.replace(" [title]", ". ")).split())


def _measure(answered: Sequence[Answered]) -> list[Measure]:
    return [accuracy(answered)]


def _by_level(answered: Sequence[Answered]) -> list[Measure]:
    """Score RACE as a whole, RACE-M and RACE-H."""
    measures = [accuracy(answered)]
    for level in _LEVELS:
        part = [pair for pair in answered if pair[0].tags.get("level") == level]
        if part:
            measures.append(accuracy(part, f"accuracy {level}"))
    return measures


ROWS = (
    Benchmark(
        name="race",
        load=load_race,
        measure=_by_level,
        files=f"{_RACE_FILES}; or ehovy/race: test-*.parquet",
        protocol=(
            "passage, question and lettered choices; the likeliest choice's text, by the sum over "
            "its tokens; accuracy over all test questions, RACE-M and RACE-H beside it "
            "(Lai et al. 2017, section 5)"
        ),
        source="https://www.cs.cmu.edu/~glai1/data/race (Lai et al. 2017), for research only",
        main="accuracy",
    ),
    Benchmark(
        name="openbookqa",
        load=load_openbookqa,
        measure=_measure,
        files=f"{_OPENBOOK_FILES}; or allenai/openbookqa: main/test-*.parquet",
        protocol=(
            "question and lettered choices without the book's fact; the likeliest choice's text, "
            "by the mean over its tokens; accuracy (Mihaylov et al. 2018)"
        ),
        source="https://allenai.org/data/open-book-qa (Mihaylov et al. 2018), Apache-2.0",
        main="accuracy",
        normalisation="mean",
    ),
    Benchmark(
        name="boolq",
        load=load_boolq,
        measure=_measure,
        files=f"{_BOOLQ_FILES}; or google/boolq: data/validation-*.parquet, or "
        "aps/super_glue: boolq/validation-*.parquet",
        protocol=(
            "passage and question; the likelier of yes and no; accuracy on the development set, "
            "as the test answers are not published (Clark et al. 2019)"
        ),
        source="https://github.com/google-research-datasets/boolean-questions "
        "(Clark et al. 2019), CC BY-SA 3.0",
        main="accuracy",
    ),
    Benchmark(
        name="hellaswag",
        load=load_hellaswag,
        measure=_measure,
        files=f"{_HELLASWAG_FILES}; or Rowan/hellaswag: data/validation-*.parquet",
        protocol=(
            "topic and beginning, WikiHow's marks taken out; the likeliest of four endings, none "
            "of them shown, by the mean over its tokens; accuracy on the validation set "
            "(Zellers et al. 2019)"
        ),
        source="https://rowanzellers.com/hellaswag (Zellers et al. 2019), MIT",
        main="accuracy",
        normalisation="mean",
    ),
)
