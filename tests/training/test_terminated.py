"""SIGTERM from outside, sent to `demo` and `launch` while they work: they end, and go on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from docs.stand_ins import small_language_model
from varifocal.models.packaged_weights import packaged_directory
from varifocal.run import RunDirectory

# Found by every process, through PYTHONPATH: the first to make a folder of this name waits.
WAITS = """
import os, sys, time
def waits(event, args):
    if event == "os.mkdir" and str(args[0]).endswith({name!r}) and not os.path.exists({here!r}):
        open({here!r}, "w").close()
        time.sleep(3)
sys.addaudithook(waits)
"""


@pytest.fixture
def stopped(tmp_path):
    """Start a command, send SIGTERM when it makes a folder; its exit code, and stderr's end."""

    def stopped(folder, *words, env):
        hook, here = tmp_path / "hook", tmp_path / "here"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(WAITS.format(name=folder, here=str(here)))
        path = f"{hook}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        with start(*words, env={**env, "PYTHONPATH": path}) as process:
            while not here.exists():
                assert process.poll() is None, process.stderr.read()
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=300)
        return process.returncode, told.splitlines()[-1]

    return stopped


def start(*words, env):
    return subprocess.Popen(
        [sys.executable, "-m", "varifocal.cli", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def go_on(sentence, env):
    """Run the command that a sentence ends with; its exit code and stderr."""
    words = sentence.partition("varifocal ")[2].split()
    with start(*words, env=env) as process:
        _, told = process.communicate(timeout=600)
    return process.returncode, told


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["demo/eval", "checkpoint-8"])
def test_a_demo_ends_and_goes_on(folder, stopped, tmp_path):
    cache = tmp_path / "small"
    small_language_model(cache, packaged_directory("smollm2-135m-instruct"))
    env = {"VARIFOCAL_CACHE": str(cache)}
    code, told = stopped(folder, "demo", "--quick", "--out", tmp_path / "demo", env=env)
    assert (code, told.startswith("stopped")) == (130, True), told
    assert not (tmp_path / "demo" / "demo.json").exists()
    if folder == "demo/eval":  # the rest takes minutes, and is the same
        return
    code, said = go_on(f"varifocal demo --quick --out {tmp_path / 'demo'}", env)
    assert code == 0, said[-3000:]
    assert (tmp_path / "demo" / "demo.json").is_file()


@pytest.mark.slow
def test_a_launch_saves_and_goes_on(stopped, recipe_file, tmp_path):
    run = tmp_path / "run"
    pace = {"max_steps": 6, "save_steps": 2, "gradient_accumulation_steps": 2, "logging_steps": 1}
    given = [word for key, value in pace.items() for word in ("--set", f"training.{key}={value}")]
    command = ["launch", recipe_file, "--out", run, "--num-processes", 2, *given]
    code, told = stopped("checkpoint-2", *command, env={})
    assert (code, told.startswith("stopped")) == (130, True), told
    newest = RunDirectory(run).newest_checkpoint()
    assert newest is not None
    assert newest.name != "checkpoint-6"
    code, said = go_on(told, {})
    assert code == 0, said[-3000:]
    assert RunDirectory(run).newest_checkpoint().name == "checkpoint-6"
