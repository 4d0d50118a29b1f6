"""What text skills are measured on: held-out text, questions without pictures, instructions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from varifocal.data.encode import Encoder, TooLongError
from varifocal.data.example import Example, Message
from varifocal.data.raw_rows import Record, StreamedRecords, read_in_order
from varifocal.data.records import open_records
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.evaluation.retention_prompts import PROMPTS
from varifocal.evaluation.scoring import Question
from varifocal.recipe import Recipe, SourceSection

WINDOW = 256
"""Tokens of a plain text that are read at a time."""

_QUESTIONS = ("scienceqa-text", "scienceqa")
_INSTRUCTIONS = ("alpaca*/*.json*", "alpaca*.json*")
_SPLITS = ("test", "val", "minival")
_OWN = "the run's own data.evaluate, those without pictures"
_OF_ITS_TASK = (
    "what comes from data.evaluate is the run's own task: there a change is mostly what it "
    "learned; --data and --text give other material"
)


@dataclass(frozen=True)
class Material:
    """What every column of the table is measured on; a part may be empty.

    Attributes:
        texts: a prompt and the text that follows it, as its only option.
        questions: multiple-choice questions without pictures.
        instructions: conversations without pictures whose last turn is an instruction's answer.
        sources: part -> where it came from, in words.
        notes: where it is not what it should be.
    """

    texts: Sequence[Question]
    questions: Sequence[Example]
    instructions: Sequence[Example]
    sources: Mapping[str, str]
    notes: Sequence[str] = ()


def gather_material(
    recipe: Recipe, encoder: Encoder, data: Path | None, text: Path | None, limit: int
) -> Material:
    """Find what is measured on.

    Args:
        recipe: of the run.
        encoder: for the base model.
        data: a folder with `scienceqa-text` (or `scienceqa`) and `alpaca`. Without questions there,
            the recipe's own of `data.evaluate` are asked; without instructions, `PROMPTS`.
        text: plain text, or rows with a column `text`; by default the answers to the instructions
            of `data`, else those of the recipe's own text examples in `data.evaluate` that no
            training source holds.
        limit: at most so many texts, questions and instructions each, the first ones.

    Raises:
        DataError: a file or folder is not there or cannot be read.
    """
    if data is not None and not data.is_dir():
        raise DataError(f"--data: no folder '{data}'; it holds scienceqa-text and alpaca")
    found = _questions_in(data), _instructions_in(data)
    if data is not None and not any(found):
        raise DataError(
            f"--data: '{data}' has neither scienceqa-text/problems.json nor alpaca/*.json"
        )
    is_given = found[0] and (found[1] or text)
    own = [] if is_given else list(islice(_held_out(recipe), 4 * limit))
    sources: dict[str, str] = {}
    if section := found[0]:
        asked = list(islice(_text_only(section), limit))
        sources["questions"] = f"{section.path}, split {section.split}, questions without pictures"
    else:
        asked = [one for one in own if one.answer_index is not None][:limit]
        sources["questions"] = f"questions of {_OWN}" if asked else "none; --data can hold some"
    if file := found[1]:
        told = list(islice(_text_only(SourceSection(path=str(file))), limit))
        sources["instructions"] = str(file)
    else:
        told = [Example((Message("user", (prompt,)),)) for prompt in PROMPTS[:limit]]
        sources["instructions"] = f"{len(told)} plain instructions that come with varifocal"
    if text is not None:
        texts = list(islice(_windows(encoder, text), limit))
        sources["text"] = f"{text}, windows of {WINDOW} tokens"
    else:
        texts = list(_answers(encoder, told if found[1] else own[:limit]))
        kept = f"answers of at most {encoder.max_length} tokens of {found[1] or _OWN}"
        sources["text"] = kept if texts else "none; --text FILE gives some"
    notes = list(_not_held_out(recipe, *found, text))
    if any(_OWN in place for place in sources.values()):
        notes.append(_OF_ITS_TASK)
    return Material(texts, asked, told, sources, notes)


def _not_held_out(
    recipe: Recipe, section: SourceSection | None, *files: Path | None
) -> Iterator[str]:
    """Say which of the material the run was trained on: a file, its folder, or its split."""
    trained = {(Path(one.place).resolve(), one.split) for one in recipe.data.train if one.path}
    places = [(Path(section.place), section.split)] if section else []
    places += [(file, None) for file in files if file is not None]
    for place, split in places:
        whole = place.resolve()
        if {(whole, split), (whole, None), (whole.parent, None)} & trained:
            yield f"{place} is a training source of this run: it is not held out"


def _held_out(recipe: Recipe) -> Iterator[Example]:
    """Yield what `data.evaluate` has without a picture, sources that are trained on left out."""
    trained = {(one.place, one.split) for one in recipe.data.train}
    for section in recipe.data.evaluate:
        if (section.place, section.split) not in trained and not section.streaming:
            yield from _text_only(section)


def _text_only(section: SourceSection) -> Iterator[Example]:
    for found in open_source(section):
        if isinstance(found, DataError):
            raise found
        if not found.images:
            yield found


def _questions_in(data: Path | None) -> SourceSection | None:
    """Find a folder in ScienceQA's layout, and the split of it that nobody trains on."""
    if data is None:
        return None
    for folder in (*(data / name for name in _QUESTIONS), data):
        if (folder / "problems.json").is_file():
            known = (folder / "pid_splits.json").read_text(encoding="utf-8")
            split = next((name for name in _SPLITS if f'"{name}"' in known), None)
            return SourceSection(path=str(folder), format="scienceqa", split=split)
    return None


def _instructions_in(data: Path | None) -> Path | None:
    if data is None:
        return None
    found = (file for pattern in _INSTRUCTIONS for file in sorted(data.glob(pattern)))
    return next((file for file in found if file.is_file()), None)


def _answers(encoder: Encoder, examples: Sequence[Example]) -> Iterator[Question]:
    """Yield each example's last answer behind what comes before it."""
    for example in examples:
        try:
            encoded = encoder.encode(example)
        except TooLongError:
            continue  # its answer alone is over max_length
        trained = np.flatnonzero(~encoded.prompt_mask)
        end = int(trained[-1]) + 1
        masked = np.flatnonzero(encoded.prompt_mask[:end])
        start = int(masked[-1]) + 1
        yield Question(encoded.input_ids[:start], (encoded.input_ids[start:end],))


def _windows(encoder: Encoder, file: Path) -> Iterator[Question]:
    """Yield a file's text in windows: each token is read once, behind at most `WINDOW` others."""
    tokenizer = encoder.tokenizer
    for text in _texts(file):
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        first = tokenizer.bos_token_id
        ids = [first, *ids] if isinstance(first, int) else ids
        for start in range(1, len(ids), WINDOW):
            window = np.array(ids[start - 1 : start + WINDOW], np.int32)
            yield Question(window[:1], (window[1:],))


def _texts(file: Path) -> Iterator[str]:
    if not file.is_file():
        raise DataError(f"--text: no file '{file}'")
    if file.suffix not in (".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        yield file.read_text(encoding="utf-8")
        return
    for record in _read(file):
        if isinstance(record, DataError):
            raise record
        if not isinstance(record.row.get("text"), str):
            raise DataError(f"{record.where}: no column 'text' (it has: {', '.join(record.row)})")
        yield record.row["text"]


def _read(file: Path) -> Iterator[Record | DataError]:
    records = open_records(SourceSection(path=str(file)))
    return iter(records) if isinstance(records, StreamedRecords) else read_in_order(records)
