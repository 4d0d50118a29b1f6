"""What long work and its results look like on the terminal."""

import sys
import time
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


_SECONDS_BETWEEN_LINES = 30.0


class StageBars:
    """Told of stages and how far each is, shows bars: `progress` of whatever takes long.

    Args:
        bars: where to draw.
    """

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` of a stage are done; an empty `note` leaves the last one."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, note="")
        self._bars.update(self._tasks[stage], completed=done, total=total)
        if note:
            self._bars.update(self._tasks[stage], note=note)


class StageLines:
    """Told of stages and how far each is, writes lines to stderr: for a log file.

    The stage "train" gets a line for every note, which comes once every `logging_steps`. Any other
    stage gets one before its first step where it says that it begins, one every 30 seconds, and one
    at its end.
    """

    def __init__(self) -> None:
        self._began: dict[str, tuple[float, int]] = {}
        self._seen: dict[str, tuple[float, int]] = {}  # the last line's time, the last call's step

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Write a line on a stage, if it is time for one."""
        now = time.monotonic()
        last, before = self._seen.get(stage, (now, 0))
        if stage not in self._began or done < before:  # a sweep trains again and again
            self._began[stage] = last, before = now, done
        is_new = bool(note) if stage == "train" else now - last >= _SECONDS_BETWEEN_LINES
        if is_new or done in (0, total):
            left = "" if note.endswith(" left") else self._time_left(stage, done, total, now)
            words = ", ".join(filter(None, (note, left)))
            print(f"{stage} {done}/{total} {words}".rstrip(), file=sys.stderr, flush=True)
            last = now
        self._seen[stage] = last, done

    def _time_left(self, stage: str, done: int, total: int, now: float) -> str:
        """Say how long a stage will go on at its mean pace; "" where that is not known."""
        since, first = self._began[stage]
        if not first < done < total:
            return ""
        seconds = (now - since) / (done - first) * (total - done)
        if seconds < 100:
            return f"{seconds:.0f} s left"
        return f"{seconds / 60:.0f} min left" if seconds < 6000 else f"{seconds / 3600:.1f} h left"


@contextmanager
def stage_bars() -> Iterator[StageBars | StageLines]:
    """Show bars on stderr while the block runs, which leave when it ends; lines in a log file."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield StageLines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield StageBars(bars)


def print_demo(result: Mapping[str, Any], root: Path) -> None:
    """Print the demo's result: percent right before and after, by column and by skill."""
    from varifocal.demo import ask_command

    console = Console()
    table = Table(title="Percent right on new questions", title_justify="left")
    table.add_column("")
    for name in ("IMG", "TXT", "NO", "average"):
        table.add_column(name, justify="right")
    for name, key in (
        ("before: without images", "before_blind"),
        ("before: untrained connector", "before"),
        ("after", "after"),
    ):
        table.add_row(name, *(f"{percent:.1f}" for percent in result[key].values()))
    table.caption = "IMG: with an image, TXT: with a text, NO: with neither"
    console.print(table)
    skills = Table(title="By skill", title_justify="left")
    for name in ("skill", "needs", "questions", "chance", "before", "after"):
        skills.add_column(name, justify="left" if name in ("skill", "needs") else "right")
    for name, scores in sorted(
        result["skills"].items(), key=lambda item: item[1]["needs"] == "text"
    ):
        numbers = (f"{scores[key]:.0f}" for key in ("chance", "before", "after"))
        skills.add_row(name, scores["needs"], f"{scores['questions']}", *numbers)
    console.print(skills)
    low, high = result["intervals"]["after"]["IMG"]
    print(
        f"IMG after training: {result['after']['IMG']:.1f} (95 % interval {low:.1f} to {high:.1f})"
    )
    if language := result.get("language"):
        print(
            f"plain language: perplexity x {language['perplexity']:.3f} of the base model's, "
            f"{language['answers_same']:.0f} % of its answers unchanged; after an image perplexity "
            f"x {language['perplexity_after_image']:.3f}"
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
    for measure in sorted(result.measures, key=lambda measure: measure.name != main):
        low_high = (
            ""
            if measure.low is None or measure.high is None
            else f"{measure.low:.1f} to {measure.high:.1f}"
        )
        chance = "" if measure.chance is None else f"{measure.chance:.1f}"
        numbers = (
            f"{measure.value:.1f}",
            low_high,
            chance,
            f"{measure.count}",
            f"{measure.unparsed}",
        )
        table.add_row(measure.name, *numbers)
    Console().print(table)
    if result.num_cut:
        print(f"{result.num_cut} prompts were shortened to fit into the model's window")
    if result.num_stored:
        print(f"{result.num_stored} of {len(result.answered)} answers were there already")
    _print_of_how_many(len(result.answered), len(result.left_out))
    print_left_out(result.left_out)
    print(result.file)


def print_left_out(sentences: Sequence[str]) -> None:
    """Say which records were left out, on stderr."""
    for sentence in sentences:
        print(f"left out: {sentence}", file=sys.stderr)
