"""The verb `init`: from a folder of images to a recipe that runs here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from varifocal.cli.options import ready

if TYPE_CHECKING:
    from varifocal.data.inspect.folder import FolderContents
    from varifocal.planning.first_recipe import FirstRecipe


def add_init_verb(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(epilog="Example: varifocal init photos photos/questions.csv --out photos.yaml")(
        init
    )


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where the images and their questions lie.")
    ],
    questions: Annotated[
        Path | None,
        typer.Argument(
            metavar="[QUESTIONS]",
            help="The CSV, JSON or parquet file of questions or captions; by default the only one "
            "in the folder.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OURS=NAME",
            help="A column that its name and content do not give away: --columns answer=Ergebnis. "
            "Ours are image, question, answer, choices and split.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="The recipe's file; by default FOLDER.yaml, here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a recipe that is there.")] = False,
) -> None:
    """Write a recipe for a folder of images: what lies there, held-out images, this machine."""
    from varifocal.data.inspect.folder import scan_folder
    from varifocal.errors import RecipeError

    file = out or Path(f"{folder.resolve().name}.yaml")
    if file.is_dir():
        raise RecipeError(
            f"--out {file} is a folder; give the recipe's file, such as {file}/a.yaml"
        )
    if file.exists() and not force:
        raise RecipeError(f"{file} is there already; name another with --out, or add --force")
    if not file.parent.is_dir():
        raise RecipeError(f"--out {file}: there is no folder '{file.parent}'")
    contents = scan_folder(folder, questions, _columns(columns or ()))
    ready()
    from varifocal.planning.first_recipe import write_first_recipe
    from varifocal.writing import write_text

    first = write_first_recipe(contents, file)
    write_text(file, first.text)
    for line in _lines(contents, first, file):
        print(line)


def _columns(given: list[str] | tuple[str, ...]) -> dict[str, str]:
    from varifocal.errors import RecipeError, nearest

    known = ("image", "question", "answer", "choices", "split")
    columns: dict[str, str] = {}
    for text in given:
        ours, equals, name = text.partition("=")
        if not equals or not name:
            raise RecipeError(f"--columns {text}: give it as OURS=NAME, such as answer=label")
        if ours not in known:
            allowed = ", ".join(known)
            raise RecipeError(
                f"--columns {text}: '{ours}' is none of {allowed}{nearest(ours, known)}"
            )
        columns[ours] = name
    return columns


def _lines(contents: FolderContents, first: FirstRecipe, file: Path) -> list[str]:
    recipe, plan = first.recipe, first.plan
    rows = "row" if contents.num_rows == 1 else "rows"
    what = {"questions": "questions", "captions": "captions", "text": "text without images"}
    models = ", ".join(filter(None, (recipe.model.language_model, recipe.model.vision_tower)))
    return [
        f"{contents.folder}: {contents.num_images:,} images; {contents.train['path']}: "
        f"{contents.num_rows:,} {rows} of {what[contents.kind]}",
        *(f"  {note}" for note in contents.notes),
        f"models: {models}",
        f"held out to score on: {first.num_held_out:,} of the {rows}",
        f"plan: {plan.verdict}",
        f"written: {file}",
        "next:",
        f"  varifocal data check {shlex.quote(str(file))}",
        f"  varifocal train {shlex.quote(str(file))} --out runs/{shlex.quote(file.stem)}",
    ]
