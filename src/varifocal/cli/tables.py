"""What long work and its results look like on the terminal."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from varifocal.evaluation.runner import Result


class StageBars:
    """Told of stages and how far each is, shows bars: `progress` of whatever takes long.

    Args:
        bars: where to draw.
        is_terminal: whether bars can be seen; if not, a stage gets one line when it is done.
    """

    def __init__(self, bars: Progress, is_terminal: bool) -> None:
        self._bars = bars
        self._is_terminal = is_terminal
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` of a stage are done; `note` is a word on how it goes."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, note="")
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)
        if done == total and not self._is_terminal:
            print(f"{stage} {done}/{total} {note}".rstrip(), file=sys.stderr, flush=True)


@contextmanager
def stage_bars() -> Iterator[StageBars]:
    """Show bars on stderr while the block runs; they leave when it ends."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    seen = console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=not seen) as bars:
        yield StageBars(bars, seen)


def print_demo(result: Mapping[str, Any], root: Path) -> None:
    """Print the demo's result: percent right before and after, by column and by skill."""
    from varifocal.demo import ask_command

    console = Console()
    table = Table(title="Percent right on new questions", title_justify="left")
    table.add_column("")
    for name in ("IMG", "TXT", "NO", "average"):
        table.add_column(name, justify="right")
    for name, key in (
        ("before: without pictures", "before_blind"),
        ("before: untrained connector", "before"),
        ("after", "after"),
    ):
        table.add_row(name, *(f"{percent:.1f}" for percent in result[key].values()))
    table.caption = "IMG: with a picture, TXT: with a text, NO: with neither"
    console.print(table)
    skills = Table(title="By skill", title_justify="left")
    for name in ("skill", "needs", "questions", "chance", "before", "after"):
        skills.add_column(name, justify="left" if name in ("skill", "needs") else "right")
    for name, one in sorted(
        result["skills"].items(), key=lambda item: item[1]["needs"] != "picture"
    ):
        numbers = (f"{one[key]:.0f}" for key in ("chance", "before", "after"))
        skills.add_row(name, one["needs"], f"{one['questions']}", *numbers)
    console.print(skills)
    low, high = result["intervals"]["after"]["IMG"]
    print(
        f"IMG after training: {result['after']['IMG']:.1f} (95 % interval {low:.1f} to {high:.1f})"
    )
    print(
        f"{result['trained_parameters']:,} trained parameters, {result['minutes']:.1f} minutes, "
        f"peak memory {result['peak_memory_gib']:.1f} GiB"
    )
    if result["quick"]:
        print("a few steps teach nothing yet: this was to see that all works")
    print(f"plots: {root / 'plots'}")
    print(f"next: {ask_command(root, result)}")


def _of_normalisations(by_sum: float, by_mean: float) -> str:
    return f"by the sum over an option's tokens {by_sum:.1f}, by their mean {by_mean:.1f}"


def _print_of_how_many(asked: int, left_out: int) -> None:
    if left_out:
        print(f"scored on {asked:,} of {asked + left_out:,}; {left_out:,} could not be asked")


def print_result(result: "Result") -> None:
    """Print a benchmark's measures as a table, the headline first."""
    words = [result.benchmark.protocol, *result.baselines.words()]
    if both := result.by_normalisation:
        words.append(_of_normalisations(both["sum"], both["mean"]))
    table = Table(title=result.name, title_justify="left", caption="; ".join(words))
    table.add_column("")
    for name in ("score %", "95 % interval", "chance", "items", "unparsed"):
        table.add_column(name, justify="right")
    main = result.benchmark.main
    for one in sorted(result.measures, key=lambda measure: measure.name != main):
        low_high = "" if one.low is None or one.high is None else f"{one.low:.1f} to {one.high:.1f}"
        chance = "" if one.chance is None else f"{one.chance:.1f}"
        numbers = (f"{one.value:.1f}", low_high, chance, f"{one.count}", f"{one.unparsed}")
        table.add_row(one.name, *numbers)
    Console().print(table)
    if result.num_cut:
        print(f"{result.num_cut} prompts were shortened to fit into the model's window")
    if result.kept:
        print(f"{result.kept} of {len(result.answered)} answers were there already")
    _print_of_how_many(len(result.answered), len(result.left_out))
    print_left_out(result.left_out)
    print(result.file)


def print_left_out(sentences: Sequence[str]) -> None:
    """Say which records were left out, on stderr."""
    for sentence in sentences:
        print(f"left out: {sentence}", file=sys.stderr)
