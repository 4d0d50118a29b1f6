"""One training on many processes: torch's elastic agent starts them, watches them, ends them.

A recipe says how many rows one optimiser step takes; the processes share them, so that what is
learned does not depend on how many there are.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from varifocal.errors import RecipeError, RunError, Stopped, nearest
from varifocal.recipe import Recipe, load_recipe
from varifocal.recipe.reading import SHIPPED
from varifocal.run import RunDirectory

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

ENGINES = {
    "ddp": None,
    "fsdp2": ("training.fsdp_config", "fsdp2.json"),
    "zero2": ("training.deepspeed", "zero2.json"),
    "zero3": ("training.deepspeed", "zero3.json"),
}
"""How a model lies in the processes, and transformers' knob and file for it."""

STOPPED = Stopped.exit_code
_SECONDS_TO_SAVE = 150  # between asking a process to stop and killing it; Slurm leaves 180


@dataclass(frozen=True)
class Launch:
    """What is started, and on how many processes.

    Attributes:
        recipe: a recipe's file or name.
        out: the run directory; every node has to see it.
        num_processes: on each node.
        num_nodes: machines.
        engine: of `ENGINES`.
        resume: go on from the newest checkpoint.
        overrides: `KEY=VALUE` of the recipe.
        rendezvous: `HOST:PORT` where several nodes meet; the first node's.
        node_rank: this node's number of several; None lets them agree, in any order.
    """

    recipe: str
    out: Path
    num_processes: int = 1
    num_nodes: int = 1
    engine: str = "ddp"
    resume: bool = False
    overrides: tuple[str, ...] = ()
    rendezvous: str | None = None
    node_rank: int | None = None

    @property
    def world_size(self) -> int:
        """Processes on all nodes."""
        return self.num_processes * self.num_nodes


def check_launch(launch: Launch) -> Recipe:
    """Find what is wrong before any process starts.

    Returns:
        The recipe, with `overrides`.

    Raises:
        RecipeError: an unknown engine, a wrong recipe, or rows that cannot be shared.
        RunError: the run directory holds a run and `resume` is false.
        DataError, RecipeError, RunError: as `varifocal.training.usable.check_usable`.
    """
    from varifocal.training.usable import check_usable  # which imports torch

    check_engine_name(launch.engine)
    if launch.node_rank is not None and not launch.node_rank < launch.num_nodes > 1:
        raise RunError(
            f"--node-rank {launch.node_rank}: nodes are numbered from 0, and --num-nodes is "
            f"{launch.num_nodes}"
        )
    page = load_recipe(launch.recipe, launch.overrides)
    share_rows(page, launch.world_size)
    RunDirectory(launch.out).check_free(resume=launch.resume)
    check_usable(page, skip_absent=True)
    return page


def check_engine_name(engine: str) -> None:
    """Refuse an engine that is not known.

    Raises:
        RecipeError: names those that are.
    """
    if engine not in ENGINES:
        hint = nearest(engine, ENGINES)
        raise RecipeError(f"--engine {engine}: {', '.join(ENGINES)} are known{hint}")


def share_rows(page: Recipe, num_processes: int) -> dict[str, int]:
    """Share the rows of a recipe's optimiser step among processes.

    Args:
        page: its batch size times its accumulation steps are the rows.
        num_processes: that share them equally.

    Returns:
        Batch size and accumulation steps of each process, by their dotted names. The batch stays
        as large as the recipe has it, or as large as the share.

    Raises:
        RecipeError: the rows cannot be shared equally.
    """
    batch = page.training.per_device_train_batch_size
    rows = batch * page.training.gradient_accumulation_steps
    if rows % num_processes:
        allowed = ", ".join(str(n) for n in range(1, rows + 1) if rows % n == 0)
        raise RecipeError(
            f"{num_processes} processes cannot share the {rows} rows of a step equally; start "
            f"{allowed}, or set training.gradient_accumulation_steps"
        )
    share = rows // num_processes
    fitting = max(size for size in range(1, batch + 1) if share % size == 0)
    return {
        "training.per_device_train_batch_size": fitting,
        "training.gradient_accumulation_steps": share // fitting,
    }


def engine_overrides(engine: str) -> list[str]:
    """The knobs that turn an engine on, as `KEY=VALUE`; the files ship with the recipes."""
    config = ENGINES[engine]
    if config is None:
        return []
    key, file = config
    on = ["training.fsdp=true"] if engine == "fsdp2" else []
    return [*on, f"{key}={SHIPPED / 'launch' / file}"]


def worker_arguments(launch: Launch, page: Recipe) -> list[str]:
    """What each process runs, after `python`."""
    shared = [f"{key}={value}" for key, value in share_rows(page, launch.world_size).items()]
    settings = [*launch.overrides, *shared, *engine_overrides(launch.engine)]
    given = [word for each in settings for word in ("--set", each)]
    again = ["--resume"] if launch.resume else []
    command = ["train", launch.recipe, "--out", str(launch.out), *again, *given]
    return ["-m", "varifocal.cli", *command]


