"""MME: fourteen subtasks of yes-or-no questions, two an image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from varifocal.data.example import Image, Question
from varifocal.data.json_files import read_text
from varifocal.errors import DataError, nearest
from varifocal.evaluation.benchmark import Answered, Benchmark, Item, Measure, accuracy, exact
from varifocal.evaluation.benchmarks.loading import (
    find_image,
    image_of,
    make_item,
    needed_text,
    read_table,
)
from varifocal.evaluation.metrics.text_match import read_prefix
from varifocal.evaluation.statistics import bootstrap, wilson

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
SUBTASKS = (*PERCEPTION, *COGNITION)


@dataclass(frozen=True)
class Pairs:
    """A subtask's answers.

    Attributes:
        questions: of them all.
        right: of them.
        images: those with two questions answered.
        both_right: of them, both.
    """

    questions: int
    right: int
    images: int
    both_right: int

    @property
    def accuracy(self) -> float:
        """Percent of questions."""
        return 100 * self.right / self.questions

    @property
    def accuracy_plus(self) -> float | None:
        """Percent of images with both right; None without a complete pair."""
        return 100 * self.both_right / self.images if self.images else None

    @property
    def score(self) -> float | None:
        """Their sum, at most 200; None without a complete pair."""
        plus = self.accuracy_plus
        return None if plus is None else self.accuracy + plus


def pair_up(answers: Iterable[tuple[str, bool]]) -> Pairs:
    """Count a subtask's (image, right) answers.

    >>> pair_up([("a.jpg", True), ("a.jpg", True), ("b.jpg", True), ("b.jpg", False)]).score
    125.0
    """
    by_image: dict[str, list[bool]] = defaultdict(list)
    for image, right in answers:
        by_image[image].append(right)
    pairs = [members for members in by_image.values() if len(members) == 2]
    return Pairs(
        questions=sum(map(len, by_image.values())),
        right=sum(map(sum, by_image.values())),
        images=len(pairs),
        both_right=sum(map(all, pairs)),
    )


_FILES = "MME's SUBTASK/*.txt next to its images, or SUBTASK/questions_answers_YN and images"
_INSIDE = "questions_answers_YN"


def load_mme(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield MME's questions; `group` is SUBTASK/IMAGE, tag `subtask` the subtask.

    Args:
        folder: has the subtasks, itself or in a folder of the official archive.
        split: a subtask, or None for all that are there.

    Raises:
        DataError: a file is missing or malformed.
    """
    if split not in (None, *SUBTASKS):
        raise DataError(f"MME has no subtask '{split}'{nearest(str(split), SUBTASKS)}")
    wanted = SUBTASKS if split is None else (split,)
    folders = {task: _folder_of(folder, task) for task in wanted}
    if any(folders.values()):
        for task, place in folders.items():
            if place is not None:
                yield from _official(place, task)
        return
    for record in read_table(folder, ("test",), _FILES):
        row, where = record.row, record.where
        subtask, name = needed_text(row, "category", where), needed_text(row, "question_id", where)
        if subtask in wanted:
            image = image_of(row, "image", folder, where)
            asked, gold = needed_text(row, "question", where), needed_text(row, "answer", where)
            group = f"{subtask}/{Path(name).stem}"
            yield _item(f"{name} {record.place}", where, asked, gold, image, subtask, group)


def _folder_of(folder: Path, subtask: str) -> Path | None:
    """Find the folder of a subtask that has question files."""
    inside = (sorted(folder.glob(f"{depth}{subtask}")) for depth in ("", "*/", "*/*/"))
    for place in chain.from_iterable(inside):
        if any(place.glob("*.txt")) or any((place / _INSIDE).glob("*.txt")):
            return place
    return None


def _official(place: Path, subtask: str) -> Iterator[Item]:
    """Yield the lines "question<TAB>Yes" of a subtask's files, one file an image."""
    inside = (place / _INSIDE).is_dir()
    folders = [place / "images"] if inside else [place]
    for file in sorted((place / _INSIDE if inside else place).glob("*.txt")):
        image = find_image(folders, file.stem, str(file))
        lines = [line for line in read_text(file).splitlines() if line.strip()]
        for number, line in enumerate(lines, 1):
            where = f"{file}: line {number}"
            asked, tab, gold = line.rpartition("\t")
            if not tab or not asked.strip():
                raise DataError(f"{where}: a question, a tab and Yes or No are needed: {line!r}")
            group = f"{subtask}/{file.stem}"
            yield _item(f"{group}-{number}", where, asked.strip(), gold, image, subtask, group)


