"""A training as a Slurm job, written and submitted by submitit; `slurm_job` is what it runs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from varifocal.errors import RunError
from varifocal.run import RunDirectory
from varifocal.training.launch import Launch
from varifocal.training.slurm_job import WARNING, TrainingJob

_SECONDS_BEFORE_THE_END = 180
_DECIDED = {
    *("account", "cpus-per-task", "gpus-per-node", "nodes", "ntasks", "ntasks-per-node"),
    *("open-mode", "output", "partition", "requeue", "signal", "time"),
}


@dataclass(frozen=True)
class SlurmOptions:
    """What Slurm is asked for.

    Attributes:
        partition: the cluster's default when None.
        time: minutes, `HH:MM:SS` or `D-HH:MM:SS`; the job goes on afterwards.
        account: whom it is counted to.
        gpus_per_node: as many as processes when None.
        cpus_per_node: as many as processes when None; processes that prepare data need more.
        more: `KEY=VALUE` of sbatch's other options, such as `qos=high`; a bare `KEY` is a flag.
    """

    partition: str | None = None
    time: str = "24:00:00"
    account: str | None = None
    gpus_per_node: int | None = None
    cpus_per_node: int | None = None
    more: tuple[str, ...] = ()


def submit(launch: Launch, options: SlurmOptions) -> str:
    """Submit a launch.

    Returns:
        A sentence with the job's number and where its output goes.

    Raises:
        RunError: another process writes the run, there is no Slurm here, or submitit is not
            installed.
    """
    # The job's own files come into the folder before the training does, which has to know it.
    RunDirectory.create(launch.out, resume=launch.resume).check_unoccupied()
    job = _executor(launch, options, there=True).submit(TrainingJob(launch))
    return f"submitted job {job.job_id}; its output: {job.paths.stdout}"


def job_script(launch: Launch, options: SlurmOptions) -> str:
    """The script that `submit` would give to sbatch; needs no Slurm."""
    executor = _executor(launch, options, there=False)
    return executor._make_submission_file_text(executor._submitit_command_str, "0")


def _executor(launch: Launch, options: SlurmOptions, *, there: bool) -> Any:
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError as error:
        raise RunError("--slurm needs submitit: pip install varifocal[slurm]") from error

    class Writer(SlurmExecutor):
        """Writes scripts where no Slurm is installed, too."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    if there and SlurmExecutor.affinity() < 0:
        raise RunError("there is no Slurm here (no srun); --dry-run prints the job's script")
    folder = RunDirectory(launch.out).root.absolute() / "slurm"
    executor = (SlurmExecutor if there else Writer)(folder)
    asked = {"partition": options.partition, "account": options.account}
    gpus = launch.num_processes if options.gpus_per_node is None else options.gpus_per_node
    cpus = options.cpus_per_node or launch.num_processes
    executor.update_parameters(
        job_name=launch.out.name,
        nodes=launch.num_nodes,
        ntasks_per_node=1,
        cpus_per_task=cpus,
        # srun does not take the job's CPUs for its own, and leaves a failed node's others waiting.
        srun_args=[f"--cpus-per-task={cpus}", "--kill-on-bad-exit=1"],
        time=minutes(options.time),
        stderr_to_stdout=True,
        additional_parameters={
            "requeue": True,
            "signal": f"{WARNING.name.removeprefix('SIG')}@{_SECONDS_BEFORE_THE_END}",
            **_more(options),
        },
        **({"gpus_per_node": gpus} if gpus else {}),
        **{key: value for key, value in asked.items() if value is not None},
    )
    return executor


def _more(options: SlurmOptions) -> dict[str, Any]:
    """Read sbatch's other options."""
    found = {}
    for word in options.more:
        key, is_given, value = word.lstrip("-").partition("=")
        if key in _DECIDED:
            raise RunError(f"--sbatch {word}: {key} is decided here, by the options of launch")
        found[key] = value if is_given else True
    return found


def minutes(time: str) -> int:
    """Read a time as Slurm writes it.

    >>> minutes("90"), minutes("24:00:00"), minutes("2-12:30:00"), minutes("0:00:30")
    (90, 1440, 3630, 1)

    Raises:
        RunError: it is none.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d{2}):(\d{2})", time)
    if time.isdecimal() and int(time):
        return int(time)
    if found is None:
        raise RunError(f"--time {time}: give minutes, HH:MM:SS or D-HH:MM:SS, as Slurm writes it")
    days, hours, rest, seconds = (int(part or 0) for part in found.groups())
    return days * 1440 + hours * 60 + rest + (seconds > 0)
