"""How a training goes, read from the files of its run; the training itself serves nothing."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from varifocal.locking import holder_of
from varifocal.run import RunDirectory

Status = Literal["starting", "running", "stuck", "finished", "stopped", "dead"]

QUIET_LINES = 10
"""Usual times between two lines of metrics after which a training without one is stuck."""
QUIET_S = 60.0
"""Seconds that it may be quiet however fast it logs: it may be saving."""


@dataclass(frozen=True)
class Watched:
    """A run as its files show it now.

    Attributes:
        run: its directory.
        status: `stuck`: its process lives and has logged nothing for long; `stopped`: it has ended
            before its last step; `dead`: its process was killed.
        step, max_steps: done, and planned; None where nothing says it.
        seconds_left: at the last line's speed.
        training: lines of metrics with a training loss.
        evaluations: lines with a held-out loss.
        best: what `best.json` holds.
        samples: those of the newest evaluation, as `samples.json` has them.
        peak_memory_gib: measured, or planned while it runs.
    """

    run: RunDirectory
    status: Status
    step: int
    max_steps: int | None
    seconds_left: float | None
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    best: dict[str, Any] = field(default_factory=dict)
    samples: list[dict[str, Any]] = field(default_factory=list)
    peak_memory_gib: float | None = None


def watch_run(run: RunDirectory, now: float | None = None) -> Watched:
    """Read how a run goes.

    Args:
        run: its directory.
        now: seconds since 1970; the clock's by default.
    """
    lines = run.read_metrics()
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "eval_loss" in line]
    plan, result = _read(run.plan), _read(run.root / "training.json")
    step = max((int(line.get("step", 0)) for line in lines), default=0)
    predicted = plan.get("predicted", {})
    max_steps = predicted.get("steps")
    status = _status(run, training, evaluations, result, time.time() if now is None else now)
    left = None
    if max_steps is not None and training and status in ("running", "stuck"):
        left = (max_steps - step) * _seconds_a_step(training)
    shown = run.validation_at(evaluations[-1]["step"]) if evaluations else run.validation
    samples: Any = _read(shown / "samples.json") or []
    memory = result.get("peak_memory_gib", predicted.get("peak_memory_gib"))
    best = _read(run.best)
    return Watched(
        run, status, step, max_steps, left, training, evaluations, best, list(samples), memory
    )


def _status(
    run: RunDirectory,
    training: list[dict[str, Any]],
    evaluations: list[dict[str, Any]],
    result: dict[str, Any],
    now: float,
) -> Status:
    holder = holder_of(run.root)
    if holder is None:
        done = result.get("steps") is not None
        last = training[-1]["step"] if training else 0
        return "finished" if done and result["steps"] >= last else "stopped"
    if not holder[1]:
        return "dead"
    if not training:
        return "starting"
    scoring = evaluations[-1].get("eval_runtime", 0.0) if evaluations else 0.0
    each = training[-1]["step"] - (training[-2]["step"] if len(training) > 1 else 0)
    usual = each * _seconds_a_step(training) + scoring
    quiet = now - run.metrics.stat().st_mtime
    return "stuck" if quiet > max(QUIET_S, QUIET_LINES * usual) else "running"


def _seconds_a_step(training: list[dict[str, Any]]) -> float:
    """Return how long a step takes, by the tokens of a step and their speed at the last line."""
    last = training[-1]
    speed = last.get("tokens_per_second") or 0.0
    return last.get("tokens", 0) / last["step"] / speed if speed and last["step"] else 0.0


def _read(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
