"""Arguments that several verbs share."""

from typing import Annotated

import typer

RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A recipe's YAML file, or the name of one that ships with Varifocal."
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a knob of the recipe by its dotted name; may be given several times.",
    ),
]
