"""What runs in a Slurm job: one task a node, which starts that node's processes.

Slurm sends the task SIGUSR2 before the job's time is up, and SIGTERM when the job is preempted or
cancelled. On either the processes save a checkpoint; then the first node's task asks Slurm whether
the job is to go on, and puts it back into the queue.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import NoReturn

from varifocal.errors import RunError
from varifocal.run import RunDirectory
from varifocal.training.launch import STOPPED, Launch, launch_arguments, resume_command
from varifocal.writing import write_text

WARNING = signal.SIGUSR2
"""What Slurm sends before the job's time is up."""

_FIRST_PORT, _NUM_PORTS = 12000, 20000  # below those that Linux gives to outgoing connections
_SECONDS_TO_ANSWER = 60
_SECONDS_BETWEEN_CHECKS = 5.0
_SECONDS_TO_YIELD = 600  # of a former start, to its last step and checkpoint
_log = logging.getLogger("submitit")  # which writes into the job's output


class TrainingJob:
    """What a job's task runs: this node's part of a launch.

    Always with `--resume`, so that a requeued job goes on whoever requeued it; whether the run
    directory was free is asked before the job is submitted.
    """

    def __init__(self, launch: Launch) -> None:
        self.launch = replace(launch, resume=True)
        self._process: subprocess.Popen[bytes] | None = None
        self._received: set[int] = set()

    @property
    def _run(self) -> RunDirectory:
        return RunDirectory(self.launch.out)

    @property
    def _starts(self) -> Path:
        """A file of this job with the number of its newest start."""
        return self._run.root / "slurm" / f"{_job_number()}_start"

    def __call__(self) -> int:
        """Run to the end, or until Slurm asks to stop.

        Raises:
            SystemExit: the processes failed, or the job cannot go on; the output says why.
        """
        for number in (WARNING, signal.SIGTERM):
            signal.signal(number, self._stop)
        if _is_first_node():
            self._take_over()
        began_with = self._run.newest_checkpoint()
        code = self._train()
        if self._is_replaced():
            _log.warning("Slurm has started this job anew; what is saved goes on there")
        elif code != 0 and self._received and _is_first_node():
            self._go_on(self._run.newest_checkpoint() != began_with)
        elif code not in (0, STOPPED):
            _end(f"the training's processes ended with exit code {code}, see above")
        return code

    def _train(self) -> int:
        """Run this node's processes and return their exit code."""
        # Slurm may send its signals to all processes of a job, and the warning would kill them.
        self._process = subprocess.Popen(
            self._command(), start_new_session=True, preexec_fn=_ignore_the_warning
        )
        if self._received:  # before there was a process to stop
            self._process.terminate()
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(_SECONDS_BETWEEN_CHECKS)
            if self._is_replaced():
                self._stop(signal.SIGTERM, None)

    def _take_over(self) -> None:
        """Let the processes of this job's former start end, which Slurm may have lost sight of.

        It requeues a job whose node does not answer, though its processes may go on there.
        """
        RunDirectory.create(self._run.root, resume=True)
        write_text(self._starts, str(_start_number()))
        end = time.monotonic() + _SECONDS_TO_YIELD
        while True:
            try:
                return self._run.check_unoccupied()
            except RunError as error:
                if _start_number() == 0 or self._received or time.monotonic() > end:
                    _end(str(error))
            time.sleep(_SECONDS_BETWEEN_CHECKS)

    def _is_replaced(self) -> bool:
        """Whether Slurm has started this job anew, elsewhere, while these processes still run."""
        with suppress(OSError, ValueError):
            return int(self._starts.read_text()) > _start_number()
        return False

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "varifocal.cli", *launch_arguments(self._meeting())]

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Let the processes save and end; a signal that Slurm repeats is not passed on."""
        is_first = not self._received
        self._received.add(number)
        if is_first and self._process is not None:
            self._process.terminate()

    def _go_on(self, has_saved: bool) -> None:
        """Put the job back into the queue, unless somebody ended it or it would never get on."""
        number = _job_number()
        state = job_state(number)
        is_preempted = state.get("PreemptTime", "None") != "None"
        is_over = state.get("JobState", "RUNNING") != "RUNNING"
        if is_over or not (is_preempted or WARNING in self._received):
            _log.warning("the job was ended. Go on with: %s", resume_command(self.launch))
            return
        if not (is_preempted or has_saved):
            _end(
                "the job's time was up before anything new could be saved, and would be again; "
                f"give more --time to: {resume_command(self.launch)}"
            )
        # A job that ends by itself after it was preempted is not requeued by Slurm.
        requeued = _ask("scontrol", "requeue", number)
        if requeued.returncode:
            why = " ".join(requeued.stderr.split())
            _end(
                f"Slurm does not requeue the job: {why}. Go on with: {resume_command(self.launch)}"
            )
        _log.warning("the job was put back into the queue and goes on from its checkpoint")

    def _meeting(self) -> Launch:
        """The launch, with this node's number and the first one's address where there are several.

        So the first process, which saves and shows the progress, is the first node's.
        """
        if self.launch.num_nodes == 1:
            return self.launch
        import submitit

        here = submitit.JobEnvironment()
        number = int(re.sub(r"\D", "", here.job_id) or 0)
        port = _FIRST_PORT + number % _NUM_PORTS  # jobs that share a node have other numbers
        return replace(self.launch, rendezvous=f"{here.hostnames[0]}:{port}", node_rank=here.node)


def _job_number() -> str:
    return os.environ.get("SLURM_JOB_ID", "0")


def _start_number() -> int:
    """How often Slurm has requeued this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0"))


def _is_first_node() -> bool:
    return os.environ.get("SLURM_NODEID", "0") == "0"


def _ignore_the_warning() -> None:
    """Ignore it in a new process and those that it starts."""
    signal.signal(WARNING, signal.SIG_IGN)


def _end(sentence: str) -> NoReturn:
    """End this task with a sentence and no traceback."""
    _log.error("%s", sentence)
    sys.exit(2)


def job_state(number: str) -> dict[str, str]:
    """Return what Slurm tells of a job; nothing where it does not know it, or does not answer."""
    output = _ask("scontrol", "show", "job", "-o", number)
    words = [word.partition("=") for word in output.stdout.split()]
    return {} if output.returncode else {key: value for key, _, value in words}


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands; one that fails has said why."""
    try:
        return subprocess.run(
            words, capture_output=True, text=True, check=False, timeout=_SECONDS_TO_ANSWER
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(words, 1, "", str(error))
