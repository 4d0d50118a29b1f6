"""Compose sciencebook records and write them in ScienceQA's official layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from varifocal.errors import DataError
from varifocal.locking import alone
from varifocal.progress import StepProgress
from varifocal.sciencebook.dice import SPLITS, Dice
from varifocal.sciencebook.drawing import Canvas
from varifocal.sciencebook.skill import Skill, SkillQuestion
from varifocal.sciencebook.table import SKILLS, find_skills
from varifocal.writing import claim_folder, write_text

IMAGE_NAME = "image.png"
PNG_COMPRESSION = 1


@dataclass(frozen=True)
class Summary:
    """What `make_sciencebook` wrote.

    Attributes:
        directory: where the data set lies.
        num_questions: questions per split.
        num_images: images over all splits.
        skills: the names of the skills, in table order.
        chance: accuracy of a blind guess over all questions, 0 to 1.
    """

    directory: Path
    num_questions: dict[str, int]
    num_images: int
    skills: tuple[str, ...]
    chance: float


def make_sciencebook(
    directory: str | Path,
    *,
    train: int,
    val: int,
    test: int,
    seed: int,
    skills: Sequence[str] | None = None,
    progress: StepProgress | None = None,
) -> Summary:
    """Write a data set of procedural science questions.

    The layout is ScienceQA's: `problems.json` (id -> record), `pid_splits.json` (split -> ids) and
    `images/SPLIT/ID/image.png`. An image's record has one more key, `caption`, a true description.
    Images come first and `problems.json` last, so a directory without it was not finished; the
    same call then starts over. A record depends on the seed, its split and its place there, and on
    the choice of skills, never on how many others are made.

    Args:
        directory: made if it is missing; must not hold a finished data set.
        train: questions in this split, spread evenly over the skills; likewise `val` and `test`.
        val: see `train`.
        test: see `train`.
        seed: any whole number.
        skills: names out of `SKILLS`; None takes all.
        progress: called after each question with the number done and the total.

    Returns:
        The counts of what was written.

    Raises:
        DataError: an unknown skill, a negative count, or a directory that already holds a data set.
        RunError: the directory holds somebody's files, another process is writing there, or the
            disk refuses.
    """
    table = find_skills(skills)
    counts = {"train": train, "val": val, "test": test}
    for split, count in counts.items():
        if count < 0:
            raise DataError(f"{split}: cannot make {count} questions; give 0 or more")
    root = Path(directory)
    _check_unfinished(root)
    claim_folder(root, place="another folder")
    try:
        with alone(root):
            _check_unfinished(root)  # another process may have finished it meanwhile
            problems = _write_images(root, table, counts, seed, progress)
            _write_json(root / "pid_splits.json", _names_by_split(problems))
            _write_json(root / "problems.json", problems)
    except OSError as error:
        raise DataError(f"cannot write the data set in {root}: {error}") from error
    return Summary(
        directory=root,
        num_questions=counts,
        num_images=sum(record["image"] is not None for record in problems.values()),
        skills=tuple(skill.name for skill in table),
        chance=_mean(1 / len(record["choices"]) for record in problems.values()),
    )


def _check_unfinished(root: Path) -> None:
    if (root / "problems.json").exists():
        raise DataError(f"{root} already holds a data set; delete it or choose another directory")


def _names_by_split(problems: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    for name, record in problems.items():
        splits[record["split"]].append(name)
    return splits


def compose(
    skill: Skill | str, split: str, index: int, seed: int
) -> tuple[dict[str, Any], SkillQuestion]:
    """Make one record without drawing its image.

    Args:
        skill: a row of the table, or its name.
        split: "train", "val" or "test".
        index: which of the skill's questions in that split, from 0.
        seed: of the data set.

    Returns:
        The record as it stands in `problems.json`, and the question it was made from, whose `draw`
        is the image's.

    Example:
        >>> record, question = compose("magnets", "train", 0, seed=0)
        >>> record["question"]
        'Will these magnets attract or repel each other?'
        >>> record["choices"][record["answer"]] == question.answer
        True
    """
    row = SKILLS[skill] if isinstance(skill, str) else skill
    question = row.make(Dice(seed, row.name, split, index))
    order = Dice(seed, row.name, split, index, purpose="order")
    choices = order.shuffled(question.choices)
    record: dict[str, Any] = {
        "question": question.question,
        "choices": choices,
        "answer": choices.index(question.answer),
        "hint": question.hint,
        "image": IMAGE_NAME if question.draw else None,
        "task": "closed choice",
        "grade": f"grade{order.integer(*row.grades)}",
        "subject": row.subject,
        "topic": row.topic,
        "category": row.category,
        "skill": row.title,
        "lecture": row.lecture,
        "solution": question.solution,
        "split": split,
    }
    if question.draw:
        record["caption"] = question.caption
    return record, question


def draw_image(
    skill: Skill | str, split: str, index: int, seed: int, question: SkillQuestion
) -> Image.Image:
    """Draw the image of a question that `compose` made with the same arguments.

    Returns:
        The image, RGB, 224 x 224.

    Raises:
        ValueError: the question has no image.
    """
    name = skill if isinstance(skill, str) else skill.name
    if question.draw is None:
        raise ValueError(f"questions of {name!r} have no image")
    canvas = Canvas(Dice(seed, name, split, index, purpose="picture"))
    question.draw(canvas)
    return canvas.finish()


def record_id(split: str, place: int) -> str:
    """Name the record at a place of a split; no two splits share a name.

    >>> [record_id("train", 0), record_id("val", 0), record_id("test", 0), record_id("train", 1)]
    ['1', '2', '3', '4']
    """
    return str(len(SPLITS) * place + SPLITS.index(split) + 1)


def _write_images(
    root: Path,
    table: Sequence[Skill],
    counts: dict[str, int],
    seed: int,
    progress: StepProgress | None,
) -> dict[str, dict[str, Any]]:
    root.mkdir(parents=True, exist_ok=True)
    total = sum(counts.values())
    problems: dict[str, dict[str, Any]] = {}
    for split, place in _places(counts):
        index, row = divmod(place, len(table))
        name = record_id(split, place)
        record, question = compose(table[row], split, index, seed)
        if question.draw:
            folder = root / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            image = draw_image(table[row], split, index, seed, question)
            image.save(folder / IMAGE_NAME, compress_level=PNG_COMPRESSION)
        problems[name] = record
        if progress is not None:
            progress(len(problems), total)
    return problems


def _places(counts: dict[str, int]) -> Iterator[tuple[str, int]]:
    for split in SPLITS:
        for place in range(counts[split]):
            yield split, place


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
