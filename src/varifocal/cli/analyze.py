"""`varifocal analyze`: what a trained run's parameters do for its tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from varifocal.cli.checks import check_run, readable_images
from varifocal.cli.options import ready, show_help
from varifocal.errors import VarifocalError

if TYPE_CHECKING:
    from varifocal.analysis.interference import Interference
    from varifocal.analysis.routing import TaskRouting
    from varifocal.analysis.run_analysis import TaskSample, WrittenFiles

analyze_app = typer.Typer(
    help="Look into a trained run: which tasks get in each other's way, and who uses what.",
    callback=show_help,
    invoke_without_command=True,
)

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/demo.")
]
TasksOption = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="Only these tasks; the 12 most frequent by default."),
]
DataOption = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Look at this instead of data.train.")
]
SplitOption = Annotated[str | None, typer.Option(help="Another split than the recipe's.")]
ExamplesOption = Annotated[int, typer.Option(min=2, help="At most so many of each task.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Same seed, same examples.")]
OutOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where to write; RUN/analysis by default.")
]


@analyze_app.command(
    epilog="Example: varifocal analyze interference runs/demo --tasks magnets,counting,capitals",
)
def interference(
    run: RunArgument,
    tasks: TasksOption = None,
    data: DataOption = None,
    split: SplitOption = None,
    examples: ExamplesOption = 16,
    layers: Annotated[
        str,
        typer.Option(metavar="all|K", help="Each layer alone, or joined into K groups."),
    ] = "all",
    connector: Annotated[
        bool, typer.Option("--connector", help="Count the connector's parameters as well.")
    ] = False,
    estimator: Annotated[
        Literal["ratio_of_means", "mean_of_ratios"],
        typer.Option(help="The stable ratio, or the paper's mean over single examples."),
    ] = "ratio_of_means",
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Measure how a step on one task changes the loss of another, over all and by layer.

    A cell below 0 is a conflict: what one task learns, the other loses.
    """
    num_groups = _groups(layers)
    check_run(run)
    ready()
    from varifocal.analysis.run_analysis import interference_of_run
    from varifocal.cli.tables import stage_bars

    with stage_bars() as progress:
        measured, written = interference_of_run(
            run,
            _asked(tasks, data, split, examples, seed),
            num_groups=num_groups,
            with_connector=connector,
            estimator=estimator,
            out=out,
            progress=progress,
        )
    _print_interference(measured)
    _print_written(written)


@analyze_app.command(
    epilog="Example: varifocal analyze routing runs/demo --tasks magnets,counting,capitals",
)
def routing(
    run: RunArgument,
    tasks: TasksOption = None,
    data: DataOption = None,
    split: SplitOption = None,
    examples: ExamplesOption = 16,
    seed: SeedOption = 0,
    out: OutOption = None,
) -> None:
    """Show which factors which task uses: MMA's branches, MixLoRA's pools, LoRA experts."""
    check_run(run)
    ready()
    from varifocal.analysis.run_analysis import routing_of_run
    from varifocal.cli.tables import stage_bars

    with stage_bars() as progress:
        measured, written = routing_of_run(
            run, _asked(tasks, data, split, examples, seed), out=out, progress=progress
        )
    _print_routing(measured)
    _print_written(written)


def _asked(
    tasks: str | None, data: Path | None, split: str | None, examples: int, seed: int
) -> TaskSample:
    from varifocal.analysis.run_analysis import TaskSample

    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else None
    return TaskSample(names, data, split, examples, seed)


def _groups(layers: str) -> int | None:
    """Read --layers: None for every layer alone."""
    if layers == "all":
        return None
    if not layers.isdecimal() or int(layers) < 1:
        raise VarifocalError(
            f"--layers {layers}: give 'all', or into how many groups the layers are joined"
        )
    return int(layers)


