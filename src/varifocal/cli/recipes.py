"""The verb `recipes`: which recipes ship, what each is for, and what it needs."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from varifocal.recipe import Recipe

_COLUMNS = 80


def add_recipes_verb(app: typer.Typer) -> None:
    """Give an app the verb of this file."""
    app.command(epilog="Example: varifocal recipes demo > mine.yaml")(recipes)


def recipes(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="Print this recipe's file, to copy and to change."),
    ] = None,
) -> None:
    """List the recipes that ship with Varifocal and what each needs, or print one."""
    from varifocal.recipe import load_recipe
    from varifocal.recipe.reading import SHIPPED, find_recipe

    if name is not None:
        print(find_recipe(name).read_text(encoding="utf-8"), end="")
        return
    for file in sorted(SHIPPED.glob("*.yaml")):
        recipe = load_recipe(file, check_paths=False)
        print(file.stem)
        for line in textwrap.wrap(first_sentence(file), _COLUMNS - 2):
            print(f"  {line}")
        for what, needed in needs(recipe).items():
            indent = " " * 11
            for line in textwrap.wrap(
                f"{what:<7}{needed}", _COLUMNS, initial_indent="    ", subsequent_indent=indent
            ):
                print(line)
    print("\nvarifocal recipes NAME prints one; varifocal plan NAME says what it takes.")


def first_sentence(file: Path) -> str:
    """Read the first sentence of a recipe's head.

    Args:
        file: the recipe's YAML file, which begins with comments.
    """
    head: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        head.append(line.removeprefix("# "))
    sentence, dot, _ = " ".join(head).partition(". ")
    return sentence + dot.strip()


def needs(recipe: Recipe) -> dict[str, str]:
    """Say what a recipe has to be given: models, data, and a run that goes before."""
    from varifocal.models.names import PACKAGED

    model = recipe.model
    names = [name for name in (model.language_model, model.vision_tower) if name]
    models = [f"{name} ({'packaged' if name in PACKAGED else 'hub'})" for name in names]
    root = Path(recipe.data.root or Path.cwd())
    places = [Path(source.path) for source in recipe.data.train if source.type == "file"]
    wanted = dict.fromkeys(
        str(place.relative_to(root)) if place.is_relative_to(root) else str(place)
        for place in places
    )
    formats = ", ".join(dict.fromkeys(section.format for section in recipe.data.train))
    files = ", ".join("data.root itself" if place == "." else place for place in wanted)
    lines = {
        "models": ", ".join(models),
        "trains": recipe.tuner.type,
        "data": files if formats == "auto" else f"{files} ({formats})",
    }
    if model.connector is not None and model.connector.weights is not None:
        lines["after"] = f"varifocal train {Path(model.connector.weights).name}"
    return lines