def torchrun_command(launch: Launch, page: Recipe) -> str:
    """The same as one line of torchrun, for a person to read or to run on each node."""
    meeting = ["--standalone"]
    if launch.num_nodes > 1:
        where = launch.rendezvous or "FIRST_NODE:29500"
        meeting = ["--nnodes", str(launch.num_nodes), "--rdzv-backend", _backend(launch)]
        meeting += ["--rdzv-endpoint", where]
        if launch.node_rank is not None:
            meeting += ["--node-rank", str(launch.node_rank)]
    start = ["torchrun", *meeting, "--nproc-per-node", str(launch.num_processes)]
    return shlex.join([*start, *worker_arguments(launch, page)])


def run_launch(launch: Launch, page: Recipe) -> None:
    """Start this node's processes and wait for them; the first one writes to this screen.

    The other ones' words are kept in a temporary folder and shown when they fail.

    Raises:
        RunError: another process writes the run; or a process died, the others were ended, and the
            text says how to go on.
        Stopped: the processes were asked to stop, and have saved.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    if launch.num_nodes == 1:  # of several nodes another one may have begun already
        RunDirectory(launch.out).check_unoccupied()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(_cores() // launch.num_processes, 1)))
    with tempfile.TemporaryDirectory(prefix="varifocal-launch-") as logs:
        start = elastic_launch(_agent(launch, logs), sys.executable)
        try:
            with _signals_once():
                start("-u", *worker_arguments(launch, page))
        except SignalException:
            raise Stopped(f"stopped. Go on with: {resume_command(launch)}") from None
        except ChildFailedError as error:
            raise _ended(launch, list(error.failures.values()), Path(logs)) from None


@contextmanager
def _signals_once() -> Iterator[None]:
    """Let the first SIGTERM or Ctrl-C stop torch's agent, and no SIGTERM after it.

    A second one would end the agent while its processes are still saving; schedulers repeat it.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException

    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped and number == signal.SIGTERM:
            return
        stopped = True
        raise SignalException(f"signal {number}", signal.Signals(number))

    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"  # it would take these two
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _cores() -> int:
    """Count the cores that this process may use: a job has a part of its node's."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def _agent(launch: Launch, logs: str) -> Any:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    if launch.num_nodes > 1 and launch.rendezvous is None:
        raise RunError(
            f"--num-nodes {launch.num_nodes} needs --rendezvous HOST:PORT, the same on each node, "
            "or --slurm, which finds it"
        )
    alone = launch.num_nodes == 1
    quiet = dict.fromkeys(range(1, launch.num_processes), Std.ALL)
    return LaunchConfig(
        min_nodes=launch.num_nodes,
        max_nodes=launch.num_nodes,
        nproc_per_node=launch.num_processes,
        run_id=launch.out.name,
        rdzv_backend=_backend(launch),
        rdzv_endpoint="localhost:0" if alone else str(launch.rendezvous),
        rdzv_configs={} if launch.node_rank is None else {"rank": launch.node_rank},
        local_addr="localhost" if alone else None,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=quiet or Std.NONE),
        shutdown_timeout=_SECONDS_TO_SAVE,
    )


def _backend(launch: Launch) -> str:
    """Name torch's way to meet: nodes that know their numbers need not agree on them."""
    return "c10d" if launch.node_rank is None else "static"


def _ended(launch: Launch, failures: Sequence[ProcessFailure], logs: Path) -> Exception:
    """Say which process ended, how, and how to go on."""
    by_us = -signal.SIGTERM  # what the others are ended with
    killed = [each for each in failures if each.exitcode < 0 and each.exitcode != by_us]
    failed = [each for each in failures if each.exitcode != by_us]
    first = min(killed or failed or failures, key=lambda each: each.timestamp)
    if not killed and first.exitcode == STOPPED:
        return Stopped(f"stopped. Go on with: {resume_command(launch)}")
    how = f"ended with exit code {first.exitcode}"
    if first.exitcode < 0:
        how = f"was killed by {signal.Signals(-first.exitcode).name}"
    words = "" if first.local_rank == 0 else _last_words(logs, first.local_rank)
    newest = RunDirectory(launch.out).newest_checkpoint()
    where = f"the newest checkpoint is {newest}" if newest else "there is no checkpoint yet"
    return RunError(
        f"process {first.local_rank} of {launch.num_processes} {how}; the others were ended with "
        f"it, and {where}. {words}Go on with: {resume_command(launch)}"
    )


def _last_words(logs: Path, rank: int) -> str:
    """What a process whose output is not on the screen said last."""
    files = sorted(logs.glob(f"*/attempt_*/{rank}/stderr.log"))
    lines = files[-1].read_text(errors="replace").split("\n") if files else []
    filled = [line for line in lines if line.strip()]
    return f"Its last words: {filled[-1].strip()!r}. " if filled else ""


def resume_command(launch: Launch) -> str:
    """The command that resumes this launch."""
    again = replace(launch, resume=True)
    return "varifocal " + shlex.join(launch_arguments(again))


def launch_arguments(launch: Launch) -> list[str]:
    """A launch as arguments of the command line."""
    words = ["launch", launch.recipe, "--out", str(launch.out)]
    words += ["--num-processes", str(launch.num_processes), "--num-nodes", str(launch.num_nodes)]
    words += ["--engine", launch.engine]
    if launch.rendezvous is not None:
        words += ["--rendezvous", launch.rendezvous]
    if launch.node_rank is not None:
        words += ["--node-rank", str(launch.node_rank)]
    if launch.resume:
        words.append("--resume")
    return [*words, *(word for each in launch.overrides for word in ("--set", each))]
