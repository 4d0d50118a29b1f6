"""One writer a folder, also across machines; what is half written is its living writer's."""

import errno
import json
import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors import SafetensorError

from varifocal import locking
from varifocal.errors import RunError
from varifocal.exporting.folders import check_replaceable
from varifocal.locking import alone, check_unoccupied, in_turn
from varifocal.run import RunDirectory
from varifocal.sciencebook import make_sciencebook
from varifocal.sigterm import Terminated
from varifocal.staging import staging_path
from varifocal.training.launch import Launch, run_launch
from varifocal.training.slurm import TrainingJob
from varifocal.writing import atomic_directory, unwritable_is_an_error, write_json


@pytest.fixture
def elsewhere(tmp_path):
    """A folder that a process of another machine has signed, whose lock is not seen here."""
    holder = tmp_path / ".varifocal.holder"
    signed = {"pid": 7, "host": "node17", "machine": "00000000", "since": "noon"}
    write_json(holder, signed)
    return holder


def test_a_living_process_of_another_machine_is_told(elsewhere, tmp_path):
    done = threading.Event()

    def touch():
        while not done.wait(0.1):
            os.utime(elsewhere)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(RunError) as caught, alone(tmp_path):
            pass
    finally:
        done.set()
        thread.join()
    assert str(caught.value) == (
        f"{tmp_path} is being written by process 7 on node17 since noon; wait until it ends, stop "
        f"it, or choose another --out (if that machine is gone for good, delete "
        f"{tmp_path / '.varifocal'})"
    )
    assert json.loads(elsewhere.read_text())["host"] == "node17"


def test_a_silent_process_of_another_machine_is_no_obstacle(elsewhere, tmp_path, monkeypatch):
    long_ago = time.time() - locking.SILENCE_S - 10
    os.utime(elsewhere, (long_ago, long_ago))
    monkeypatch.setattr(time, "sleep", lambda seconds: 1 / 0)  # nothing is waited for
    with alone(tmp_path):
        assert json.loads(elsewhere.read_text())["pid"] == os.getpid()
    assert not elsewhere.exists()


def test_the_holder_gives_a_sign_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "BEAT_S", 0.02)
    with alone(tmp_path):
        holder = tmp_path / ".varifocal.holder"
        os.utime(holder, (1, 1))
        end = time.monotonic() + 60
        while holder.stat().st_mtime == 1:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_the_lock_of_a_name_leaves_nothing(tmp_path):
    with alone(tmp_path / "eval", "suite"):
        with alone(tmp_path / "eval", "another"):
            pass
        with pytest.raises(RunError, match=r"suite in .*eval is being written by"):
            alone(tmp_path / "eval", "suite").__enter__()
    assert not (tmp_path / "eval").exists()
    (tmp_path / "eval").mkdir()
    with alone(tmp_path / "eval", "suite"):
        pass
    assert list((tmp_path / "eval").iterdir()) == []  # a folder that was there stays


def test_a_folder_is_the_same_by_each_of_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to(tmp_path / "run")
    with alone(tmp_path / "run"):
        for name in (Path("run"), Path("link")):
            with alone(name, nested=True):
                pass
            with pytest.raises(
                RunError, match=rf"{name} is being written by process {os.getpid()}"
            ):
                alone(name).__enter__()


def test_another_thread_is_no_part_of_a_block(tmp_path):
    with alone(tmp_path), ThreadPoolExecutor() as pool:
        other = pool.submit(lambda: alone(tmp_path, nested=True).__enter__())
        with pytest.raises(RunError, match="is being written by"):
            other.result()


def test_what_several_make_is_made_in_turn(tmp_path):
    done = []

    def second():
        with in_turn(tmp_path / "made", "thing"):
            done.append("second")

    with ThreadPoolExecutor() as pool:
        with in_turn(tmp_path / "made", "thing"):
            waits = pool.submit(second)
            time.sleep(0.1)  # without a lock it would be done by now
            done.append("first")
        waits.result()
    assert done == ["first", "second"]


def test_looking_at_a_folder_that_is_not_there_makes_none(tmp_path):
    check_unoccupied(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_launch_and_a_job_know_a_run_that_is_written(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    with run.lock(), pytest.raises(RunError, match="is being written by"):
        run_launch(Launch("demo", run.root), None)
    # What a Slurm job finds: the folder of its own submission, which is marked.
    (run.root / "slurm").mkdir()
    job = TrainingJob(Launch("demo", run.root))
    RunDirectory(job.launch.out).check_free(resume=job.launch.resume)


def test_two_writers_of_one_folder_do_not_sweep_one_another(tmp_path):
    with atomic_directory(tmp_path / "out") as first:
        (first / "first").touch()
        with atomic_directory(tmp_path / "out") as second:
            (second / "second").touch()
        assert first.is_dir()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_stood_there_stays_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    target = tmp_path / "out"
    with atomic_directory(target) as staging:
        (staging / "old").touch()
    replace, calls = os.replace, []

    def refuse(source, place):
        calls.append(place)
        if len(calls) == 2:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(place))
        replace(source, place)

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match="cannot be written"), atomic_directory(target):
        pass
    assert [path.name for path in target.iterdir()] == ["old"]


def test_an_export_is_replaced_and_what_somebody_put_there_is_not(tmp_path):
    check_replaceable(tmp_path)
    write_json(tmp_path / "parity.json", {"passed": True, "files": ["a", "parity.json"]})
    (tmp_path / "a").touch()
    check_replaceable(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunError, match=r"holds what no export wrote: notes.txt; move that"):
        check_replaceable(tmp_path)


def test_a_long_name_can_be_staged(tmp_path):
    for name in ("x" * 255, "ä" * 127):
        staging_path(tmp_path / name).touch()


def test_a_librarys_own_error_of_a_read_only_place_is_a_sentence(tmp_path):
    error = SafetensorError("I/O error: Read-only file system (os error 30)")
    told = r"adapter cannot be written \(read-only file system\)"
    with pytest.raises(RunError, match=told), unwritable_is_an_error(tmp_path / "adapter"):
        raise error


@pytest.fixture
def read_only(tmp_path):
    """An empty file system that takes nothing; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "demo", "--set", "data.root=."),
        ("demo", "--quick"),
        ("report", "nowhere"),
        ("data", "make", "sciencebook"),
    ],
    ids=" ".join,
)
def test_a_read_only_place_is_a_sentence(run, read_only, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_sciencebook(tmp_path / "sciencebook", train=8, val=1, test=8, seed=0)
    out = [str(read_only / "out")] if command[0] == "data" else ["--out", str(read_only / "out")]
    code, _, told = run(*command, *out)
    assert code == 2
    assert f"{read_only / 'out'} cannot be written (read-only file system)" in told


def test_sigterm_ends_a_chat_and_not_only_an_answer(run, monkeypatch):
    class Ended:
        def __init__(self, *args):
            pass

        def show(self, images):
            pass

        def obey(self, line):
            raise Terminated

    monkeypatch.setattr("varifocal.cli.checks.check_run", lambda run: None)
    monkeypatch.setattr("varifocal.cli.chat.Conversation", Ended)
    monkeypatch.setattr("varifocal.cli.chat.typed_lines", lambda: iter(["one", "two"]))
    code, _, told = run("chat", "anything")
    assert (code, told) == (130, "stopped\n")
