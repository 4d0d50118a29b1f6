"""What a job's task does when Slurm sends it a signal; a scontrol that only tells answers it."""

import os
import signal
import stat
import sys

import pytest

from varifocal.errors import RunError
from varifocal.run import RunDirectory
from varifocal.training import slurm_job
from varifocal.training.launch import Launch
from varifocal.training.slurm_job import TrainingJob

# A training: it sends its job, and itself, what Slurm sends, and saves on SIGTERM.
SAVES = """
import os, pathlib, signal, sys, time
def save(*_):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm's and the job's are two
    pathlib.Path(sys.argv[1]).mkdir(parents=True)
    sys.exit(130)
signal.signal(signal.SIGTERM, save)
pathlib.Path(sys.argv[2]).write_text(sys.argv[3])
for number in map(int, sys.argv[4:]):
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
    told, run = tmp_path / "told", tmp_path / "run"
    told.touch()

    def signalled(
        *numbers, state="RUNNING", preempted="None", requeue="true", steps=3, newest_start=0
    ):
        scontrol = tmp_path / "bin" / "scontrol"
        scontrol.parent.mkdir()
        scontrol.write_text(
            SCONTROL.format(told=told, state=state, preempted=preempted, requeue=requeue)
        )
        scontrol.chmod(stat.S_IRWXU)
        monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        saved = run / "checkpoints" / f"checkpoint-{steps}"
        starts = [run / "slurm" / "7_start", newest_start]
        words = map(str, [saved, *starts, *(int(number) for number in numbers)])
        command = [sys.executable, "-c", SAVES, *words]
        monkeypatch.setattr(TrainingJob, "_command", lambda job: command)
        code = TrainingJob(Launch("tiny.yaml", run))()
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
    (tmp_path / "run" / "slurm").mkdir(parents=True)
    monkeypatch.setenv("SLURM_NODEID", "1")
    assert signalled(signal.SIGUSR2) == (130, [])


def test_a_requeue_that_slurm_refuses_is_a_sentence(signalled, caplog):
    with pytest.raises(SystemExit) as ended:
        signalled(signal.SIGUSR2, requeue="echo 'Requested operation is disabled' >&2; exit 1")
    assert ended.value.code == 2
    assert "Slurm does not requeue the job: Requested operation is disabled. Go on" in caplog.text


def test_a_job_that_saves_nothing_new_in_its_time_is_not_requeued(signalled, tmp_path, caplog):
    """Its time is too short for the models to load and one step; it would begin for ever."""
    run = RunDirectory.create(tmp_path / "run")
    (run.checkpoints / "checkpoint-8").mkdir(parents=True)
    with pytest.raises(SystemExit) as ended:
        signalled(signal.SIGUSR2, steps=3)
    assert ended.value.code == 2
    assert "before anything new could be saved, and would be again; give more --time" in caplog.text
    assert "requeue" not in (tmp_path / "told").read_text()


def test_a_preempted_job_is_requeued_though_it_had_no_time_to_begin(signalled, tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    (run.checkpoints / "checkpoint-8").mkdir(parents=True)
    told = signalled(signal.SIGTERM, preempted="2026-11-30T15:23:37", steps=3)
    assert told == (130, ["show job -o 7", "requeue 7"])


# Slurm starts a job anew whose node does not answer, though its processes may go on there


def test_a_start_that_was_replaced_saves_and_leaves_the_queue_alone(signalled, monkeypatch, caplog):
    monkeypatch.setattr(slurm_job, "_SECONDS_BETWEEN_CHECKS", 0.01)
    assert signalled(newest_start=1) == (130, [])
    assert "Slurm has started this job anew" in caplog.text


def test_a_new_start_lets_the_former_one_end(signalled, tmp_path, monkeypatch):
    monkeypatch.setattr(slurm_job, "_SECONDS_BETWEEN_CHECKS", 0.01)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    seen = []

    def check_unoccupied(run):
        seen.append((run.root / "slurm" / "7_start").read_text())
        if len(seen) < 3:
            raise RunError("it is being written by process 5 on n1")

    monkeypatch.setattr(RunDirectory, "check_unoccupied", check_unoccupied)
    assert signalled(signal.SIGUSR2, newest_start=2) == (130, ["show job -o 7", "requeue 7"])
    assert seen == ["2", "2", "2"]


@pytest.mark.parametrize(("restarts", "seconds"), [("0", 600), ("1", -1)])
def test_a_run_that_another_process_writes_is_a_sentence(
    restarts, seconds, tmp_path, monkeypatch, caplog
):
    """On the first start at once, later when the former start has had its time to end."""
    monkeypatch.setattr(slurm_job, "_SECONDS_TO_YIELD", seconds)
    monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)

    def check_unoccupied(run):
        raise RunError("it is being written by process 5 on n1")

    monkeypatch.setattr(RunDirectory, "check_unoccupied", check_unoccupied)
    with pytest.raises(SystemExit):
        TrainingJob(Launch("tiny.yaml", tmp_path / "run"))._take_over()
    assert "it is being written by process 5 on n1" in caplog.text
