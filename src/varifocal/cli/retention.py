"""The verb `retention`: what is left of the text skills of a run's base model."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from varifocal.cli.options import StrengthOption, ready
from varifocal.errors import RunError


def add_retention_verb(app: typer.Typer) -> None:
    """Give an app the verb of this file."""
    app.command(epilog="Example: varifocal retention runs/demo --limit 20")(retention)


def retention(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Holds scienceqa-text and alpaca; without it the run's own questions are asked.",
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="Held-out text.")] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Texts, questions and instructions, of each so many.")
    ] = 100,
    on_bad_record: Annotated[
        Literal["fail", "skip"] | None,
        typer.Option(
            "--on-bad-record",
            help="A record that cannot be asked: stop, or leave it out and count it; by default "
            "as the run's data.on_bad_record says.",
        ),
    ] = None,
    strength: StrengthOption = 1.0,
) -> None:
    """Measure a run's text skills next to its base's: the base, the adapter off, the adapter on."""
    from varifocal.cli.checks import check_run

    check_run(run)
    ready()
    from varifocal.cli.tables import print_left_out, stage_bars
    from varifocal.evaluation.retention import measure_retention
    from varifocal.reports.card import renew_card

    run = run.expanduser()
    with stage_bars() as progress:
        measured, file = measure_retention(
            run,
            data=data,
            text=text,
            limit=limit,
            on_bad_record=on_bad_record,
            strength=strength,
            command=shlex.join(["varifocal", *sys.argv[1:]]),
            progress=progress,
        )
    renew_card(run)
    print_retention([read_retention(run, file.name)])
    print_left_out(measured.left_out)
    print(file)


def read_retention(run: Path, name: str = "retention.json") -> dict[str, Any]:
    """Read what `retention` has written into a run.

    Args:
        run: its directory.
        name: of the file.

    Raises:
        RunError: there is no such file, or it is damaged.
    """
    from varifocal.run import RunDirectory
    from varifocal.trained_weights import scores_folder

    file = scores_folder(RunDirectory(run)) / name
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(
            f"{file} is not there or damaged; make it with: varifocal retention "
            f"{shlex.quote(str(run))}"
        ) from error


def print_retention(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print the tables of one run or of several as one."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    title = "Text skills: the base, the adapter off and on"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1))
    for name in ("", "base", "off", "on", "change"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for measure in dict.fromkeys(row["name"] for run in runs for row in run["rows"]):
        for run in runs:
            for row in (row for row in run["rows"] if row["name"] == measure):
                words = dict.fromkeys((Path(run["run"]).name, run["tuner"]))
                table.add_row(f"{measure}\n{', '.join(words)} ({row['count']})", *_retained(row))
        table.add_section()
    Console().print(table)
    for sentence in dict.fromkeys(note for run in runs for note in run["notes"]):
        print(f"note: {sentence}")
    for part, place in dict.fromkeys(item for run in runs for item in run["sources"].items()):
        print(f"{part}: {place}")


def _retained(row: Mapping[str, Any]) -> Iterator[str]:
    """Yield the cells after the name; a perplexity changes by a factor, all else by points."""
    from varifocal.evaluation.retention import FACTORS
    from varifocal.reports.compare_page import say_p

    is_factor = row["name"] in FACTORS
    form = ".2f" if is_factor else ".1f"
    yield _score_cell(row["base"], form)
    yield "= base" if row["off"] == row["base"] else _score_cell(row["off"], form)
    yield _score_cell(row["on"], form)
    change = (
        []
        if row["change"] is None
        else [_score_cell(row["change"], ".3f" if is_factor else "+.1f")]
    )
    if is_factor and change:
        change = [f"x {change[0]}"]
    if row["p"] is not None:
        change.append(f"p {say_p(row['p'])}")
    yield "\n".join(change)


def _score_cell(score: Mapping[str, float], form: str) -> str:
    low, high = format(score["low"], form), format(score["high"], form)
    return f"{format(score['value'], form)}\n{low} to {high}"
