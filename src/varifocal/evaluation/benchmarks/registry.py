"""Every benchmark and every suite by its name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from varifocal.data.readers.images import missing_images_allowed
from varifocal.errors import DataError, RecipeError, nearest
from varifocal.evaluation.benchmark import Benchmark, Item
from varifocal.evaluation.benchmarks import captions, classes, images, mme, scienceqa, text, vision
from varifocal.evaluation.benchmarks.protocols import choose_protocol as choose_protocol


def find_folders(benchmarks: Sequence[Benchmark], root: Path) -> dict[str, Path]:
    """Return each benchmark's folder: `root/NAME`, or `root` itself where one alone is asked.

    Raises:
        DataError: folders are missing; a line each says what files they need.
    """
    folders = {benchmark.name: root / benchmark.name for benchmark in benchmarks}
    if len(benchmarks) == 1 and not folders[benchmarks[0].name].is_dir() and _has_files(root):
        return {benchmarks[0].name: root}
    missing = [benchmark for benchmark in benchmarks if not folders[benchmark.name].is_dir()]
    if missing:
        raise DataError(
            "\n".join(_missing(benchmark, folders[benchmark.name], root) for benchmark in missing)
        )
    return folders


def load_items(
    benchmark: Benchmark, folder: Path, split: str | None = None, limit: int | None = None
) -> list[Item]:
    """Read a benchmark's items, the first `limit` of them.

    Raises:
        DataError: a file is missing or broken; the text says what the folder has to hold.
    """
    try:
        with missing_images_allowed():  # it is named, or not needed, where the item is asked
            return list(islice(benchmark.load(folder, split), limit))
    except DataError as error:
        raise DataError(f"{benchmark.name}: {error}; {_needs(benchmark, str(folder))}") from error
    except FileNotFoundError as error:
        raise DataError(
            f"{benchmark.name}: no file '{error.filename}'; {_needs(benchmark, str(folder))}"
        ) from error


def _has_files(root: Path) -> bool:
    return root.is_dir() and any(child.is_file() for child in root.iterdir())


def _missing(benchmark: Benchmark, folder: Path, root: Path) -> str:
    if not root.is_dir():
        there = f"there is no folder '{root}' (name one with --data)"
    else:
        others = sorted(child.name for child in root.iterdir() if child.is_dir())
        there = f"there is no folder '{folder}'{nearest(folder.name, others).rstrip('?')}"
    return f"no data for {benchmark.name}: {there}; {_needs(benchmark, 'it')}"


def _needs(benchmark: Benchmark, folder: str) -> str:
    return f"{folder} has to hold {benchmark.files}; from {benchmark.source}"


_FAMILIES = (scienceqa, text, images, vision, classes, mme, captions)

BENCHMARKS: dict[str, Benchmark] = {row.name: row for family in _FAMILIES for row in family.ROWS}
"""One row a benchmark; each family's file lists its own."""

SUITES: dict[str, tuple[str, ...]] = {
    "scienceqa": ("scienceqa",),
    "sciencebook": ("sciencebook",),
    "mlan": (
        "race",
        "openbookqa",
        "boolq",
        "hellaswag",
        "realworldqa",
        "ai2d",
        "pope",
        "gqa",
        "scienceqa",
    ),
    "mixlora": ("textvqa", "vsr", "snli_ve", "cifar10", "cifar100", "mnist", "pope"),
    "mme": ("mme",),
    "caption": ("coco_captions",),
}
"""Benchmarks that a paper reports together."""


def find_benchmarks(names: str) -> list[Benchmark]:
    """Return the rows that a comma-separated list of suites and benchmarks names, each once.

    Raises:
        RecipeError: a name is neither; the text has the nearest one and the list.

    >>> [row.name for row in find_benchmarks("scienceqa, sciencebook")]
    ['scienceqa', 'sciencebook']
    """
    chosen: dict[str, Benchmark] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in SUITES and name not in BENCHMARKS:
            known = sorted({*SUITES, *BENCHMARKS})
            raise RecipeError(
                f"no suite or benchmark '{name}'{nearest(name, known)} (suites: "
                f"{', '.join(SUITES)}; benchmarks: {', '.join(BENCHMARKS)})"
            )
        for member in SUITES.get(name, (name,)):
            chosen[member] = BENCHMARKS[member]
    if not chosen:
        raise RecipeError(f"no suite is named; suites: {', '.join(SUITES)}")
    return list(chosen.values())
