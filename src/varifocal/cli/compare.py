"""The verb `compare`: two models on the same items, or the text skills of several runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varifocal.cli.retention import print_retention, read_retention
from varifocal.errors import VarifocalError

if TYPE_CHECKING:
    from varifocal.evaluation.compare import SuiteComparison
    from varifocal.evaluation.paired import PairedRow
    from varifocal.evaluation.statistics import Interval

_SHOWN = 5  # items of a kind on the screen
_MOST_CHARACTERS = 70  # of a question or an answer there


def add_compare_verb(app: typer.Typer) -> None:
    """Give an app the verb of this file."""
    app.command(epilog="Example: varifocal compare runs/lora runs/mma --out runs/compared")(compare)


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B", help="Two runs, their eval folders, or two files of predictions."
        ),
    ],
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
    retention: Annotated[
        bool,
        typer.Option(
            "--retention", help="Text skills of any number of runs, as `retention` measured them."
        ),
    ] = False,
) -> None:
    """Compare two runs on the items that both answered: intervals, a test, and what differs."""
    if retention:
        given = {"--suite": suite, "--out": out, "--any-prompt": any_prompt}
        for option in (option for option, value in given.items() if value):
            raise VarifocalError(f"--retention has its own measures; leave out {option}")
        print_retention([read_retention(run) for run in runs])
        return
    if len(runs) != 2:
        raise VarifocalError(f"compare takes two runs, not {len(runs)} (more: --retention)")
    from varifocal.evaluation.compare import compare_runs as compare_runs
    from varifocal.reports.compare_page import write_comparison
    from varifocal.writing import claim_folder

    first, second = runs
    if out is not None:
        claim_folder(out)
    comparison = compare_runs(first, second, suite or (), any_prompt=any_prompt)
    for suite_result in comparison.suites:
        _print_suite(
            suite_result, comparison.first, comparison.second, comparison.blind_rules(suite_result)
        )
    for note in comparison.notes:
        print(note)
    if out is not None:
        for file in write_comparison(comparison.to_dict(), out):
            print(file)


def _print_suite(
    suite: SuiteComparison, first: str, second: str, blind_rules: Sequence[str]
) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{suite.suite}: {len(suite.pairs):,} shared items", title_justify="left")
    table.add_column("", overflow="fold")
    for name in (f"{first} %", f"{second} %", "difference", "won / lost\nboth / neither", "p"):
        table.add_column(name, justify="right", overflow="fold")
    for row in suite.rows:
        if ": " not in row.name:  # tags stand in the files
            table.add_row(*_cells(row))
    console = Console()
    if suite.rows:
        console.print(table)
    else:
        print(f"{suite.suite}: {len(suite.pairs):,} shared items")
    for sentence in blind_rules:
        print(sentence)
    for note in suite.notes:
        print(f"note: {note}")
    for line in _differing(suite, first, second):
        print(line)


def _cells(row: PairedRow) -> Iterator[str]:
    from varifocal.reports.compare_page import say_p

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


def _differing(suite: SuiteComparison, first: str, second: str) -> Iterator[str]:
    """Yield lines on a few items of each kind."""
    titles: Mapping[str, str] = {
        "won": f"only {second} is right",
        "lost": f"only {first} is right",
        "changed": "another answer that earns as much",
    }
    for kind in ("won", "lost", "changed"):
        pairs = suite.of_kind(kind)
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
