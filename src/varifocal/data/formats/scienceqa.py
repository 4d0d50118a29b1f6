"""ScienceQA's official layout: `problems.json`, `pid_splits.json`, `images/SPLIT/ID/image.png`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varifocal.cache import file_digest
from varifocal.data.example import Example, Image, Message, Question
from varifocal.data.formats.base import ParseOptions, id_of, short, text_of
from varifocal.data.formats.questions import CAPTION_PROMPT, LETTERS, user_turn
from varifocal.data.formats.scienceqa_prompts import ProblemTexts, write_answer, write_prompt
from varifocal.data.json_files import read_json_object
from varifocal.data.readers.base import Record
from varifocal.data.readers.images import locate_image, resolve_image
from varifocal.errors import DataError, nearest
from varifocal.recipe.prompt_formats import CAPTION

_TAGS = ("subject", "grade", "topic", "category", "skill", "task", "split")


@dataclass(frozen=True)
class _Problem:
    """One checked record."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    hint: str
    lecture: str
    solution: str
    caption: str
    image: Image | None
    tags: Mapping[str, str]


class ScienceQARecords:
    """The records of a folder in ScienceQA's layout (Lu et al. 2022), each once.

    The folder holds `problems.json` and `pid_splits.json`; images lie in `images/SPLIT/ID/`;
    captions stand in the records or in `captions.json`. A record's row also has its `id`, `split`
    and `caption`, and its image found.

    Args:
        root: the folder.
        split: a name of `pid_splits.json`; None takes every record that is in a split.

    Raises:
        DataError: a file is missing or malformed, or the split is unknown or empty.

    Attributes:
        skills: those of all records, whatever their split.
    """

    is_split = True

    def __init__(self, root: Path, split: str | None = None) -> None:
        self.folder, self.place = root, str(root / "problems.json")
        self._problems = read_json_object(root / "problems.json")
        self._chosen = _choose(root, split, self._problems)
        self._captions = _read_captions(root)
        self.skills = frozenset(
            str(record["skill"])
            for record in self._problems.values()
            if isinstance(record, dict) and "skill" in record
        )

    def __len__(self) -> int:
        """Count the records."""
        return len(self._chosen)

    def __getitem__(self, number: int) -> Record:
        """Return a record.

        Raises:
            DataError: it is missing or no object, or its image is not there.
        """
        split, pid = self._chosen[number]
        place = f"record '{pid}'"
        where = f"{self.place}: {place}"
        record = self._problems.get(pid)
        if not isinstance(record, dict):
            what = "is missing, but pid_splits.json lists it" if record is None else "is no object"
            raise DataError(f"{where} {what} (split '{split}')")
        row = {"split": split, "caption": self._captions.get(pid), **record, "id": pid}
        row["image"] = _find_image(row, pid, where, self.folder / "images")
        return Record(self.place, place, row)

    @property
    def fingerprint(self) -> str:
        """A digest of the files and of which records are taken; images are not read."""
        names = ("problems.json", "pid_splits.json", "captions.json")
        files = [self.folder / name for name in names]
        taken = hashlib.sha256(repr(self._chosen).encode()).hexdigest()
        parts = [file_digest(file) for file in files if file.is_file()]
        return hashlib.sha256("\0".join([*parts, taken]).encode()).hexdigest()


def is_scienceqa(record: Record) -> bool:
    """Tell whether a row is one of ScienceQA's."""
    row = record.row
    named = {"question", "choices", "answer"} <= row.keys()
    return named and bool({"lecture", "solution", "hint"} & row.keys())


def wants_scienceqa(row: Mapping[str, Any], asked: ParseOptions) -> bool:
    """Tell whether a row is asked for: captions are asked of images that have one."""
    return asked.prompt_format != CAPTION or bool(row.get("image") and row.get("caption"))


def parse_scienceqa(record: Record, asked: ParseOptions) -> Example:
    """Make an example of a record.

    `asked.prompt_format` is one of `recipe.prompt_formats`, written as `scienceqa_prompts` says, or
    "caption" (describe the image). `tags` holds the record's subject, grade, topic, category,
    skill, task and split, and `hint`: "yes" where there is a text context, else "no".

    Raises:
        DataError: a value is missing or cannot be used.
    """
    problem = _check(record, asked)
    make = _describe if asked.prompt_format == CAPTION else _ask
    return make(problem, record, asked)


def _split_name(split: str | None) -> str:
    return "any split" if split is None else f"split '{split}'"


