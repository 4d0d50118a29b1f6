"""The tasks of the MixLoRA study: four sciencebook skills, NLVR and Fashion-MNIST.

Two ask for a word by another word (one of opposite, one of like meaning), two for different things
in images of the same coloured shapes, one whether a sentence is true of such shapes, one which
article a small grey photograph shows. The last two are read from `--data` and written as tables.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from varifocal.errors import DataError
from varifocal.evaluation.benchmarks.registry import BENCHMARKS
from varifocal.sciencebook import make_sciencebook
from varifocal.writing import atomic_directory

SKILLS = ("counting", "shapes", "opposites", "synonyms")
IMAGED = ("counting", "shapes", "colors")
NUM_CHOICES = 3


@dataclass(frozen=True)
class Sizes:
    """How many questions are made.

    Args:
        train: of each task.
        test: of each task, the same ones for all seeds.
        described: images with captions of each kind, for the connector.
    """

    train: int
    test: int
    described: int


def make_tasks(root: Path, sizes: Sizes, data: Path | None) -> dict[str, Any]:
    """Make what is missing of the tasks, and say where a recipe finds them.

    Args:
        root: where they are written.
        sizes: how many.
        data: holds `nlvr` and `fashion_mnist`; None leaves the two out.

    Returns:
        `data.train`, `data.evaluate` and `data.captions` of a recipe.

    Raises:
        DataError: `data` lacks one of the two, or has too few.
    """
    if not (root / "book" / "problems.json").is_file():
        train, test = len(SKILLS) * sizes.train, len(SKILLS) * sizes.test
        make_sciencebook(root / "book", train=train, val=0, test=test, seed=0, skills=SKILLS)
    if not (root / "described" / "problems.json").is_file():
        count = len(IMAGED) * sizes.described
        make_sciencebook(root / "described", train=count, val=0, test=0, seed=1, skills=IMAGED)
    tables = [] if data is None else [_nlvr(root, sizes, data), _fashion(root, sizes, data)]
    book, described = (
        {"path": str(root / name), "format": "scienceqa"} for name in ("book", "described")
    )
    return {
        "data.train": [{**book, "split": "train"}, *(one["train"] for one in tables)],
        "data.evaluate": [{**book, "split": "test"}, *(one["test"] for one in tables)],
        "data.captions": [{**described, "split": "train"}, *(one["captions"] for one in tables)],
    }


def _nlvr(root: Path, sizes: Sizes, data: Path) -> dict[str, Any]:
    """Write as many true sentences as false ones; the true ones describe their images."""
    folder = data / "nlvr"
    if not (root / "nlvr").is_dir():
        train, test = (list(_sentences(folder / f"{name}.jsonl")) for name in ("train", "dev"))
        described = [
            {"image": row["image"], "caption": row["sentence"]}
            for row in train
            if row["answer"] == "true"
        ]
        rows = {"train": _even(train)[: sizes.train], "test": _even(test)[: sizes.test]}
        _write(root / "nlvr", {**rows, "captions": described[: sizes.described]})
    return _sources(root / "nlvr", folder)


def _sentences(file: Path) -> Iterator[dict[str, Any]]:
    """Yield each sentence once: the corpus shows it with two arrangements of one image."""
    seen: set[str] = set()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"--data: NLVR's '{file}' cannot be read: {error}") from error
    for row in map(json.loads, lines):
        if row["sentence"] not in seen:
            seen.add(row["sentence"])
            yield {
                "id": row["id"],
                "skill": "nlvr",
                "question": f"True or false? {row['sentence']}",
                "choices": ["true", "false"],
                "answer": row["label"],
                "image": row["image"],
                "sentence": row["sentence"],
            }


def _even(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Let true and false take turns, so that a constant answer is right half the time.

    >>> [row["answer"] for row in _even([{"answer": one} for one in ("true", "true", "false")])]
    ['true', 'false']
    """
    true, false = ([row for row in rows if row["answer"] == word] for word in ("true", "false"))
    return [row for pair in zip(true, false, strict=False) for row in pair]


def _fashion(root: Path, sizes: Sizes, data: Path) -> dict[str, Any]:
    """Write images with the right article and two others, drawn by the image's number."""
    folder = root / "fashion"
    if not folder.is_dir():
        wanted = {"train": sizes.train + sizes.described, "test": sizes.test}
        images: dict[str, bytes] = {}
        rows: dict[str, list[dict[str, Any]]] = {}
        for split, count in wanted.items():
            items = BENCHMARKS["fashion_mnist"].load(data / "fashion_mnist", split)
            rows[split] = []
            for number, item in enumerate(islice(items, count)):
                name = f"{split}-{number}.png"
                image = item.example.images[0].data
                assert image is not None  # the reader makes PNGs in memory
                images[name] = image
                rows[split].append(_article(item.example, name, number))
        captions = [
            {"image": row["image"], "caption": row["answer"]}
            for row in rows["train"][sizes.train :]
        ]
        tables = {"train": rows["train"][: sizes.train], "test": rows["test"], "captions": captions}
        _write(folder, tables, images)
    return _sources(folder, folder)


def _article(example: Any, name: str, number: int) -> dict[str, Any]:
    chance = random.Random(number)
    right = example.choices[example.answer_index]
    others = [one for one in example.choices if one != right]
    choices = [right, *chance.sample(others, NUM_CHOICES - 1)]
    chance.shuffle(choices)
    return {
        "id": name.removesuffix(".png"),
        "skill": "fashion",
        "question": "Which article is this?",
        "choices": choices,
        "answer": right,
        "image": name,
    }


def _write(
    folder: Path, tables: dict[str, list[dict[str, Any]]], images: dict[str, bytes] | None = None
) -> None:
    """Write tables as JSON lines, with their images, whole or not at all."""
    with atomic_directory(folder) as staging:
        for name, content in (images or {}).items():
            (staging / name).write_bytes(content)
        for name, rows in tables.items():
            if not rows:
                raise DataError(f"--data: there is nothing for '{folder.name}/{name}'")
            lines = "".join(f"{json.dumps(row)}\n" for row in rows)
            (staging / f"{name}.jsonl").write_text(lines, encoding="utf-8")


def _sources(tables: Path, images: Path) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "path": str(tables / f"{name}.jsonl"),
            "format": "captions" if name == "captions" else "table",
            "image_folder": str(images.resolve()),
            "name": f"{tables.name}-{name}",
        }
        for name in ("train", "test", "captions")
    }