def _print_interference(measured: Interference) -> None:
    """Print the share of pairs in conflict, by layer, and the worst of them."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Pairs of {len(measured.tasks)} tasks in conflict", title_justify="left")
    table.add_column("parameters")
    for name in ("trained", "pairs", "negative", "share", "sure"):
        table.add_column(name, justify="right")
    for name, matrix in measured.matrices.items():
        share = "-" if matrix.negative_share is None else f"{matrix.negative_share:.0%}"
        numbers = (matrix.num_pairs, matrix.num_negative, share, matrix.num_surely_negative)
        table.add_row(name, f"{measured.sizes[name]:,}", *map(str, numbers))
    table.caption = "sure: both halves of the examples agree"
    console = Console()
    console.print(table)
    vague = set(measured.vague)  # the sizes in their rows would head the list and say nothing
    telling = [pair for pair in measured.pairs() if pair[1] not in vague]
    for value, loser, winner, sure in telling[:5]:
        if value < 0:
            note = "" if sure else " (not sure: the halves of the examples disagree)"
            print(f"{value:6.2f}  a step on {winner} harms {loser}{note}")
    if measured.undefined:
        print(
            f"no numbers for {', '.join(measured.undefined)}: "
            "a step on it raises its own mean loss",
            file=sys.stderr,
        )
    if measured.vague:
        print(
            f"only the signs count in the rows of {', '.join(measured.vague)}: their examples "
            "share no direction; more --examples may show one",
            file=sys.stderr,
        )


def _print_routing(measured: TaskRouting) -> None:
    """Print load, entropy and overlap of each layer, and the tasks that share least and most."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"Routing of {len(measured.tasks)} tasks ({measured.method})", title_justify="left"
    )
    table.add_column("layer")
    table.add_column("routers of")
    for name in ("factors", "largest load", "entropy", "overlap"):
        table.add_column(name, justify="right")
    for layer, routers in measured.by_layer().items():
        for pool in dict.fromkeys(pool for _, pool in routers):
            own = [usage for (_, other), usage in routers.items() if other == pool]
            means = (
                sum(float(router.load.max()) for router in own) / len(own),
                sum(router.entropy for router in own) / len(own),
                sum(router.mean_overlap for router in own) / len(own),
            )
            numbers = (f"{mean:.2f}" for mean in means)
            table.add_row(layer, pool, str(len(own[0].load)), *numbers)
    table.caption = (
        "means over the layer's modules; entropy 1: all factors alike; overlap of two tasks, "
        "1: the same factors"
    )
    Console().print(table)
    n = len(measured.tasks)
    pairs = sorted((float(measured.overlap[i, j]), i, j) for i in range(n) for j in range(i))
    for word, (value, i, j) in (("least", pairs[0]), ("most", pairs[-1])):
        print(f"{measured.tasks[j]} and {measured.tasks[i]} share {word}: {value:.2f}")


def _print_written(written: WrittenFiles) -> None:
    for sentence in written.left_out:
        print(f"left out: {sentence}", file=sys.stderr)
    for file in written.files:
        print(file)


def add_words_verb(app: typer.Typer) -> None:
    """Add the verb to `varifocal analyze`."""
    app.command(epilog="Example: varifocal analyze words runs/demo --images photo.png")(words)


def words(
    run: RunArgument,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Look at this image; may be given several times."),
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            "--words", metavar="A,B,...", help="What tokens may say; the descriptions' words else."
        ),
    ] = None,
    num_images: Annotated[
        int, typer.Option(min=1, help="How many, where --images names none.")
    ] = 4,
    out: OutOption = None,
) -> None:
    """Show the words nearest to each visual token, before the training and after.

    Words are compared by the alignment's own distribution; the language model is not run.
    """
    readable_images(images or ())
    check_run(run)
    ready()
    from varifocal.analysis.words import words_of_run
    from varifocal.cli.tables import stage_bars

    chosen = None
    if vocabulary is not None:
        chosen = [word.strip() for word in vocabulary.split(",") if word.strip()]
    with stage_bars() as progress:
        _, written = words_of_run(
            run,
            images=images or (),
            words=chosen,
            num_images=num_images,
            out=out,
            progress=progress,
        )
    for file in written.files:
        print(file)