def _choose(root: Path, split: str | None, problems: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the (split, id) pairs to load."""
    path = root / "pid_splits.json"
    splits = read_json_object(path)
    names = list(splits) if split is None else [split]
    chosen: list[tuple[str, str]] = []
    for name in names:
        if name not in splits:
            hint = nearest(name, splits)
            raise DataError(f"'{path}' has no split '{name}' but {', '.join(splits)}{hint}")
        ids = splits[name]
        if not isinstance(ids, list):
            raise DataError(f"'{path}': split '{name}' is no list of ids")
        chosen += [(name, str(pid)) for pid in ids]
    if split is None:  # the official file also has unions and parts of splits: trainval, minival
        first = {pid: (name, pid) for name, pid in reversed(chosen)}
        chosen = [first[pid] for pid in dict.fromkeys(pid for _, pid in chosen)]
    if not chosen:
        raise DataError(f"'{path}': {_split_name(split)} is empty")
    if not any(pid in problems for _, pid in chosen):
        raise DataError(
            f"'{path}': none of the {len(chosen)} ids of {_split_name(split)} is in problems.json"
        )
    return chosen


def _read_captions(root: Path) -> Mapping[str, Any]:
    """Read the official `captions.json` ({"captions": {id: text}}) where there is one."""
    path = root / "captions.json"
    if not path.exists():
        return {}
    captions = read_json_object(path).get("captions")
    if not isinstance(captions, dict):
        raise DataError(f"'{path}' has no object 'captions'")
    return captions


def _check(record: Record, asked: ParseOptions) -> _Problem:
    """Turn a raw record into a checked one."""
    row, where = record.row, record.where
    choices = row.get("choices")
    if not isinstance(choices, list) or not all(isinstance(c, str) and c.strip() for c in choices):
        raise DataError(f"{where}: 'choices' must be a list of texts, not {short(choices)}")
    if not 2 <= len(choices) <= len(LETTERS):
        raise DataError(f"{where}: {len(choices)} choices; 2 to {len(LETTERS)} are allowed")
    answer = row.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        last = len(choices) - 1
        raise DataError(
            f"{where}: 'answer' is {short(answer)}; it must be an index from 0 to {last}"
        )
    question = text_of(row, "question", where)
    if not question:
        raise DataError(f"{where}: 'question' is missing or empty")
    hint = text_of(row, "hint", where)
    image = row.get("image")
    tags = {key: str(row[key]) for key in _TAGS if row.get(key) is not None}
    return _Problem(
        id=id_of(record),
        question=question,
        choices=tuple(choice.strip() for choice in choices),
        answer=answer,
        hint=hint,
        lecture=text_of(row, "lecture", where),
        solution=text_of(row, "solution", where),
        caption=text_of(row, "caption", where),
        image=locate_image(image, asked.image_folder, where) if image else None,
        tags={**tags, "hint": "yes" if hint else "no"},
    )


def _find_image(row: Mapping[str, Any], pid: str, where: str, images: Path) -> Image | None:
    if not row.get("image"):
        return None
    split = text_of(row, "split", where)
    for name in (split, pid):
        if name in ("", ".", "..") or set(name) & set("/\\\0"):
            raise DataError(f"{where}: '{name}' cannot be the name of a folder in '{images}'")
    return resolve_image(images / split / pid, row["image"], where)


def _ask(problem: _Problem, record: Record, asked: ParseOptions) -> Example:
    """Build the multiple-choice conversation."""
    is_published = asked.prompt_text == "published"
    texts = _published_texts(record.row, asked) if is_published else _texts(problem, asked)
    inputs, _, outputs = asked.prompt_format.partition("-")
    prompt = write_prompt(texts, inputs, published=is_published)
    answers, options = write_answer(texts, outputs, asked.answer_as, published=is_published)
    is_plain = not is_published and not asked.use_captions and inputs == "QCM"
    return Example(
        messages=(
            user_turn(prompt, problem.image),
            Message("assistant", (answers[problem.answer],)),
        ),
        id=problem.id,
        source=record.source,
        task=asked.prompt_format,
        choices=problem.choices,
        answer_index=problem.answer,
        options=options,
        tags=problem.tags,
        question=Question(problem.question, problem.hint) if is_plain else None,
    )


def _texts(problem: _Problem, asked: ParseOptions) -> ProblemTexts:
    context = [problem.hint, problem.caption if asked.use_captions else ""]
    return ProblemTexts(
        problem.question,
        " ".join(filter(None, context)),
        problem.choices,
        problem.lecture,
        problem.solution,
    )


def _published_texts(row: Mapping[str, Any], asked: ParseOptions) -> ProblemTexts:
    """Take a checked record's texts as they are, blanks around them and all."""
    captioned = asked.use_captions and row.get("caption")
    context = " ".join([row.get("hint") or "", row["caption"] if captioned else ""])
    lecture, solution = (
        (row.get(key) or "").replace("\n", "\\n") for key in ("lecture", "solution")
    )
    return ProblemTexts(row["question"], context.strip(), row["choices"], lecture, solution)


def _describe(problem: _Problem, record: Record, asked: ParseOptions) -> Example:
    """Build the conversation that describes the image."""
    return Example(
        messages=(
            user_turn(CAPTION_PROMPT, problem.image),
            Message("assistant", (problem.caption,)),
        ),
        id=problem.id,
        source=record.source,
        task=CAPTION,
        tags=problem.tags,
    )
