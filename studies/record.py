"""What every study keeps: its figures over seeds, and with what they were made."""

import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from varifocal.writing import write_json

PACKAGES = ("varifocal", "torch", "transformers", "peft")
T95 = (0.0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t at 97.5 % by degrees of freedom, from 1 to 9."""


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean of one figure over seeds, with the 95 % interval that Student's t gives for it.

    The interval says how much another draw of seeds would move the mean; the test questions are
    the same for all seeds. With one seed it is None.

    Args:
        values: one a seed, at most ten.

    Returns:
        `mean`, `low`, `high`, `values`.

    >>> over_seeds([1.0, 2.0, 3.0])["mean"], round(over_seeds([1.0, 2.0, 3.0])["low"], 3)
    (2.0, -0.484)
    >>> over_seeds([1.5])["low"] is None
    True
    """
    mean = fmean(values)
    if len(values) < 2:
        return {"mean": mean, "low": None, "high": None, "values": list(values)}
    half = T95[len(values) - 1] * stdev(values) / len(values) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": list(values)}


def write_study(file: Path, command: str, seeds: Sequence[int], results: dict[str, Any]) -> None:
    """Write a study's figures next to what they were made with."""
    page = {
        "command": command,
        "commit": _commit(),
        "versions": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "seeds": list(seeds),
        **results,
    }
    write_json(file, page)


def _commit() -> str:
    """The tree's commit, or '' outside a repository or without git."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parent,
        )
    except FileNotFoundError:
        return ""
    return found.stdout.strip()
