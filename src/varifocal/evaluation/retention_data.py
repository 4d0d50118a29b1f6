"""What text skills are measured on: held-out text, questions without images, instructions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from varifocal.data.encoding.encoder import Encoder, TooLongError
from varifocal.data.example import Example, Image, Message
from varifocal.data.json_files import OnBadRecord
from varifocal.data.readers.base import Record, StreamedRecords, read_in_order
from varifocal.data.readers.images import AbsentImage, missing_images_allowed
from varifocal.data.readers.open import open_records
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.evaluation.retention_texts import PROMPTS, PROSE
from varifocal.models.likelihood import EncodedQuestion
from varifocal.recipe import FileSection, Recipe, SourceSection
from varifocal.sciencebook import SKILLS, compose, draw_image

WINDOW = 256
"""Tokens of a plain text that are read at a time."""

NUM_SCENES = 24
"""Most images with a description."""

_SCENES_SEED = 20_261_130  # no data set of sciencebook's is likely to have it
_ABOUT_SCENE = "Describe this to somebody who cannot see it, in two sentences."
_QUESTIONS = ("scienceqa-text", "scienceqa")
_INSTRUCTIONS = ("alpaca*/*.json*", "alpaca*.json*")
_SPLITS = ("test", "val", "minival")
_OWN = "the run's own data.evaluate, those without images"
_OF_ITS_TASK = (
    "what comes from data.evaluate is the run's own task: there a change is mostly what it "
    "learned; --data and --text give other material"
)


@dataclass(frozen=True)
class Material:
    """What every column of the table is measured on; a part may be empty.

    Attributes:
        texts: a prompt and the text that follows it, as its only option.
        questions: multiple-choice questions without images.
        instructions: conversations without images whose last turn is an instruction's answer.
        scenes: one user's turn each, an image and its true description; none for a model that
            takes no images.
        sources: part -> where it came from, in words.
        notes: where it is not what it should be.
        left_out: one sentence for each record that cannot be read or asked.
    """

    texts: Sequence[EncodedQuestion]
    questions: Sequence[Example]
    instructions: Sequence[Example]
    sources: Mapping[str, str]
    notes: Sequence[str] = ()
    left_out: Sequence[str] = ()
    scenes: Sequence[Example] = ()


Usable = TypeVar("Usable")


@dataclass
class _Records:
    """Records as they are read, and what is wrong with some of them.

    Attributes:
        on_bad_record: "fail" raises the first error, "skip" notes it and goes on.
        left_out: what was noted.
        absent: one sentence for each record whose image is not there; none would be asked.
    """

    on_bad_record: OnBadRecord
    left_out: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)

    def usable(
        self, results: Iterable[Usable | DataError], check: Callable[[Usable], Any] | None = None
    ) -> Iterator[Usable]:
        """Yield what could be read and passes a check, which raises DataError.

        Raises:
            DataError: the first bad record, with "fail".
        """
        for result in results:
            try:
                if isinstance(result, DataError):
                    raise result
                if check is not None:
                    check(result)
            except DataError as error:
                self.refuse(error)
            else:
                yield result

    def refuse(self, error: DataError) -> None:
        """Note what is wrong with a record, once.

        Raises:
            DataError: with "fail".
        """
        if self.on_bad_record == "fail":
            raise DataError(
                f"{error}; fix it, or leave such records out with --on-bad-record skip"
            ) from error
        if str(error) not in self.left_out:
            self.left_out.append(str(error))

    def text_only(self, section: SourceSection) -> Iterator[Example]:
        """Yield a source's examples that name no image, so that a missing one does not matter."""
        for example in self.usable(open_source(section)):
            self.absent += [
                f"{example.name}: {image.reason}"
                for image in example.images
                if isinstance(image, AbsentImage)
            ]
            if not example.images:
                yield example

    def notes(self) -> Iterator[str]:
        """Count the records that could not be used, and name the first."""
        if self.left_out:
            yield f"left out as bad: {_counted(self.left_out)}"
        if self.absent:
            yield f"not asked, and the image is missing: {_counted(self.absent)}"