def _item(
    name: str, where: str, asked: str, gold: str, image: Image, subtask: str, group: str
) -> Item:
    gold = gold.strip().lower().rstrip(".")
    if gold not in ("yes", "no"):
        raise DataError(f"{where}: the answer must be Yes or No, not {gold!r}")
    tags = {"subtask": subtask}
    return make_item(
        name, where, asked, image,
        question=Question(asked), references=(gold,), group=group, tags=tags,
    )  # fmt: skip


def measure_mme(answered: Sequence[Answered]) -> list[Measure]:
    """Score the sums first, then each subtask: accuracy, accuracy+ and their sum."""
    by_subtask: dict[str, list[Answered]] = {}
    for pair in answered:
        by_subtask.setdefault(pair[0].tags["subtask"], []).append(pair)
    ordered = [subtask for subtask in SUBTASKS if subtask in by_subtask]
    measures = []
    for name, members in (("perception", PERCEPTION), ("cognition", COGNITION)):
        present = [by_subtask[subtask] for subtask in members if subtask in by_subtask]
        measure = _sum(f"{name} (points of {200 * len(members)})", present)
        measures += [measure] if measure else []
    for subtask in ordered:
        part = by_subtask[subtask]
        measures.append(accuracy(part, f"{subtask} accuracy"))
        measure = _sum(f"{subtask} (points of 200)", [part])
        measures += [_plus(part, subtask), measure] if measure else []
    return measures


def _plus(part: Sequence[Answered], subtask: str) -> Measure:
    """Score accuracy+ over the images with two answered questions."""
    pairs = pair_up((item.group, bool(exact(item, answer))) for item, answer in part)
    low, high = wilson(pairs.both_right, pairs.images)
    value = 100 * pairs.both_right / pairs.images
    return Measure(f"{subtask} accuracy+", value, 100 * low, 100 * high, pairs.images)


def _sum(name: str, parts: Sequence[Sequence[Answered]]) -> Measure | None:
    """Add the scores of subtasks, with a bootstrap over images; None without a complete pair."""
    images = [image for subtask, part in enumerate(parts) for image in _images(part, subtask)]
    if not images:
        return None
    table = np.array(images, np.int64)  # [images, (subtask, right, both right)]

    def value(picked: np.ndarray) -> float:
        total = 0.0
        for subtask in range(len(parts)):
            rows = table[picked][table[picked, 0] == subtask]
            total += 100 * (rows[:, 1].mean() / 2 + rows[:, 2].mean()) if len(rows) else np.nan
        return float(total)

    interval = bootstrap(len(table), value)
    flat = [pair for part in parts for pair in part]
    unparsed = sum(answer.parsed is None for _, answer in flat)
    return Measure(name, interval.value, interval.low, interval.high, len(flat), unparsed)


def _images(part: Sequence[Answered], subtask: int) -> Iterator[tuple[int, int, int]]:
    """Yield (subtask, questions right, both right) of the images with two answered questions."""
    right: dict[str, list[bool]] = {}
    for item, answer in part:
        right.setdefault(item.group, []).append(bool(exact(item, answer)))
    for pair in right.values():
        if len(pair) == 2:
            yield subtask, sum(pair), int(all(pair))


ROWS = (
    Benchmark(
        name="mme",
        load=load_mme,
        measure=measure_mme,
        method="generate",
        parse=lambda text, item: read_prefix(text),
        files=f"{_FILES}; or lmms-lab/MME: data/test-*.parquet",
        protocol=(
            "the question as it is written (it asks for yes or no); greedy answer, yes or no by "
            "its first four letters; a subtask's score is accuracy + accuracy+ (both questions "
            "of an image right), summed over ten perception and four cognition subtasks "
            "(Fu et al. 2023)"
        ),
        source="https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models (Fu et al. "
        "2023), for research only",
        main="perception (points of 2000)",
    ),
)
