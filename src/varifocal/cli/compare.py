"""The verb over two models on the same items, `compare`, and the table of text skills kept."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from varifocal.errors import RunError, VarifocalError

if TYPE_CHECKING:
    from varifocal.evaluation.compare import SuiteComparison
    from varifocal.evaluation.paired import Row
    from varifocal.evaluation.statistics import Interval

_SHOWN = 5  # items of a kind on the screen
_MOST_CHARACTERS = 70  # of a question or an answer there


def add_compare_verbs(app: typer.Typer) -> None:
    """Give an app the verbs of this file."""
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
            "--retention", help="Text skills of any number of runs, as eval --retention left them."
        ),
    ] = False,
) -> None:
    """Compare two runs on the items that both answered: intervals, a test, and what differs."""
    if retention:
        refuse_beside_retention(
            {"--suite": suite or None, "--out": out, "--any-prompt": any_prompt or None}
        )
        _print_retention([_read_retention(run) for run in runs])
        return
    if len(runs) != 2:
        raise VarifocalError(f"compare takes two runs, not {len(runs)} (more: --retention)")
    from varifocal.evaluation.compare import compare as compare_runs
    from varifocal.evaluation.recall import recall
    from varifocal.reports.compare_page import write_comparison
    from varifocal.writing import claim_folder

    first, second = runs
    if out is not None:
        claim_folder(out)
    found = compare_runs(first, second, suite or (), any_prompt=any_prompt, enrich=recall)
    for one in found.suites:
        _print_suite(one, found.first, found.second, found.blind_rules(one))
    for note in found.notes:
        print(note)
    if out is not None:
        for file in write_comparison(found.to_dict(), out):
            print(file)


def _print_suite(one: SuiteComparison, first: str, second: str, blind_rules: Sequence[str]) -> None:
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
    for sentence in blind_rules:
        print(sentence)
    for note in one.notes:
        print(f"note: {note}")
    for line in _differing(one, first, second):
        print(line)


def _cells(row: Row) -> Iterator[str]:
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


def refuse_beside_retention(given: Mapping[str, Any]) -> None:
    """Refuse options that the table of text skills would not heed.

    Args:
        given: option -> its value; None where it was not given.

    Raises:
        VarifocalError: one is given.
    """
    for option, value in given.items():
        if value is not None:
            raise VarifocalError(f"--retention has its own measures; leave out {option}")


def show_retention(
    run: Path,
    data: Path | None,
    text: Path | None,
    limit: int | None,
    on_bad_record: Literal["fail", "skip"] | None,
) -> None:
    """Measure a run's text skills against its base's, show the table and keep it in the run."""
    from varifocal.cli.tables import print_left_out, stage_bars
    from varifocal.evaluation.retention import LIMIT, retention
    from varifocal.locking import alone
    from varifocal.reports.card import renew_card
    from varifocal.run import RunDirectory
    from varifocal.trained import find_trained

    run = run.expanduser()
    command = shlex.join(["varifocal", *sys.argv[1:]])
    opened = RunDirectory.open(run)
    scores = opened.evaluations_at(find_trained(opened).step)
    with alone(scores, "retention"), stage_bars() as progress:
        found = retention(
            run,
            data=data,
            text=text,
            limit=limit or LIMIT,
            on_bad_record=on_bad_record,
            progress=progress,
        )
        file = found.write(scores, command)
    renew_card(run)
    _print_retention([_read_retention(run)])
    print_left_out(found.left_out)
    print(file)


def _read_retention(run: Path) -> dict[str, Any]:
    """Read what `eval --retention` has left in a run."""
    from varifocal.run import RunDirectory
    from varifocal.trained import scores_folder

    file = scores_folder(RunDirectory(run)) / "retention.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} is not there or damaged; make it with: varifocal eval {run} --retention"
        ) from error


def _print_retention(found: Sequence[Mapping[str, Any]]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    title = "Text skills: the base, the adapter off and on"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1))
    for name in ("", "base", "off", "on", "change"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for measure in dict.fromkeys(row["name"] for one in found for row in one["rows"]):
        for one in found:
            for row in (row for row in one["rows"] if row["name"] == measure):
                words = dict.fromkeys((Path(one["run"]).name, one["tuner"]))
                table.add_row(f"{measure}\n{', '.join(words)} ({row['count']})", *_retained(row))
        table.add_section()
    Console().print(table)
    for sentence in dict.fromkeys(note for one in found for note in one["notes"]):
        print(f"note: {sentence}")
    for part, place in dict.fromkeys(item for one in found for item in one["sources"].items()):
        print(f"{part}: {place}")


def _retained(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the cells behind the name; a perplexity changes by a factor, all else by points."""
    from varifocal.reports.compare_page import say_p

    is_factor = row["name"] == "perplexity"
    form = ".2f" if is_factor else ".1f"
    yield _said(row["base"], form)
    yield "= base" if row["off"] == row["base"] else _said(row["off"], form)
    yield _said(row["on"], form)
    change = [] if row["change"] is None else [_said(row["change"], ".3f" if is_factor else "+.1f")]
    if is_factor and change:
        change = [f"x {change[0]}"]
    if row["p"] is not None:
        change.append(f"p {say_p(row['p'])}")
    yield "\n".join(change)


def _said(one: Mapping[str, float], form: str) -> str:
    low, high = format(one["low"], form), format(one["high"], form)
    return f"{format(one['value'], form)}\n{low} to {high}"