def _counted(sentences: Sequence[str]) -> str:
    count = len(sentences)
    return f"{count:,} record{'' if count == 1 else 's'}, the first {sentences[0]}"


def gather_material(
    recipe: Recipe,
    encoder: Encoder,
    data: Path | None,
    text: Path | None,
    limit: int,
    on_bad_record: OnBadRecord = "fail",
) -> Material:
    """Find what is measured on.

    Args:
        recipe: of the run.
        encoder: for the base model.
        data: a folder with `scienceqa-text` (or `scienceqa`) and `alpaca`. Without questions there,
            the recipe's own of `data.evaluate` are asked; without instructions, `PROMPTS`.
        text: plain text, or rows with a column `text`; by default the answers to the instructions
            of `data`, else `PROSE`.
        limit: at most so many texts, questions and instructions each, the first ones.
        on_bad_record: a record that cannot be read or asked: stop, or leave it out and count it. A
            record with an image is not asked, so that a missing image stops nothing.

    Raises:
        DataError: a file or folder is not there or cannot be read, or a record is bad and is not
            to be left out.
    """
    with missing_images_allowed():
        return _gather(recipe, encoder, data, text, limit, _Records(on_bad_record))


def _gather(
    recipe: Recipe,
    encoder: Encoder,
    data: Path | None,
    text: Path | None,
    limit: int,
    records: _Records,
) -> Material:
    if data is not None and not data.is_dir():
        raise DataError(f"--data: no folder '{data}'; it holds scienceqa-text and alpaca")
    files = _questions_in(data), _instructions_in(data)
    if data is not None and not any(files):
        raise DataError(
            f"--data: '{data}' has neither scienceqa-text/problems.json nor alpaca/*.json"
        )
    own = [] if files[0] else list(islice(_held_out(recipe, records), 4 * limit))
    sources: dict[str, str] = {}
    can_ask = partial(_check_question, encoder)
    if section := files[0]:
        asked = list(islice(records.usable(records.text_only(section), can_ask), limit))
        sources["questions"] = f"{section.place}, split {section.split}, questions without images"
    else:
        questions = (example for example in own if example.answer_index is not None)
        asked = list(islice(records.usable(questions, can_ask), limit))
        sources["questions"] = f"questions of {_OWN}" if asked else "none; --data can hold some"
    if file := files[1]:
        instructed = records.text_only(FileSection(path=str(file)))
        can_tell = partial(encoder.encode, with_answer=False)
        instructions = list(islice(records.usable(instructed, can_tell), limit))
        sources["instructions"] = str(file)
    else:
        instructions = [Example((Message("user", (prompt,)),)) for prompt in PROMPTS[:limit]]
        sources["instructions"] = f"{len(instructions)} plain instructions that come with varifocal"
    if text is not None:
        texts = list(islice(_windows(encoder, records.usable(_texts(text))), limit))
        sources["text"] = f"{text}, windows of {WINDOW} tokens"
    elif files[1]:
        texts = list(_answers(encoder, instructions, records))
        sources["text"] = f"answers of at most {encoder.max_length} tokens of {files[1]}"
    else:
        texts = list(islice(_windows(encoder, PROSE), limit))
        sources["text"] = f"{min(limit, len(PROSE))} paragraphs of prose that come with varifocal"
    shown = scenes(min(limit, NUM_SCENES)) if recipe.model.vision_tower else []
    if shown:
        sources["after an image"] = f"{len(shown)} drawn images with their true descriptions"
    notes = [*_not_held_out(recipe, *files, text), *records.notes()]
    if any(_OWN in place for place in sources.values()):
        notes.append(_OF_ITS_TASK)
    return Material(texts, asked, instructions, sources, notes, records.left_out, shown)


def _check_question(encoder: Encoder, example: Example) -> None:
    if example.answer_index is None:
        raise DataError(f"{example.name}: no gold answer to compare with")
    encoder.encode_options(example)


