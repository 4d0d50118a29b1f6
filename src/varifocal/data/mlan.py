"""Mixtures like MLAN's (arXiv 2411.10557): questions of public sets, by the share of language.

The sets are those of its code; how many of its examples come from which is not published. Here
each set gives as many as the others, and all that it has where it has fewer.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from varifocal.data.example import Example, Message
from varifocal.data.formats.instructions import vary
from varifocal.data.formats.questions import LETTERS, PLACEHOLDER
from varifocal.data.source import Source, open_source
from varifocal.errors import DataError
from varifocal.locking import alone
from varifocal.progress import StepProgress
from varifocal.recipe import FileSection
from varifocal.writing import claim_folder, write_text

FILE = "mlan.json"
_YES_NO = {"true": "yes", "false": "no"}
_COSMOS = {
    "columns": {"answer": "label", "choices": "{answer0}|{answer1}|{answer2}|{answer3}"},
    "answer_is": "index",
}
_VQA = {
    "field": "questions",
    "columns": {"image": "COCO_train2014_{image_id:012d}.jpg"},
}


@dataclass(frozen=True)
class PublicSet:
    """A set as it lies in the data folder.

    Attributes:
        name: in the counts, and what the examples' ids begin with.
        files: patterns of its training files, the first that matches counts, each with the keys
            of a recipe's source.
        place: where it comes from.
        images: folder of its images in the data folder; None for language alone.
        joined: pattern of a second file that `question_id` joins.
    """

    name: str
    files: Mapping[str, Mapping[str, Any]]
    place: str
    images: str | None = None
    joined: str | None = None


SETS = (
    PublicSet(
        "squad",
        {
            "squad/train-v1.1.json": {"record_path": "data.paragraphs.qas"},
            "squad/**/train-*.parquet": {},
        },
        "https://rajpurkar.github.io/SQuAD-explorer, or rajpurkar/squad on the hub",
    ),
    PublicSet(
        "strategyqa",
        {"strategyqa/strategyqa_train.json": {}},
        "https://allenai.org/data/strategyqa",
    ),
    PublicSet(
        "commonsenseqa",
        {"commonsenseqa/train_rand_split.jsonl": {}, "commonsenseqa/**/train-*.parquet": {}},
        "https://www.tau-nlp.sites.tau.ac.il/commonsenseqa, or tau/commonsense_qa on the hub",
    ),
    PublicSet(
        "cosmosqa",
        {"cosmosqa/train.jsonl": _COSMOS, "cosmosqa/train.csv": _COSMOS},
        "https://wilburone.github.io/cosmos, or allenai/cosmos_qa on the hub",
    ),
    PublicSet(
        "arc",
        {"arc/**/ARC-*-Train.jsonl": {}, "arc/**/train-*.parquet": {}},
        "https://allenai.org/data/arc, or allenai/ai2_arc on the hub",
    ),
    PublicSet(
        "vqav2",
        {"vqa/v2_OpenEnded_mscoco_train2014_questions.json": _VQA},
        "https://visualqa.org/download.html, with COCO's train2014",
        "coco/train2014",
        "vqa/v2_mscoco_train2014_annotations.json",
    ),
    PublicSet(
        "aokvqa",
        {
            "aokvqa/aokvqa_v1p0_train.json": {
                "columns": {"answer": "correct_choice_idx", "image": "{image_id:012d}.jpg"}
            }
        },
        "https://allenai.org/project/a-okvqa, with COCO's train2017",
        "coco/train2017",
    ),
)
"""Those that MLAN's code loads; the first five are language."""


@dataclass(frozen=True)
class Mixture:
    """What `make_mlan` wrote.

    Attributes:
        file: conversations in the authors' layout.
        counts: by set, examples that were taken and those that it has.
        absent: sets that do not lie in the data folder.
    """

    file: Path
    counts: dict[str, tuple[int, int]]
    absent: tuple[PublicSet, ...]


@dataclass(frozen=True)
class _Found:
    """A set that is there, its files one after the other."""

    set: PublicSet
    sources: list[Source] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def example(self, number: int) -> Example:
        for source in self.sources:
            if number < len(source):
                return source.example(number)
            number -= len(source)
        raise IndexError(number)


