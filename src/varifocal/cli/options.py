"""Arguments that several verbs share."""

import gc
import importlib
import sys
import warnings
from typing import Annotated

import typer

from varifocal.registration import check_versions


def ready() -> None:
    """Check the libraries before their slow import, and keep their notices off the screen."""
    check_versions()
    warnings.filterwarnings("ignore", category=FutureWarning)
    if "varifocal.assemble" not in sys.modules:
        _import_libraries()
    from transformers.utils import logging

    logging.disable_progress_bar()


def show_help(context: typer.Context) -> None:
    """Print the help of a group of verbs and end, where no verb follows."""
    if context.invoked_subcommand is None:
        if text := context.get_help():  # with rich it is printed by then
            print(text)
        raise typer.Exit


def _recipe_names(incomplete: str) -> list[str]:
    """Complete the name of a recipe that ships with Varifocal."""
    from varifocal.recipe.reading import SHIPPED

    return sorted(file.stem for file in SHIPPED.glob(f"{incomplete}*.yaml"))


def _import_libraries() -> None:
    """Import torch, transformers and PEFT without the collector.

    A million objects come up that live until the process ends: looking through them again and
    again, and once more at the end, takes a quarter of the import's time.
    """
    gc.disable()
    try:
        importlib.import_module("varifocal.assemble")
        gc.freeze()
    finally:
        gc.enable()


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="A recipe's YAML file, or the name of one that ships with Varifocal.",
        autocompletion=_recipe_names,
    ),
]
StrengthOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        help="Factor on what the adapter changes: 0 is the base, 1 the run as it was trained, and "
        "between lies less of what was learned for more of the base's language.",
    ),
]
PushOption = Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload it, too.")]
PublicOption = Annotated[
    bool, typer.Option("--public", help="Of a hub repository made now: everybody may see it.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the recipe by its section and name: training.max_steps=100, a list "
        "as 'tuner.target_modules=[q_proj,v_proj]', one of a list as data.train[0].epochs=2. May "
        "be given several times; a wrong key is answered with the right section.",
    ),
]
