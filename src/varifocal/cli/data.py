"""`varifocal data`: look at a recipe's data before a run, and make data sets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varifocal.cli.options import RecipeArgument, SetOption, ready, show_help
from varifocal.errors import VarifocalError

if TYPE_CHECKING:
    from varifocal.data.inspect.check import DataReport

NOT_USABLE = 1
"""Exit code of `data check` for data that a run would not get through."""

data_app = typer.Typer(
    help="Check data, look at them, make them.", callback=show_help, invoke_without_command=True
)
make_app = typer.Typer(
    help="Make a data set.",
    callback=show_help,
    invoke_without_command=True,
)
data_app.add_typer(make_app, name="make")


@data_app.command(epilog="Example: varifocal data check nlvr --set data.root=data/nlvr")
def check(
    recipe: RecipeArgument,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes that read; by default one a processor, at most 8."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write all counts and every finding here."),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw the histograms into this folder.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Read a recipe's data once and say whether a run would get through, and what it would learn.

    Ends with 0 if so, with 1 if not; the last sentence says why and the fix.
    """
    from varifocal.cli.checks import check_models
    from varifocal.recipe import leaves_text, load_recipe
    from varifocal.writing import claim_folder

    page = load_recipe(recipe, overrides or ())
    check_models(page.model)
    if plots is not None:
        claim_folder(plots, place="another --plots")
    ready()
    from varifocal.cli.data_tables import print_check
    from varifocal.cli.tables import stage_bars
    from varifocal.data.inspect.check import check_data
    from varifocal.data.inspect.verdict import Verdict
    from varifocal.planning.lengths import num_steps
    from varifocal.prompts import load_encoder
    from varifocal.training.usable import why_refused

    encoder = load_encoder(page)
    with stage_bars() as progress:
        report = check_data(
            page.data,
            encoder,
            seed=page.seed,
            num_workers=workers,
            progress=progress,
            images_only=leaves_text(page.tuner),
        )
    rows = None if report.epoch is None else report.epoch.num_rows
    refused = why_refused(page, steps=None if rows is None else num_steps(page, rows, 1))
    if refused:
        report = replace(report, verdict=Verdict(False, f"not usable: {refused}"))
    print_check(report)
    _write_check(report, json_file, plots)
    print(report.verdict.sentence)
    if not report.verdict.is_usable:
        raise typer.Exit(NOT_USABLE)


def _write_check(report: DataReport, json_file: Path | None, plots: Path | None) -> None:
    """Write a check's counts and figures where they are asked for, and name the files."""
    if json_file is not None:
        report.write_json(json_file)
        print(json_file)
    if plots is not None:
        from varifocal.cli.data_tables import draw_check

        for file in draw_check(report, plots):
            print(file)


@data_app.command(epilog="Example: varifocal data show nlvr --random --html row.html")
def show(
    recipe: RecipeArgument,
    index: Annotated[
        int | None, typer.Option(min=0, help="The row of the first epoch; 0 by default.")
    ] = None,
    at_random: Annotated[bool, typer.Option("--random", help="Any row.")] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --random: same seed, same row.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with the images instead.")
    ] = None,
    overrides: SetOption = None,
) -> None:
    """Show a packed row as the model gets it: what it reads and learns, and where samples end."""
    if at_random and index is not None:
        raise VarifocalError("--index and --random: give one of them")
    if seed is not None and not at_random:
        raise VarifocalError("--seed belongs to --random")
    from varifocal.cli.checks import check_models
    from varifocal.recipe import leaves_text, load_recipe

    page = load_recipe(recipe, overrides or ())
    check_models(page.model)
    ready()
    from varifocal.cli.data_tables import print_row, write_page
    from varifocal.cli.tables import stage_bars
    from varifocal.data.inspect.rows import FirstRows
    from varifocal.prompts import load_encoder
    from varifocal.training.examples import LAZY_FROM, open_samples

    samples = open_samples(
        page.data, load_encoder(page), seed=page.seed, images_only=leaves_text(page.tuner)
    )
    lazy = len(samples) >= LAZY_FROM if page.data.lazy is None else page.data.lazy
    with stage_bars() as progress:
        rows = FirstRows(
            samples,
            page.data,
            seed=page.seed,
            lazy=lazy,
            progress=lambda done, total: progress("encode", done, total),
        )
        row = rows.random(seed) if at_random else rows[index or 0]
    if html is None:
        print_row(row)
    else:
        write_page(row, str(page.name), html)
        print(html)


@make_app.command(
    epilog="Example: varifocal data make sciencebook data/sciencebook --train 2000 --test 400",
)
def sciencebook(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if new.")],
    train: Annotated[int, typer.Option(min=0, help="Questions to train on.")] = 2000,
    val: Annotated[int, typer.Option(min=0, help="Questions to choose settings by.")] = 200,
    test: Annotated[int, typer.Option(min=0, help="Questions to score on.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same questions.")] = 0,
    skills: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Only these skills; all by default.")
    ] = None,
) -> None:
    """Make science questions, many of them about images, in ScienceQA's official layout."""
    from varifocal.cli.tables import stage_bars
    from varifocal.sciencebook import make_sciencebook

    chosen = [skill.strip() for skill in skills.split(",")] if skills else None
    with stage_bars() as progress:
        summary = make_sciencebook(
            directory,
            train=train,
            val=val,
            test=test,
            seed=seed,
            skills=chosen,
            progress=lambda done, total: progress("draw", done, total),
        )
    print(
        f"{summary.directory}: {sum(summary.num_questions.values())} questions of "
        f"{len(summary.skills)} skills, {summary.num_images} with an image; a blind guess is "
        f"right {summary.chance:.0%} of the time"
    )


@make_app.command(
    epilog="Example: varifocal data make mlan data/mlan --data data --text-share 0.5",
)
def mlan(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; made if new.")],
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the public sets lie, a folder each.")
    ] = Path("data"),
    text_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the examples without an image.")
    ] = 1.0,
    total: Annotated[int, typer.Option(min=1, help="Examples in all.")] = 80_000,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same examples.")] = 0,
) -> None:
    """Mix public sets of questions as MLAN does: language, and images by the share you want."""
    ready()
    from varifocal.cli.data_tables import print_mixture
    from varifocal.cli.tables import stage_bars
    from varifocal.data.mlan import make_mlan

    with stage_bars() as progress:
        mixture = make_mlan(
            directory,
            data,
            text_share=text_share,
            total=total,
            seed=seed,
            progress=lambda done, total: progress("mix", done, total),
        )
    print_mixture(mixture, data)
