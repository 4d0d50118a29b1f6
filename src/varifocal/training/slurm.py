"""A training as a Slurm job, written and submitted by submitit; `slurm_job` is what it runs."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from varifocal.errors import RunError
from varifocal.locking import alone
from varifocal.run import RunDirectory
from varifocal.staging import delete
from varifocal.training.launch import Launch
from varifocal.training.slurm_job import WARNING, TrainingJob, job_state
from varifocal.writing import MARK

_SECONDS_BEFORE_THE_END = 180
_MINUTES_AT_LEAST = 5
_FOLDER = "slurm"
_DECIDED = {
    *("account", "cpus-per-task", "gpus-per-node", "nodes", "ntasks", "ntasks-per-node"),
    *("error", "job-name", "no-requeue", "open-mode", "output", "partition", "requeue", "signal"),
    *("time", "array", "chdir", "parsable", "quiet", "test-only", "wait", "wrap"),
}
_UNSUBMITTED = ("?" * 32 + ".pkl", ".submission_file_*.sh")  # submitit's, without a job's number
_TOO_LARGE = {"PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints"}
"""Why jobs wait for ever that a cluster without EnforcePartLimits, Slurm's default, takes."""
_LIKE_THEM = {"gpus"}  # options whose names begin others'
_ENDED = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
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
        RunError: another process or another job trains the run, Slurm refuses the job, there is
            no Slurm here, or submitit is not installed; nothing that was written stays.
    """
    if shutil.which("sbatch") is None:
        raise RunError("there is no Slurm here (no sbatch); --dry-run prints the job's script")
    executor = _executor(launch, options)
    root = launch.out.absolute()
    with _nothing_stays_of_a_refusal(root):
        # The job's own files come into the folder before the training does, which has to know it.
        RunDirectory.create(root, resume=launch.resume).check_unoccupied()
        with alone(root, "submission"):
            _check_no_other_job(root)
            job = _submitted(executor, launch)
    return f"submitted job {job.job_id}; its output: {job.paths.stdout}{_held_back(job.job_id)}"


def _held_back(number: str) -> str:
    """Say why a job will not start, if Slurm knows; it takes too large a job, and holds it."""
    reason = job_state(number).get("Reason")
    if reason not in _TOO_LARGE:
        return ""
    return (
        f"; Slurm holds it back ({reason}), since it asks for more than its partition has: end it "
        f"with scancel {number}, and ask for less"
    )


def _submitted(executor: Any, launch: Launch) -> Any:
    """Give the job to sbatch, which submitit calls.

    Raises:
        RunError: Slurm refuses it.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with redirect_stderr(StringIO()):  # submitit repeats there what the error says
            return executor.submit(TrainingJob(launch))
    except FailedJobError as error:
        raise RunError(f"Slurm refuses the job: {_reason(str(error))}") from error
    except FailedSubmissionError as error:
        message = " ".join(str(error).split())
        raise RunError(f"sbatch does not tell the job's number: {message}") from error


def _reason(output: str) -> str:
    r"""Say as a part of a sentence what sbatch wrote.

    >>> _reason("sbatch: error: QOS not permitted\nsbatch: error: submission failed: Invalid qos")
    'QOS not permitted; submission failed: Invalid qos'
    """
    lines = [line.strip().removeprefix("sbatch: ") for line in output.splitlines()]
    reasons = [
        line.removeprefix("error: ") for line in lines if line and not line.startswith("Try ")
    ]
    return "; ".join(dict.fromkeys(reasons)) or "sbatch says nothing"


def _check_no_other_job(root: Path) -> None:
    """Refuse a second job for a run.

    Raises:
        RunError: a job waits, runs or has not quite ended.
    """
    for file in sorted((root / _FOLDER).glob("*_submitted.pkl")):
        number = file.name.partition("_")[0]
        state = job_state(number).get("JobState", "COMPLETED")  # Slurm forgets those that ended
        if state not in _ENDED:
            raise RunError(
                f"job {number} is there for {root} already and is {state}; wait until it ends, "
                f"end it with scancel {number}, or choose another --out"
            )


