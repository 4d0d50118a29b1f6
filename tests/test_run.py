"""The run directory: whole files or none, and what a kill or a full disk leaves after."""

import errno
import json
import os
import subprocess
import time

import pytest
from safetensors import SafetensorError

from varifocal.errors import RunError
from varifocal.run import RunDirectory
from varifocal.staging import machine, process_staging_path, staging_path, sweep_abandoned
from varifocal.writing import (
    atomic_directory,
    write_json,
    write_text,
)


@pytest.fixture
def run(tmp_path):
    return RunDirectory.create(tmp_path / "run")


def tree(root):
    """Every path below a directory with its content."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in root.rglob("*")
    }


# Opening


def test_a_run_is_created_once_and_resumed_by_name(tmp_path):
    run = RunDirectory.create(tmp_path / "deep" / "run")
    assert run.root.is_dir()
    run = RunDirectory.create(run.root)  # an empty directory holds no run
    run.recipe.write_text("seed: 0\n")
    with pytest.raises(RunError) as caught:
        RunDirectory.create(run.root)
    assert str(caught.value) == (
        f"{run.root} holds a run already; add --resume to go on with it, or choose another --out"
    )
    assert RunDirectory.create(run.root, resume=True) == run == RunDirectory.open(run.root)


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError) as caught:
        RunDirectory.create(tmp_path / "file")
    assert str(caught.value) == (
        f"{tmp_path / 'file'} is a file, and a folder is to be written; choose another --out"
    )
    with pytest.raises(RunError) as caught:
        RunDirectory.open(tmp_path)
    assert str(caught.value) == f"{tmp_path} is no run directory: it has no recipe.yaml"


# Checkpoints


def test_the_newest_checkpoint_is_the_one_with_the_most_steps(run):
    assert run.newest_checkpoint() is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-100.partial", ".checkpoint-200.x"):
        (run.checkpoints / name).mkdir(parents=True)
    for name in ("checkpoint-", "checkpoint-best", "other-300", ".checkpoint-10.old"):
        (run.checkpoints / name).mkdir()
    assert run.newest_checkpoint() == run.checkpoints / "checkpoint-10"


def test_a_checkpoint_loses_its_name_before_its_files(run, monkeypatch):
    for step in (2, 4, 6, 10):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        write_json(run.checkpoints / f"checkpoint-{step}" / "state.json", step)
    run.keep_newest(None)
    run.keep_newest(4)
    assert len(list(run.checkpoints.iterdir())) == 4
    with monkeypatch.context() as patch:
        patch.setattr("varifocal.staging.shutil.rmtree", lambda *args, **kwargs: 1 / 0)  # as a kill
        with pytest.raises(ZeroDivisionError):
            run.keep_newest(3)
    assert not list(run.checkpoints.glob("checkpoint-2*"))
    run.sweep()
    run.keep_newest(1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-10"]


# Metrics


def test_metrics_are_read_back_without_a_torn_last_line(run):
    assert run.read_metrics() == []
    for step in (1, 2):
        run.append_metrics({"step": step, "loss": 1 / (2 + step)})
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "lo')
    assert run.read_metrics() == [{"step": 1, "loss": 1 / 3}, {"step": 2, "loss": 1 / 4}]


def test_metrics_are_cut_back_to_a_step_and_go_on_behind_a_torn_line(run):
    run.cut_metrics(0)
    assert run.read_metrics() == []
    for step in range(1, 6):
        run.append_metrics({"step": step})
    with run.metrics.open("a") as file:
        file.write('{"step": 6')
    run.cut_metrics(3)
    run.append_metrics({"step": 4, "again": True})
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == [
        *({"step": step} for step in (1, 2, 3)),
        {"step": 4, "again": True},
    ]


# Whole files and directories


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "note.json"
    write_json(path, {"π": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"π": 1}
    write_text(path, "new")
    assert tree(path.parent) == {"note.json": b"new"}


def test_a_file_keeps_its_content_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "note"
    write_text(path, "old")

    def die(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert tree(tmp_path) == {"note": b"old"}


def test_a_directory_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "adapter"
    for content in ("first", "second"):
        with atomic_directory(target) as staging:
            assert staging.parent == tmp_path
            (staging / content).write_text(content)
            assert content not in [path.name for path in target.glob("*")]
    assert tree(tmp_path) == {"adapter": None, "adapter/second": b"second"}
    assert target.stat().st_mode & 0o777 == 0o755


def test_what_a_killed_writer_left_goes_with_the_next_one(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    killed = f"{machine()}-{gone.pid}-0123abcd"
    six, other = (staging_path(tmp_path / f"checkpoint-{n}", killed) for n in (6, 60))
    living = staging_path(tmp_path / "checkpoint-6")  # as another process may be writing it
    part = process_staging_path(tmp_path / "checkpoint-6", 1)
    elsewhere = staging_path(tmp_path / "checkpoint-6", f"00000000-{gone.pid}-0123abcd")
    strangers = tmp_path / ".checkpoint-6.original"
    for left in (six, other, living, part, elsewhere, strangers):
        left.mkdir()
    with atomic_directory(tmp_path / "checkpoint-6") as staging:
        (staging / "new").write_text("new")
        assert six.is_dir()
    assert tree(tmp_path) == {
        "checkpoint-6": None,
        "checkpoint-6/new": b"new",
        **{left.name: None for left in (other, living, part, elsewhere, strangers)},
    }
    two_days_ago = time.time() - 2 * 86400
    os.utime(elsewhere, (two_days_ago, two_days_ago))
    sweep_abandoned(tmp_path / "checkpoint-6")
    assert not elsewhere.exists()
    RunDirectory(tmp_path).sweep()  # nobody else writes where a training is alone
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-6", strangers.name}


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_a_directory_stays_when_the_block_fails(tmp_path, error):
    target = tmp_path / "adapter"
    with atomic_directory(target) as staging:
        (staging / "old").write_text("old")
    before = tree(tmp_path)

    def fail():
        with atomic_directory(target) as staging:
            (staging / "new").write_text("new")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert tree(tmp_path) == before


# A full disk


FULL = (
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
)


@pytest.mark.parametrize("error", FULL, ids=["OSError", "quota", "safetensors"])
def test_a_full_disk_is_a_sentence_and_the_former_files_stay(tmp_path, error):
    target = tmp_path / "adapter"
    with atomic_directory(target) as staging:
        (staging / "old").write_text("old")
    before = tree(tmp_path)

    def save():
        with atomic_directory(target) as staging:
            (staging / "half").write_text("ha")
            raise error

    with pytest.raises(RunError) as caught:
        save()
    assert str(caught.value) == (
        f"the disk is full: {target} was not written, and what was saved before is untouched; "
        "free some space and repeat the command with --resume"
    )
    assert tree(tmp_path) == before


def test_a_full_disk_under_one_file(run, monkeypatch):
    write_text(run.recipe, "old")
    run.append_metrics({"step": 1})
    before = tree(run.root)

    def full(*_, **__):
        raise FULL[0]

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match=rf"^the disk is full: {run.recipe} was not written"):
        write_text(run.recipe, "new")
    monkeypatch.setattr(json, "dumps", full)
    with pytest.raises(RunError, match=rf"^the disk is full: {run.metrics} was not written"):
        run.append_metrics({"step": 2})
    assert tree(run.root) == before


def test_another_mistake_keeps_its_own_words(tmp_path):
    def fail():
        with atomic_directory(tmp_path / "adapter"):
            raise PermissionError(errno.EACCES, "Permission denied", "/elsewhere/config.json")

    with pytest.raises(PermissionError):
        fail()