def scenes(count: int) -> list[Example]:
    """Draw images, each with a prompt that holds its true description.

    What a model says to the prompt without the image is a fair answer with it, too.
    """
    skills = [name for name, skill in SKILLS.items() if skill.needs == "image"]
    examples = []
    for number in range(count):
        index, skill = number // len(skills), skills[number % len(skills)]
        record, question = compose(skill, "test", index, _SCENES_SEED)
        image = Image.of(draw_image(skill, "test", index, _SCENES_SEED, question))
        examples.append(Example((Message("user", (image, f"{record['caption']} {_ABOUT_SCENE}")),)))
    return examples


def _not_held_out(
    recipe: Recipe, section: SourceSection | None, *files: Path | None
) -> Iterator[str]:
    """Say which of the material the run was trained on: a file, its folder, or its split."""
    trained = {(Path(section.place).resolve(), section.split) for section in recipe.data.train}
    places = [(Path(section.place), section.split)] if section else []
    places += [(file, None) for file in files if file is not None]
    for place, split in places:
        whole = place.resolve()
        if {(whole, split), (whole, None), (whole.parent, None)} & trained:
            yield f"{place} is a training source of this run: it is not held out"


def _held_out(recipe: Recipe, records: _Records) -> Iterator[Example]:
    """Yield what `data.evaluate` has without an image, sources that are trained on left out."""
    trained = {(section.place, section.split) for section in recipe.data.train}
    for section in recipe.data.evaluate:
        is_trained = section.holdout is None and (section.place, section.split) in trained
        if not is_trained and not section.streaming:
            yield from records.text_only(section)


def _questions_in(data: Path | None) -> FileSection | None:
    """Find a folder in ScienceQA's layout, and the split of it that nobody trains on."""
    if data is None:
        return None
    for folder in (*(data / name for name in _QUESTIONS), data):
        if (folder / "problems.json").is_file():
            known = (folder / "pid_splits.json").read_text(encoding="utf-8")
            split = next((name for name in _SPLITS if f'"{name}"' in known), None)
            return FileSection(path=str(folder), format="scienceqa", split=split)
    return None


def _instructions_in(data: Path | None) -> Path | None:
    if data is None:
        return None
    files = (file for pattern in _INSTRUCTIONS for file in sorted(data.glob(pattern)))
    return next((file for file in files if file.is_file()), None)


def _answers(
    encoder: Encoder, examples: Sequence[Example], records: _Records
) -> Iterator[EncodedQuestion]:
    """Yield each example's last answer after what comes before it."""
    for example in examples:
        try:
            encoded = encoder.encode(example)
        except TooLongError:
            continue  # its answer alone is over max_length
        except DataError as error:
            records.refuse(error)
            continue
        trained = np.flatnonzero(~encoded.prompt_mask)
        end = int(trained[-1]) + 1
        masked = np.flatnonzero(encoded.prompt_mask[:end])
        start = int(masked[-1]) + 1
        yield EncodedQuestion(encoded.input_ids[:start], (encoded.input_ids[start:end],))


def _windows(encoder: Encoder, texts: Iterable[str]) -> Iterator[EncodedQuestion]:
    """Yield texts in windows: each token is read once, after at most `WINDOW` others."""
    tokenizer = encoder.tokenizer
    for text in texts:
        ids = list(tokenizer(text, add_special_tokens=False).input_ids)
        first = tokenizer.bos_token_id
        ids = [first, *ids] if isinstance(first, int) else ids
        for start in range(1, len(ids), WINDOW):
            window = np.array(ids[start - 1 : start + WINDOW], np.int32)
            yield EncodedQuestion(window[:1], (window[1:],))


def _texts(file: Path) -> Iterator[str | DataError]:
    if not file.is_file():
        raise DataError(f"--text: no file '{file}'")
    if file.suffix not in (".jsonl", ".json", ".csv", ".tsv", ".parquet"):
        yield file.read_text(encoding="utf-8")
        return
    for record in _read(file):
        if isinstance(record, DataError):
            yield record
        elif not isinstance(record.row.get("text"), str):
            has = ", ".join(record.row)
            yield DataError(f"{record.where}: no column 'text' (it has: {has})")
        else:
            yield record.row["text"]


def _read(file: Path) -> Iterator[Record | DataError]:
    records = open_records(FileSection(path=str(file)))
    return iter(records) if isinstance(records, StreamedRecords) else read_in_order(records)
