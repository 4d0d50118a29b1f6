"""The verb over two models on the same items: `compare`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varifocal.cli.ready import ready

if TYPE_CHECKING:
    from varifocal.evaluation.compare import SuiteComparison
    from varifocal.evaluation.paired import Row
    from varifocal.evaluation.statistics import Interval

_SHOWN = 5  # items of a kind on the screen
_MOST_CHARACTERS = 70  # of a question or an answer there

PlaceArgument = Annotated[
    Path, typer.Argument(help="A run, its eval folder, or one file of predictions.")
]


def add_compare_verbs(app: typer.Typer) -> None:
    """Give an app the verbs of this file."""
    app.command(epilog="Example: varifocal compare runs/lora runs/mma --out runs/compared")(compare)


def compare(
    first: PlaceArgument,
    second: PlaceArgument,
    suite: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this suite; may be given several times."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write compare.json and compare.html there.")
    ] = None,
    any_prompt: Annotated[
        bool, typer.Option("--any-prompt", help="Compare items asked in other words too.")
    ] = False,
) -> None:
    """Compare two runs on the items that both answered: intervals, a test, and what differs."""
    ready()
    from varifocal.analysis.compare_page import write_page
    from varifocal.evaluation.compare import compare as compare_runs
    from varifocal.evaluation.recall import recall
    from varifocal.run import write_json

    found = compare_runs(first, second, suite or (), any_prompt=any_prompt, enrich=recall)
    for one in found.suites:
        _print_suite(one, found.first, found.second)
    for note in found.notes:
        print(note)
    if out is not None:
        page = found.to_dict()
        write_json(out / "compare.json", page)
        write_page(page, out / "compare.html")
        print(out / "compare.json")
        print(out / "compare.html")


def _print_suite(one: SuiteComparison, first: str, second: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{one.suite}: {len(one.pairs):,} shared items", title_justify="left")
    table.add_column("", overflow="fold")
    for name in (f"{first} %", f"{second} %", "difference", "won / lost\nboth / neither", "p"):
        table.add_column(name, justify="right", overflow="fold")
    for row in one.rows:
        if ": " not in row.name:  # tags stand in the files
            table.add_row(*_cells(row))
    console = Console()
    if one.rows:
        console.print(table)
    else:
        print(f"{one.suite}: {len(one.pairs):,} shared items")
    for note in one.notes:
        print(f"note: {note}")
    for line in _differing(one, first, second):
        print(line)


def _cells(row: Row) -> Iterator[str]:
    from varifocal.analysis.compare_page import say_p

    yield row.name
    yield _say(row.first)
    yield _say(row.second)
    yield _say(row.difference, "+.1f")
    counted = row.won is not None
    yield f"{row.won} / {row.lost}\n{row.both} / {row.neither}" if counted else ""
    yield "" if row.p is None else say_p(row.p)


def _say(interval: Interval, form: str = ".1f") -> str:
    low, high = format(interval.low, form), format(interval.high, form)
    return f"{format(interval.value, form)}\n{low} to {high}"


def _differing(one: SuiteComparison, first: str, second: str) -> Iterator[str]:
    """Yield lines on a few items of each kind."""
    titles: Mapping[str, str] = {
        "won": f"only {second} is right",
        "lost": f"only {first} is right",
        "changed": "another answer that earns as much",
    }
    for kind in ("won", "lost", "changed"):
        pairs = one.of_kind(kind)
        if not pairs:
            continue
        yield f"{kind} {len(pairs)} ({titles[kind]}):"
        for pair in pairs[:_SHOWN]:
            asked = pair.first.question or pair.second.question
            answers = f"{_short(pair.first.answer)!r} -> {_short(pair.second.answer)!r}"
            right = repr(_short(pair.first.gold))
            yield f"  {pair.first.id}: {_short(asked)}  {answers}, right: {right}"
        if len(pairs) > _SHOWN:
            yield f"  ... and {len(pairs) - _SHOWN} more (--out DIR writes all)"


def _short(text: str) -> str:
    line = " ".join(text.partition("\nOptions:")[0].split()).removeprefix("Question: ")
    return line if len(line) <= _MOST_CHARACTERS else f"{line[: _MOST_CHARACTERS - 4]} ..."
