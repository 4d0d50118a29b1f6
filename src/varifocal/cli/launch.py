"""The verb `launch`: one training on many processes, here or through Slurm."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varifocal.cli.options import RecipeArgument, SetOption, ready
from varifocal.errors import RunError

if TYPE_CHECKING:
    from varifocal.training.launch import Launch

_SLURM = "Slurm"


OutOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The run directory; runs/NAME by default.")
]
NumProcessesOption = Annotated[
    int | None, typer.Option(min=1, help="On each node; by default one a GPU of this machine.")
]
NumNodesOption = Annotated[int, typer.Option(min=1, help="Machines.")]
EngineOption = Annotated[
    str, typer.Option(help="How the model lies in them: ddp, fsdp2, zero2, zero3.")
]
RendezvousOption = Annotated[
    str | None,
    typer.Option(metavar="HOST:PORT", help="Where several nodes meet: the first node's."),
]
NodeRankOption = Annotated[
    int | None,
    typer.Option(min=0, help="This node's number of several; by default the nodes agree on them."),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on; the number of processes may be another.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be started, and start nothing.")
]
SlurmOption = Annotated[
    bool, typer.Option("--slurm", help="Submit a Slurm job.", rich_help_panel=_SLURM)
]
PartitionOption = Annotated[
    str | None, typer.Option(help="Slurm's partition.", rich_help_panel=_SLURM)
]
TimeOption = Annotated[
    str, typer.Option(help="Minutes, HH:MM:SS or D-HH:MM:SS.", rich_help_panel=_SLURM)
]
AccountOption = Annotated[str | None, typer.Option(help="Slurm's account.", rich_help_panel=_SLURM)]
GpusOption = Annotated[
    int | None, typer.Option(min=0, help="By default one a process.", rich_help_panel=_SLURM)
]
CpusOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="By default one a process and one a worker of data.num_workers.",
        rich_help_panel=_SLURM,
    ),
]
SbatchOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="Another option of sbatch: qos=high.", rich_help_panel=_SLURM
    ),
]


def add_launch_verb(app: typer.Typer) -> None:
    """Give an app the verb of this file."""
    app.command(epilog="Example: varifocal launch lavin-7b-scienceqa --num-processes 8")(launch)


def launch(
    recipe: RecipeArgument,
    out: OutOption = None,
    num_processes: NumProcessesOption = None,
    num_nodes: NumNodesOption = 1,
    engine: EngineOption = "ddp",
    rendezvous: RendezvousOption = None,
    node_rank: NodeRankOption = None,
    resume: ResumeOption = False,
    dry_run: DryRunOption = False,
    slurm: SlurmOption = False,
    partition: PartitionOption = None,
    time: TimeOption = "24:00:00",
    account: AccountOption = None,
    gpus_per_node: GpusOption = None,
    cpus_per_node: CpusOption = None,
    sbatch: SbatchOption = None,
    overrides: SetOption = None,
) -> None:
    """Train a recipe on many processes; they share the rows of a step, so N of them learn as one.

    A process that dies ends the others, and the text says how to go on.
    """
    for_slurm = (partition, account, gpus_per_node, cpus_per_node, sbatch)
    _refuse_strays(slurm, num_processes, (rendezvous, node_rank), for_slurm)
    from varifocal.cli.checks import check_models
    from varifocal.recipe import load_recipe
    from varifocal.run import RunDirectory
    from varifocal.training.launch import (
        Launch,
        check_engine_name,
        check_launch,
        run_launch,
        torchrun_command,
    )

    page = load_recipe(recipe, overrides or ())
    root = out or Path("runs") / str(page.name)
    check_engine_name(engine)
    RunDirectory(root).check_free(resume=resume)
    if not (slurm or dry_run):  # those may run on another machine
        check_models(page.model)
    ready()
    processes, given = num_processes or _num_gpus(), tuple(overrides or ())
    where = (rendezvous, node_rank)
    asked = Launch(recipe, root, processes, num_nodes, engine, resume, given, *where)
    page = check_launch(asked)
    if slurm:
        cpus = cpus_per_node or asked.num_processes * (1 + page.data.num_workers)
        _use_slurm(asked, dry_run, partition, time, account, gpus_per_node, cpus, sbatch or ())
    elif dry_run:
        print(torchrun_command(asked, page))
    else:
        run_launch(asked, page)


def _use_slurm(asked: Launch, dry_run: bool, *options: Any) -> None:
    """Submit a job, or print its script."""
    from varifocal.training.slurm import SlurmOptions, job_script, submit

    slurm = SlurmOptions(*options)
    print(job_script(asked, slurm) if dry_run else submit(asked, slurm))


def _refuse_strays(
    slurm: bool, num_processes: int | None, by_hand: Iterable[Any], for_slurm: Iterable[Any]
) -> None:
    """Refuse options that would do nothing, and a job without one that it needs."""
    if slurm and any(each is not None for each in by_hand):
        raise RunError(
            "--rendezvous and --node-rank are for nodes started by hand; --slurm finds them"
        )
    if not slurm and any(each is not None for each in for_slurm):
        raise RunError(
            "--partition, --account, --gpus-per-node, --cpus-per-node and --sbatch are asked of "
            "Slurm; give --slurm too, or leave them out"
        )
    if slurm and num_processes is None:
        raise RunError("--slurm needs --num-processes: this machine need not be like the nodes")


def _num_gpus() -> int:
    """Count this machine's GPUs; 1 where there is none."""
    import torch

    return max(torch.cuda.device_count(), 1)
