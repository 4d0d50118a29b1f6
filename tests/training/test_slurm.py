"""Submitting a job; an sbatch and a scontrol that only tell stand in for Slurm."""

import os
import shlex
import stat

import pytest

from varifocal.errors import RunError
from varifocal.locking import alone
from varifocal.run import RunDirectory
from varifocal.training.launch import Launch
from varifocal.training.slurm import SlurmOptions, job_script, submit

pytest.importorskip("submitit")
WRONG_PARTITION = (
    "echo 'sbatch: error: invalid partition specified: gpus' >&2; "
    "echo 'sbatch: error: Batch job submission failed: Invalid partition name specified' >&2; "
    "exit 1"
)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Put an sbatch and a scontrol into PATH, each as a line of bash; the file of what they got."""
    folder, told = tmp_path / "bin", tmp_path / "told"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def slurm(sbatch="echo Submitted batch job 12", scontrol="exit 1"):
        for name, line in (("sbatch", sbatch), ("scontrol", scontrol)):
            (folder / name).write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >> {told}\n{line}\n')
            (folder / name).chmod(stat.S_IRWXU)
        return told

    return slurm


def asked(tmp_path, **more):
    return Launch("tiny.yaml", tmp_path / "run", 2, **more)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_job_is_submitted_with_its_options_on_the_command_line(slurm, tmp_path):
    """There they go before SBATCH_TIMELIMIT and its like."""
    told = slurm()
    sentence = submit(asked(tmp_path), SlurmOptions("my gpus", "90"))
    log = tmp_path / "run" / "slurm" / "12_0_log.out"
    assert sentence == f"submitted job 12; its output: {log}"
    words = told.read_text().splitlines()
    for word in ("--partition=my gpus", "--time=90", "--signal=USR2@180", f"--output={log}"):
        assert word.replace("12_0", "%j_0") in words
    assert (tmp_path / "run" / "slurm" / "12_submitted.pkl").is_file()
    assert "wckey" not in told.read_text()


@pytest.mark.parametrize(
    ("reason", "end"),
    [("PartitionConfig", "end it with scancel 12, and ask for less"), ("Resources", "0_log.out")],
)
def test_a_job_that_slurm_takes_and_never_starts_is_said(slurm, tmp_path, reason, end):
    slurm(scontrol=f"echo JobId=12 JobState=PENDING Reason={reason} Requeue=1")
    sentence = submit(asked(tmp_path), SlurmOptions(cpus_per_node=99))
    assert sentence.startswith("submitted job 12; its output: ")
    assert sentence.endswith(end)


@pytest.mark.parametrize("place", ["absent", "empty", "ours"])
def test_a_refusal_is_one_sentence_and_leaves_nothing(slurm, tmp_path, place, capfd):
    slurm(sbatch=WRONG_PARTITION)
    root = tmp_path / "run"
    if place == "empty":
        root.mkdir()
    elif place == "ours":
        slurm()
        submit(asked(tmp_path), SlurmOptions())
        slurm(sbatch=WRONG_PARTITION)
    existed, before = root.exists(), files(root)
    with pytest.raises(RunError) as caught:
        submit(asked(tmp_path), SlurmOptions("gpus"))
    assert str(caught.value) == (
        "Slurm refuses the job: invalid partition specified: gpus; "
        "Batch job submission failed: Invalid partition name specified"
    )
    assert capfd.readouterr() == ("", "")
    assert (root.exists(), files(root)) == (existed, before)


def test_an_sbatch_that_tells_no_number_is_a_sentence(slurm, tmp_path):
    slurm(sbatch="echo hello")
    with pytest.raises(RunError, match=r"^sbatch does not tell the job's number: .*hello"):
        submit(asked(tmp_path), SlurmOptions())
    assert not (tmp_path / "run").exists()


def test_nothing_of_another_process_is_deleted(slurm, tmp_path):
    """It began to train here while sbatch was asked."""
    root = tmp_path / "run"
    slurm(sbatch=f"touch {root}/recipe.yaml {root}/slurm/8_0_log.out; exit 1")
    with pytest.raises(RunError, match="Slurm refuses the job: sbatch says nothing"):
        submit(asked(tmp_path), SlurmOptions())
    assert files(root) == [".varifocal", "recipe.yaml", "slurm", "slurm/8_0_log.out"]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "COMPLETING", "SUSPENDED"])
def test_a_second_job_of_a_run_is_refused(slurm, tmp_path, state):
    slurm()
    submit(asked(tmp_path), SlurmOptions())
    told = slurm("echo Submitted batch job 13", f"echo JobId=12 JobState={state} Requeue=1")
    for resume in (False, True):
        with pytest.raises(RunError, match=f"job 12 is there for .*/run already and is {state};"):
            submit(asked(tmp_path, resume=resume), SlurmOptions())
    assert told.read_text().splitlines()[-4:] == ["show", "job", "-o", "12"]


@pytest.mark.parametrize("scontrol", ["exit 1", "echo JobId=12 JobState=CANCELLED"])
def test_a_job_that_ended_is_no_obstacle(slurm, tmp_path, scontrol):
    slurm()
    submit(asked(tmp_path), SlurmOptions())
    slurm("echo Submitted batch job 13", scontrol)
    assert submit(asked(tmp_path), SlurmOptions()).startswith("submitted job 13")


def test_of_two_submissions_at_once_one_is_refused(slurm, tmp_path):
    slurm()
    run = RunDirectory.create(tmp_path / "run")
    with alone(run.root.absolute(), "submission"), pytest.raises(RunError, match="submission in "):
        submit(asked(tmp_path), SlurmOptions())


def test_without_slurm_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="there is no Slurm here"):
        submit(asked(tmp_path), SlurmOptions())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("time", ["3", "0:00:30", "00:04:00"])
def test_a_time_too_short_to_progress_is_refused(tmp_path, time):
    with pytest.raises(RunError, match=f"--time {time}: .* give 5 minutes or more"):
        job_script(asked(tmp_path), SlurmOptions(time=time))
    job_script(asked(tmp_path), SlurmOptions(time="5"))


@pytest.mark.parametrize(
    ("word", "option"),
    [
        ("ntasks_per_node=2", "ntasks-per-node"),
        ("--ntasks-per-n=2", "ntasks-per-node"),
        ("sig=USR1@9", "signal"),
        ("no_requeue", "no-requeue"),
        ("array=0-3", "array"),
        ("parsable", "parsable"),
    ],
)
def test_what_is_decided_slips_past_in_no_spelling(tmp_path, word, option):
    with pytest.raises(RunError, match=f"--sbatch {word}: {option} is decided here"):
        job_script(asked(tmp_path), SlurmOptions(more=(word,)))


def test_other_options_are_handed_on(tmp_path):
    more = ("gpus=4", "mem_per_cpu=4G", "exclusive", "wckey=lab")
    lines = job_script(asked(tmp_path), SlurmOptions(more=more)).splitlines()
    for word in ("gpus=4", "mem-per-cpu=4G", "exclusive", "wckey=lab"):
        assert f"#SBATCH --{word}" in lines


def test_a_path_that_slurm_would_change_is_refused(tmp_path):
    with pytest.raises(RunError, match="Slurm replaces a % in a path; choose another --out"):
        job_script(Launch("tiny.yaml", tmp_path / "warmup-10%j"), SlurmOptions())


def test_blanks_in_a_path_reach_sbatch_whole(slurm, tmp_path):
    told = slurm()
    submit(Launch("tiny.yaml", tmp_path / "my run"), SlurmOptions())
    words = told.read_text().splitlines()
    assert f"--output={tmp_path}/my run/slurm/%j_0_log.out" in words
    assert (
        shlex.quote(str(tmp_path / "my run" / "slurm"))
        in (tmp_path / "my run" / "slurm" / "12_submission.sh").read_text()
    )
