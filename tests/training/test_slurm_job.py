"""What a job's task does when Slurm sends it a signal; a scontrol that only tells answers it."""

import os
import signal
import stat
import sys

import pytest

from varifocal.training.launch import Launch
from varifocal.training.slurm_job import TrainingJob

# A training: it sends its job, and itself, what Slurm sends, and saves on SIGTERM.
SAVES = """
import os, pathlib, signal, sys, time
def save(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm's and the job's are two
    pathlib.Path(sys.argv[1]).touch()
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
for number in map(int, sys.argv[2:]):
    os.kill(os.getppid(), number)
    os.kill(os.getpid(), number)  # as under proctrack/linuxproc
time.sleep(60)
"""
SCONTROL = """#!/bin/bash
echo "$*" >> {told}
case "$1" in
show) echo "JobId=7 JobName=run JobState={state} PreemptTime={preempted} Requeue=1";;
*) {requeue};;
esac
"""


@pytest.fixture
def signalled(tmp_path, monkeypatch):
    """Run a job whose training is sent signals; return its code and what Slurm was told."""
    told, saved = tmp_path / "told", tmp_path / "saved"

    def signalled(*numbers, state="RUNNING", preempted="None", requeue="true"):
        scontrol = tmp_path / "bin" / "scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(
            SCONTROL.format(told=told, state=state, preempted=preempted, requeue=requeue)
        )
        scontrol.chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        command = [sys.executable, "-c", SAVES, str(saved), *(str(int(one)) for one in numbers)]
        monkeypatch.setattr(TrainingJob, "_command", lambda job: command)
        code = TrainingJob(Launch("tiny.yaml", tmp_path / "run"))()
        assert saved.exists()
        return code, told.read_text().splitlines()

    listens = (signal.SIGUSR2, signal.SIGTERM)
    before = [signal.getsignal(number) for number in listens]
    yield signalled
    for number, handler in zip(listens, before, strict=True):
        signal.signal(number, handler)


def test_the_warning_saves_and_requeues_though_every_process_gets_it(signalled):
    assert signalled(signal.SIGUSR2) == (130, ["show job -o 7", "requeue 7"])


def test_a_preempted_job_saves_and_requeues(signalled):
    told = signalled(signal.SIGTERM, preempted="2026-11-30T15:23:37")
    assert told == (130, ["show job -o 7", "requeue 7"])


@pytest.mark.parametrize("state", ["CANCELLED", "RUNNING"])
def test_a_job_that_somebody_ends_saves_and_stays_ended(signalled, state, caplog):
    """`scancel`, and `scancel --signal=TERM`."""
    assert signalled(signal.SIGTERM, state=state) == (130, ["show job -o 7"])
    assert "the job was ended. Go on with: varifocal launch tiny.yaml" in caplog.text


def test_the_other_nodes_leave_the_queue_to_the_first(signalled, monkeypatch, tmp_path):
    monkeypatch.setenv("SLURM_NODEID", "1")
    (tmp_path / "told").touch()
    assert signalled(signal.SIGUSR2) == (130, [])


def test_a_requeue_that_slurm_refuses_is_a_sentence(signalled, caplog):
    with pytest.raises(SystemExit) as ended:
        signalled(signal.SIGUSR2, requeue="echo 'Requested operation is disabled' >&2; exit 1")
    assert ended.value.code == 2
    assert "Slurm does not requeue the job: Requested operation is disabled. Go on" in caplog.text