def make_mlan(
    directory: str | Path,
    data: str | Path,
    *,
    text_share: float,
    total: int,
    seed: int,
    progress: StepProgress | None = None,
) -> Mixture:
    """Write a mixture of public sets as conversations, as `format: mlan` reads them.

    The same sets, share, total and seed give the same file. Images are named by their paths in the
    data folder. Questions are worded by our templates, not the authors'; a question with choices is
    answered by its letter, StrategyQA's by yes or no.

    Args:
        directory: made if it is missing; must not hold a mixture.
        data: folder in which the sets lie.
        text_share: of the examples without an image, 0 to 1.
        total: of examples.
        seed: any whole number.
        progress: called after each example with the number done and the total.

    Raises:
        DataError: a share or a total that cannot be had, a record that cannot be read, or a
            directory that already holds a mixture.
        RunError: the directory holds somebody's files, or another process is writing there.
    """
    root, folder = Path(directory), Path(data)
    if not 0 <= text_share <= 1 or total < 1:
        raise DataError(f"a share of {text_share} of {total} examples: give 0 to 1 of 1 or more")
    _check_unfinished(root)
    present = [each for each in (_find(named, folder, seed) for named in SETS) if each.sources]
    absent = tuple(each for each in SETS if each not in [known.set for known in present])
    num_text = round(text_share * total)
    chosen: list[tuple[_Found, int]] = []
    for has_images, wanted in ((False, num_text), (True, total - num_text)):
        sets = [each for each in present if (each.set.images is not None) == has_images]
        _check_enough(sets, wanted, has_images, absent, folder)
        for each, count in zip(sets, _share(wanted, list(map(len, sets))), strict=True):
            lot = random.Random(f"{seed} {each.set.name}")
            chosen += [(each, number) for number in lot.sample(range(len(each)), count)]
    random.Random(seed).shuffle(chosen)
    claim_folder(root, place="another folder")
    with alone(root):
        _check_unfinished(root)
        rows = list(_rows(chosen, folder, seed, progress))
        write_text(root / FILE, json.dumps(rows, ensure_ascii=False, indent=1) + "\n")
    taken = {each.set.name: sum(other is each for other, _ in chosen) for each in present}
    counts = {each.set.name: (taken[each.set.name], len(each)) for each in present}
    return Mixture(root / FILE, counts, absent)


def _check_unfinished(root: Path) -> None:
    if (root / FILE).exists():
        raise DataError(f"{root / FILE} is there already; delete it or choose another directory")


def _find(wanted: PublicSet, folder: Path, seed: int) -> _Found:
    """Open the files of a set that are there."""
    for pattern, keys in wanted.files.items():
        files = sorted(file for file in folder.glob(pattern) if file.is_file())
        if files:
            more = dict(keys)
            if wanted.joined is not None:
                path = str(folder / wanted.joined)
                more["join"] = {"path": path, "field": "annotations", "key": "question_id"}
            if wanted.images is not None:
                more["image_folder"] = str(folder / wanted.images)
            opened = [open_source(FileSection(path=str(file), **more), seed) for file in files]
            return _Found(wanted, [each for each in opened if isinstance(each, Source)])
    return _Found(wanted)


def _check_enough(
    sets: Sequence[_Found], wanted: int, has_images: bool, absent: Sequence[PublicSet], folder: Path
) -> None:
    have = sum(map(len, sets))
    if have >= wanted:
        return
    kind = "with an image" if has_images else "without images"
    others = [each for each in absent if (each.images is not None) == has_images]
    missing = "; ".join(f"{each.name} as {_place(each)}, from {each.place}" for each in others)
    add = f", or add what is absent: {missing}" if missing else ""
    raise DataError(
        f"'{folder}' has {have:,} questions {kind} and {wanted:,} are wanted; lower --total or "
        f"change --text-share{add}"
    )


def _place(wanted: PublicSet) -> str:
    return next(iter(wanted.files))


def _share(total: int, sizes: Sequence[int]) -> list[int]:
    """Divide a total evenly; what a smaller set lacks is divided among the others.

    >>> _share(10, [100, 2, 100]), _share(5, [3, 3])
    ([4, 2, 4], [2, 3])
    """
    counts = [0] * len(sizes)
    order = sorted(range(len(sizes)), key=lambda index: sizes[index])
    for done, index in enumerate(order):
        left = len(order) - done
        counts[index] = min(sizes[index], (total - sum(counts)) // left)
    return counts


def _rows(
    chosen: Sequence[tuple[_Found, int]], folder: Path, seed: int, progress: StepProgress | None
) -> Iterator[dict[str, Any]]:
    for done, (each, number) in enumerate(chosen, start=1):
        example = vary(_with_yes_no(each.example(number)), seed)
        row: dict[str, Any] = {"id": f"{each.set.name}-{number}"}
        asked = example.messages[-2].text
        if example.images:
            path = example.images[0].path
            assert path is not None, "the sets with images name files"
            row["image"] = Path(os.path.relpath(path, folder)).as_posix()
            asked = f"{PLACEHOLDER}\n{asked}"
        turns = {"human": asked, "gpt": _answer(example)}
        row["conversations"] = [{"from": who, "value": text} for who, text in turns.items()]
        yield row
        if progress is not None:
            progress(done, len(chosen))


def _with_yes_no(example: Example) -> Example:
    """Answer by yes or no where the file says true or false."""
    last = example.messages[-1]
    answer = _YES_NO.get(last.text) if not example.choices else None
    if answer is None:
        return example
    messages = (*example.messages[:-1], Message("assistant", (answer,)))
    return replace(example, messages=messages)


def _answer(example: Example) -> str:
    if example.choices and example.answer_index is not None:
        return LETTERS[example.answer_index]
    return example.messages[-1].text
