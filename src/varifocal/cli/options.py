"""Arguments that several verbs share."""

import warnings
from typing import Annotated

import typer

from varifocal.registration import check_versions


def ready() -> None:
    """Check the libraries before their slow import, and keep their notices off the screen."""
    check_versions()
    warnings.filterwarnings("ignore", category=FutureWarning)
    from transformers.utils import logging

    logging.disable_progress_bar()


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
