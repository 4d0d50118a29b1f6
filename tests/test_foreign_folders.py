"""What is not ours stays: foreign folders, runs of another process, names that lead away."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from varifocal.errors import RecipeError, RunError
from varifocal.recipe import Recipe
from varifocal.recipe.strict_yaml import validate
from varifocal.run import RunDirectory
from varifocal.sigterm import sigterm_interrupts
from varifocal.staging import machine, staging_path, sweep_abandoned
from varifocal.writing import (
    atomic_directory,
    atomic_file,
    check_folder,
    claim_folder,
    unwritable_is_an_error,
    write_text,
)

THESIS = (".env.template", ".old.original/thesis.txt", "README.md", "data.json", "adapter/weights")
MAKE = ("data", "make", "sciencebook", "--train", "11", "--seed", "0")


@pytest.fixture
def foreign(tmp_path):
    """A folder of somebody's, with names that a run writes too."""
    root = tmp_path / "mine"
    for name in THESIS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"my {name}")
    return root


def contents(root):
    return {str(p.relative_to(root)): p.read_text() for p in root.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "command",
    [
        ("train", "demo", "--set", "data.root=.", "--out"),
        ("train", "demo", "--resume", "--set", "data.root=.", "--out"),
        ("launch", "demo", "--num-processes", "2", "--set", "data.root=.", "--out"),
        ("demo", "--quick", "--out"),
        ("report", "nowhere", "--out"),
        ("compare", "a", "b", "--out"),
        ("sweep", "sweep.yaml", "--out"),
        MAKE,
    ],
    ids=" ".join,
)
def test_no_verb_writes_into_a_foreign_folder(run, foreign, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sciencebook").mkdir()
    sweep = "recipe: demo\nseeds: [0]\nset:\n  data.root: .\n"
    (tmp_path / "sweep.yaml").write_text(sweep)
    before = contents(foreign)
    code, _, told = run(*command, str(foreign))
    assert code == 2
    assert (
        f"{foreign} is not empty, and Varifocal did not make it: it holds .env.template, "
        ".old.original, README.md and 2 more; choose "
    ) in told.replace("\n", " ")
    assert contents(foreign) == before


def test_a_recipe_of_ones_own_is_no_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("seed: 0\nmodel: {}\n")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"holds a recipe.yaml that no training wrote"):
            RunDirectory(tmp_path).check_free(resume=resume)
    (tmp_path / "recipe.yaml").write_text("seed: 0\nprovenance:\n  versions: {}\n")
    RunDirectory(tmp_path).check_free(resume=True)  # a run of an older version


def test_an_empty_folder_a_marked_one_and_known_names_are_free(tmp_path):
    check_folder(tmp_path)
    claim_folder(tmp_path / "out")
    (tmp_path / "out" / "notes").touch()
    check_folder(tmp_path / "out")
    check_folder(tmp_path, known={"out"})
    with pytest.raises(RunError, match=r"it holds out; choose"):
        check_folder(tmp_path)


def test_only_marked_names_are_swept(foreign):
    gone = subprocess.Popen(["true"])
    gone.wait()
    half = staging_path(foreign / "README.md", f"{machine()}-{gone.pid}-0123abcd")
    half.write_text("half")
    before = contents(foreign)
    RunDirectory(foreign).sweep()
    sweep_abandoned(foreign / "README.md")
    del before[half.name]
    assert contents(foreign) == before


# The lock


HOLD = """
import os, sys, time
from varifocal.run import RunDirectory
run = RunDirectory.create(sys.argv[1], resume=True)
with run.lock():
    child = os.fork() if len(sys.argv) > 2 else None
    if not child:  # a forked process has closed its copy of the lock by now
        print("held", flush=True)
    time.sleep(2 if child == 0 else 200)
"""


@pytest.fixture
def hold(tmp_path):
    """Start another process that trains in `tmp_path / "run"`."""
    started = []

    def start(*more):
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run"), *more]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_second_process_is_told_of_the_first(hold, tmp_path, monkeypatch):
    from varifocal.training.train import run_training

    holder = hold()
    run = RunDirectory.create(tmp_path / "run")
    told = f"is being written by process {holder.pid} on {socket.gethostname()} since .*; wait"
    with pytest.raises(RunError, match=told), run.lock():
        pass
    monkeypatch.setattr("varifocal.training.train.check_usable", lambda recipe: None)
    with pytest.raises(RunError, match=told):
        run_training(Recipe.model_validate({"model": {"language_model": "none"}}), run.root)
    monkeypatch.setenv("RANK", "1")
    with run.lock():  # the first process of a launch has it for all of them
        pass


