"""`varifocal analyze words`: which visual tokens of a run say which words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from varifocal.cli.analyze_verbs import OutOption, RunArgument
from varifocal.cli.ready import ready


def add_words_verb(app: typer.Typer) -> None:
    """Add the verb to `varifocal analyze`."""
    app.command(epilog="Example: varifocal analyze words runs/demo --images photo.png")(words)


def words(
    run: RunArgument,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="PICTURE", help="Look at this picture; may be given several times."),
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            "--words", metavar="A,B,...", help="What tokens may say; the descriptions' words else."
        ),
    ] = None,
    pictures: Annotated[int, typer.Option(min=1, help="How many, where --images names none.")] = 4,
    out: OutOption = None,
) -> None:
    """Show the words nearest to each visual token, before the training and after.

    Words are compared by the alignment's own distribution; the language model is not run.
    """
    ready()
    from varifocal.analysis.words import words_of_run
    from varifocal.cli.screen import stage_bars

    chosen = None
    if vocabulary is not None:
        chosen = [word.strip() for word in vocabulary.split(",") if word.strip()]
    with stage_bars() as progress:
        _, written = words_of_run(
            run,
            images=images or (),
            words=chosen,
            num_pictures=pictures,
            out=out,
            progress=progress,
        )
    for file in written.files:
        print(file)
