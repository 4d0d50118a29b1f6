"""The verb `watch`: how trainings go, in a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from varifocal.reports.watch import Watched

REFRESH_S = 3.0
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 40
_MOST_SAMPLES = 3


def add_watch_verb(app: typer.Typer) -> None:
    """Give an app the verb of this file."""
    app.command(epilog="Example: varifocal watch runs/demo")(watch)


def watch(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories, live or ended.")
    ],
    once: Annotated[
        bool, typer.Option("--once", help="Print how they go now, and end: for scripts.")
    ] = False,
) -> None:
    """Follow trainings from their files: losses, speed, time left, and whether they live."""
    from rich.console import Console
    from rich.live import Live

    from varifocal.reports.watch import watch_run
    from varifocal.run import RunDirectory

    opened = [RunDirectory.open(run) for run in runs]
    console = Console()
    if once:
        console.print(_table([watch_run(run) for run in opened]))
        return
    with Live(_table([watch_run(run) for run in opened]), console=console) as live:
        while True:
            time.sleep(REFRESH_S)
            live.update(_table([watch_run(run) for run in opened]))


def _table(watched: Sequence[Watched]) -> RenderableType:
    """Lay out each run as a block of lines; they fit into 80 columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for each in watched:
        table.add_row(Text(each.run.root.name, "bold"), Text(_head(each)))
        for name, lines, key in (
            ("loss", each.training, "loss"),
            ("held-out loss", each.evaluations, "eval_loss"),
            ("score", each.evaluations, "eval_score"),
            ("learning rate", each.training, "learning_rate"),
        ):
            values = [float(line[key]) for line in lines if key in line]
            if values:
                table.add_row(f"  {name}", Text(f"{sparkline(values)} {values[-1]:.4g}"))
        if each.best:
            table.add_row("  best", f"step {each.best['step']}, {each.best['value']:.4g}")
        for sample in each.samples[:_MOST_SAMPLES]:
            table.add_row("  answer", Text(_sample_line(sample)))
        if each.training:
            table.add_row("  tokens/s", f"{each.training[-1].get('tokens_per_second', 0):,.0f}")
        if each.peak_memory_gib is not None:
            kind = "measured" if each.status == "finished" else "planned"
            table.add_row("  memory", f"{each.peak_memory_gib:.2f} GiB, {kind}")
    return table


def _sample_line(sample: Mapping[str, Any]) -> str:
    r"""Say how a held-out question begins, what was answered, and whether that is right.

    >>> _sample_line({"question": "Which\nshape?", "answer": "A star", "credit": 1.0})
    'Which shape? | A star | right'
    """
    question, answer = (
        shorten(sample[key], 30, placeholder="...") for key in ("question", "answer")
    )
    credit = sample.get("credit")
    verdict = {None: "", 0: "wrong", 1: "right"}.get(credit, f"{credit:.0%}" if credit else "")
    return " | ".join(filter(None, (question, answer or "nothing", verdict)))


def _head(watched: Watched) -> str:
    of = "" if watched.max_steps is None else f" of {watched.max_steps:,}"
    left = watched.seconds_left
    rest = "" if left is None else f", {left / 60:.1f} min left"
    return f"{watched.status}, step {watched.step:,}{of}{rest}"


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """Draw numbers as a line of blocks; the last of each stretch stands for it.

    >>> sparkline([1.0, 2.0, 3.0]), sparkline([2.0, 2.0])
    ('▁▅█', '▁▁')
    """
    size = max(-(-len(values) // width), 1)
    shown = [values[min(start + size, len(values)) - 1] for start in range(0, len(values), size)]
    finite = [value for value in shown if abs(value) < float("inf")]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    span = (high - low) or 1.0
    last = len(_BARS) - 1
    return "".join(
        _BARS[min(round((value - low) / span * last), last)] if value in finite else "?"
        for value in shown
    )
