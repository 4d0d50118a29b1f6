"""Every benchmark and every suite by its name."""

from __future__ import annotations

from varifocal.errors import RecipeError, nearest
from varifocal.evaluation.benchmarks import (
    captions,
    classes,
    mme,
    pictures,
    questions,
    text,
    vision,
)
from varifocal.evaluation.benchmarks.row import Benchmark

_FAMILIES = (questions, text, pictures, vision, classes, mme, captions)

BENCHMARKS: dict[str, Benchmark] = {row.name: row for one in _FAMILIES for row in one.ROWS}
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
    found: dict[str, Benchmark] = {}
    for name in filter(None, (part.strip() for part in names.split(","))):
        if name not in SUITES and name not in BENCHMARKS:
            known = sorted({*SUITES, *BENCHMARKS})
            raise RecipeError(
                f"no suite or benchmark '{name}'{nearest(name, known)} (suites: "
                f"{', '.join(SUITES)}; benchmarks: {', '.join(BENCHMARKS)})"
            )
        for one in SUITES.get(name, (name,)):
            found[one] = BENCHMARKS[one]
    if not found:
        raise RecipeError(f"no suite is named; suites: {', '.join(SUITES)}")
    return list(found.values())
