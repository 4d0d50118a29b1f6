"""Rounds of steps: every arm takes the same step in turn, and each line goes to a file."""

import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.side_by_side.children import OF_BEFORE, ROOT, Child

WARM_UP = 1
"""Steps of each arm that are no round: the first compiles, fills caches and makes the optimiser."""


def take_rounds(
    arms: Sequence[str],
    recipe: Path,
    directory: Path,
    *,
    rounds: int,
    max_seconds: float,
    threads: int,
    timed: bool = True,
    before: Path | None = None,
) -> None:
    """Take rounds until there are enough or the time is up; append them to `rounds.jsonl`.

    Args:
        arms: in the order of the first round; each round starts with the next one.
        recipe: the recipe's file.
        directory: of the benchmark.
        rounds: at most so many.
        max_seconds: no round is begun that would end after so many seconds.
        threads: that each arm computes with.
        timed: False for rounds whose losses alone count.
        before: the source tree that the arms of `OF_BEFORE` run.
    """
    began, piece = time.monotonic(), uuid.uuid4().hex[:8]
    file = directory / "rounds.jsonl"
    roots = dict.fromkeys(OF_BEFORE, before or ROOT)
    children = [Child(arm, recipe, directory, threads, roots.get(arm, ROOT)) for arm in arms]
    slowest = 0.0
    try:
        for child in children:
            _append(file, {"piece": piece, "arm": child.arm, "timed": timed, **child.wait()})
        for number in range(-WARM_UP, rounds):
            started = time.monotonic()
            if number >= 0 and started - began + slowest > max_seconds:
                break
            first = number % len(children)
            for child in children[first:] + children[:first]:
                line = {"piece": piece, "round": number, "arm": child.arm, "timed": timed}
                _append(file, {**line, "step": number + WARM_UP, **child.step()})
            if number >= 0:
                slowest = max(slowest, time.monotonic() - started)
    finally:
        for child in children:
            child.close()


def _append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a") as out:
        out.write(json.dumps(line) + "\n")


def read_lines(directory: Path) -> list[dict[str, Any]]:
    """Read every line so far."""
    file = directory / "rounds.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