@pytest.mark.parametrize("workers", [(), ("and a worker that outlives it",)])
def test_a_killed_process_is_no_obstacle(hold, tmp_path, workers):
    holder = hold(*workers)
    holder.kill()
    holder.wait()
    with RunDirectory.create(tmp_path / "run").lock():
        noted = json.loads((tmp_path / "run" / ".varifocal.holder").read_text())
    assert (noted["pid"], noted["host"]) == (os.getpid(), socket.gethostname())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".varifocal"]


def test_one_process_may_take_its_lock_again(tmp_path):
    run = RunDirectory.create(tmp_path / "run")
    with run.lock(), run.lock():
        pass
    with run.lock():
        pass


# Names


@pytest.mark.parametrize(
    ("name", "told"),
    [
        *((name, "names a folder in runs/") for name in ("../../..", "/etc", "a/b", "a\\b", "..")),
        ("", "names a folder in runs/"),
        ("a\0b", "names a folder in runs/"),
        ("x" * 5000, "5000 bytes long, and a folder's name may have 200"),
        ("ä" * 101, "202 bytes long"),
        ("\ud800", "valid string|surrogate"),
    ],
)
def test_a_name_stays_in_runs(name, told):
    with pytest.raises(RecipeError, match=f"^name: .*({told})"):
        validate(Recipe, {"name": name, "model": {"language_model": "a"}})


@pytest.mark.parametrize("name", ["demo", "lr=0.1,seed=3", "naïve run", ".hidden", "ä" * 100])
def test_names_of_people_are_taken(name):
    page = validate(Recipe, {"name": name, "model": {"language_model": "a"}})
    assert page.name == name


# Modes and places that may not be written


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002])
def test_files_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a", "a")
        with atomic_directory(tmp_path / "adapter") as staging:
            (staging / "weights").touch(mode=0o600)
            (staging / "deep").mkdir(mode=0o700)
            (staging / "deep" / "more").touch()
    finally:
        os.umask(before)
    files, folders = 0o666 & ~umask, 0o777 & ~umask
    assert (tmp_path / "a").stat().st_mode & 0o777 == files
    for name, mode in {"weights": files, "deep/more": files, ".": folders, "deep": folders}.items():
        assert (tmp_path / "adapter" / name).stat().st_mode & 0o777 == mode, name


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_place_that_may_not_be_written_is_named(tmp_path, number, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(tmp_path / "run" / "x"))

    told = r"run cannot be written \(.*\); name a place that you may"
    with pytest.raises(RunError, match=told), unwritable_is_an_error(tmp_path / "run"):
        refuse()
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(RunError, match="cannot be written"), atomic_file(tmp_path / "run" / "x"):
        pass
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "run"))
    told = "set VARIFOCAL_CACHE to a folder that you may write"
    with pytest.raises(RunError, match=told), unwritable_is_an_error(tmp_path / "run" / "features"):
        refuse()


def test_the_command_line_has_no_traceback_for_a_place_that_refuses(run, monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "file"))

    monkeypatch.setattr("varifocal.recipe.reading.read_page", refuse)
    code, _, told = run("plan", "demo")
    assert code == 2
    assert told == (
        f"error: {tmp_path / 'file'} cannot be used: read-only file system; change its "
        "permissions, or name another place\n"
    )


# SIGTERM


STAGE = f"""
import sys, time
import varifocal.cli.commands as verbs
import varifocal.sciencebook.write as write
def wait(*args, **kwargs):
    print("in the stage", flush=True)
    time.sleep(200)
write._write_images = wait
sys.argv = ["varifocal", *{MAKE}, sys.argv[1]]
verbs.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_sigterm_ends_a_stage_as_ctrl_c_does(tmp_path, number):
    command = [sys.executable, "-c", STAGE, str(tmp_path / "book")]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        assert process.stdout.readline() == "in the stage\n"
        process.send_signal(number)
        _, told = process.communicate(timeout=200)
    assert process.returncode == 130
    assert told == "stopped\n"


def test_a_forked_worker_still_dies_of_sigterm():
    runs, tell = os.pipe()
    with sigterm_interrupts():
        child = os.fork()
        if child == 0:
            try:
                os.write(tell, b"1")  # what a fork does to its child is done by now
                time.sleep(200)
            finally:
                os._exit(0)
        assert os.read(runs, 1) == b"1"
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    os.close(runs)
    os.close(tell)
    assert os.WTERMSIG(status) == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


IMPORTING = """
import os, signal, sys
_, module, number = sys.argv
class Stop:
    def find_spec(name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), getattr(signal, number))
sys.meta_path.insert(0, Stop)
from varifocal.cli import main
sys.argv[1:] = ["demo", "--quick"]
main()
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("module", ["typer", "varifocal.cli.plan", "torch"])
def test_a_signal_in_the_first_imports_ends_with_the_sentence(module, number, tmp_path):
    command = [sys.executable, "-c", IMPORTING, module, number]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert ended.returncode == 130
    assert ended.stderr == "stopped; to go on: varifocal demo --quick\n"