@contextmanager
def _nothing_stays_of_a_refusal(root: Path) -> Iterator[None]:
    """Delete what submitting has written if the block fails, and nothing of anybody else."""
    was_there, was_marked = root.exists(), (root / MARK).exists()
    try:
        yield
    except BaseException:
        for pattern in _UNSUBMITTED:
            for path in (root / _FOLDER).glob(pattern):
                if not path.is_symlink():  # an accepted job's
                    delete(path)
        with suppress(OSError):  # it is not empty, or was never made
            (root / _FOLDER).rmdir()
        if not was_marked and [path.name for path in root.glob("*")] == [MARK]:
            delete(root / MARK)
        if not was_there:
            with suppress(OSError):
                root.rmdir()
        raise


def job_script(launch: Launch, options: SlurmOptions) -> str:
    """The script that `submit` would give to sbatch; needs no Slurm."""
    executor = _executor(launch, options)
    return executor._make_submission_file_text(executor._submitit_command_str, "0")


def _executor(launch: Launch, options: SlurmOptions) -> Any:
    folder = launch.out.absolute() / _FOLDER
    if "%" in str(folder):
        raise RunError(f"{folder}: Slurm replaces a % in a path; choose another --out")
    executor = _executor_class()(folder)
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
        time=_long_enough(options.time),
        stderr_to_stdout=True,
        wckey=None,  # submitit's own would be refused where wckeys are tracked
        additional_parameters={
            "requeue": True,
            "signal": f"{WARNING.name.removeprefix('SIG')}@{_SECONDS_BEFORE_THE_END}",
            **_more(options),
        },
        **({"gpus_per_node": gpus} if gpus else {}),
        **{key: value for key, value in asked.items() if value is not None},
    )
    return executor


def _executor_class() -> Any:
    try:
        from submitit.slurm.slurm import SlurmExecutor
    except ImportError as error:
        raise RunError("--slurm needs submitit: pip install submitit") from error

    class Executor(SlurmExecutor):
        """Writes scripts where no Slurm is installed, too, and has them obeyed."""

        @classmethod
        def affinity(cls) -> int:
            return 1

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            # On the command line, since SBATCH_TIMELIMIT and its like go before the script's lines.
            lines = submission_file_path.read_text().splitlines()
            flags = [shlex.split(line)[1] for line in lines if line.startswith("#SBATCH ")]
            return ["sbatch", *flags, str(submission_file_path)]

    return Executor


def _more(options: SlurmOptions) -> dict[str, Any]:
    """Read sbatch's other options, which sbatch takes with the end of a name left out."""
    settings = {}
    for word in options.more:
        given, is_given, value = word.lstrip("-").partition("=")
        key = given.replace("_", "-")
        decided = [name for name in sorted(_DECIDED) if name.startswith(key)]
        if decided and key not in _LIKE_THEM:
            raise RunError(f"--sbatch {word}: {decided[0]} is decided here, by launch's options")
        settings[key] = value if is_given else True
    return settings


def _long_enough(time: str) -> int:
    given = minutes(time)
    if given < _MINUTES_AT_LEAST:
        raise RunError(
            f"--time {time}: the job saves {_SECONDS_BEFORE_THE_END // 60} minutes before its time "
            f"is up, and Slurm may be a minute early; give {_MINUTES_AT_LEAST} minutes or more"
        )
    return given


def minutes(time: str) -> int:
    """Read a time as Slurm writes it.

    >>> minutes("90"), minutes("24:00:00"), minutes("2-12:30:00"), minutes("0:00:30")
    (90, 1440, 3630, 1)

    Raises:
        RunError: it is none.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d{2}):(\d{2})", time)
    if time.isdecimal() and int(time):
        return int(time)
    if match is None:
        raise RunError(f"--time {time}: give minutes, HH:MM:SS or D-HH:MM:SS, as Slurm writes it")
    days, hours, rest, seconds = (int(part or 0) for part in match.groups())
    return days * 1440 + hours * 60 + rest + (seconds > 0)
