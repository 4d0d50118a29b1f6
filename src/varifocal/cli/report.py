"""The verbs that tell of runs: `report`, of one or side by side, and `sweep`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varifocal.cli.options import PublicOption, PushOption, ready
from varifocal.errors import VarifocalError

if TYPE_CHECKING:
    from varifocal.reports.runs_table import RunsRow, RunsTable

_SIDE_BY_SIDE = 5  # more runs than these stand below one another
_COLUMNS = (" TXT %", " IMG %", " NO %")  # of ScienceQA, that stand on the screen too
_SHORT = ("trained parameters", "tokens", "TFLOP", "minutes", "loss")


def add_run_verbs(app: typer.Typer) -> None:
    """Give an app the verbs of this file."""
    app.command(epilog="Example: varifocal report runs/demo --html card.html")(report)
    app.command(epilog="Example: varifocal sweep sweeps/mlan-two-shares.yaml")(sweep)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories, finished or not.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write report.md, report.json and report.png there."),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Of one run: write its card as one page, too."),
    ] = None,
    push_to_hub: PushOption = None,
    public: PublicOption = False,
) -> None:
    """Write a run's model card (RUN/README.md); lay several runs side by side."""
    from varifocal.run import RunDirectory
    from varifocal.writing import claim_folder

    if out is not None:
        claim_folder(out)
    if html is not None and len(runs) > 1:
        raise VarifocalError(f"--html is the card of one run; {len(runs)} are named")
    if push_to_hub is not None and len(runs) > 1:
        raise VarifocalError(f"--push-to-hub uploads one run; {len(runs)} are named")
    if len(runs) == 1:
        RunDirectory.open(runs[0])  # before templates and tables are imported
    from varifocal.reports.card_scores import former_scores
    from varifocal.reports.runs_table import tabulate_runs
    from varifocal.trained_weights import scores_folder

    written: Sequence[Path] = ()
    if len(runs) == 1:
        from varifocal.reports.card import write_card

        written = write_card(runs[0], html)
    table = tabulate_runs(runs)
    print_report(table)
    for root in runs:
        for sentence in former_scores(scores_folder(RunDirectory(root))):
            print(sentence, file=sys.stderr)
    for file in written:
        print(file)
    if out is not None:
        for file in table.write(out):
            print(file)
    if push_to_hub is not None:
        from varifocal.reports.sharing import push_run

        print(push_run(runs[0], push_to_hub, private=not public))


def sweep(
    page: Annotated[Path, typer.Argument(metavar="SWEEP.yaml", help="A recipe and a grid.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the runs go; runs/NAME by default.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a knob of every point."),
    ] = None,
) -> None:
    """Train and score one recipe over a grid; the same command goes on with what is left."""
    from varifocal.cli.checks import check_models
    from varifocal.sweep import load_sweep, run_sweep

    loaded = load_sweep(page, overrides or ())
    for point in loaded.points:
        check_models(point.recipe.model)
    ready()
    from varifocal.cli.tables import stage_bars
    from varifocal.reports.card import renew_card

    root = out or Path("runs") / loaded.name
    with stage_bars() as progress:
        result = run_sweep(loaded, root, progress)
    for run in result.runs:
        renew_card(run.root)
    print_report(result)
    print(root / "report.md")


def print_report(table: RunsTable) -> None:
    """Print a report: runs as columns while they fit, and else as lines."""
    from varifocal.reports.runs_table import group_rows

    if table.groups:
        _print("Over seeds", *group_rows(table))
    names = [run.name for run in table.runs]
    if len(names) <= _SIDE_BY_SIDE:
        shown = [row for row in table.rows if row.section != "scores" or _is_shown(row)]
        _print("Runs", ["", *names], [[row.label, *row.cells] for row in shown])
        return
    differing = [
        row
        for row in table.rows
        if row.section in ("run", "recipe") or row.label in _SHORT or row.main
    ]
    lines = zip(*(row.cells for row in differing), strict=True)
    _print(
        "Runs",
        ["", *(row.label for row in differing)],
        [[name, *cells] for name, cells in zip(names, lines, strict=True)],
    )


def _is_shown(row: RunsRow) -> bool:
    """Whether a score stands on the screen too; the files have all."""
    from varifocal.reports.runs_table import REFERENCES

    suffixes = tuple(f" ({label})" for _, label in REFERENCES)
    return row.main or row.label.endswith((*_COLUMNS, *suffixes))


def _print(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    Console().print(table)
