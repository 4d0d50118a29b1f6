"""`varifocal launch` with real processes: one is killed, a job is run, and both go on."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from varifocal.run import RunDirectory

PACE = {
    "training.max_steps": 6,
    "training.save_steps": 2,
    "training.gradient_accumulation_steps": 2,
    "training.logging_steps": 1,
    "tuner.dropout": 0.0,
}

# Found by every process of the launch, through PYTHONPATH: the second one dies at a step.
DIES = """
import os, signal, sys
if os.environ.get("RANK") == "1" and not os.path.exists({mark!r}):
    def dies(event, args):
        if event == "os.mkdir" and str(args[0]).endswith("process1/checkpoint-4"):
            open({mark!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(dies)
"""

# gloo will do: DeepSpeed's own kernel would be compiled first, for minutes.
NO_KERNEL = """
import os
if "RANK" in os.environ:
    import deepspeed.ops
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
"""


def settings():
    return [word for key, value in PACE.items() for word in ("--set", f"{key}={value}")]


def customized(tmp_path, text):
    """An environment in which every process begins with a text."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(text)
    return {"PYTHONPATH": f"{hook}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}


def varifocal(*words, env=None):
    done = subprocess.run(
        [sys.executable, "-m", "varifocal.cli", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=500,
    )
    return done.returncode, done.stderr


def curve(run):
    return [record["loss"] for record in RunDirectory(run).read_metrics()]


_ALONE = []  # the curve of one process, the same in all tests


def alone(recipe_file, tmp_path):
    if not _ALONE:
        code, said = varifocal("train", recipe_file, "--out", tmp_path / "one", *settings())
        assert code == 0, said[-3000:]
        _ALONE.extend(curve(tmp_path / "one"))
    return _ALONE


@pytest.mark.slow
def test_a_killed_process_ends_the_launch_which_then_goes_on(recipe_file, tmp_path):
    env = customized(tmp_path, DIES.format(mark=str(tmp_path / "died")))
    run = tmp_path / "run"
    command = ["launch", recipe_file, "--out", run, "--num-processes", 2, *settings()]
    code, said = varifocal(*command, env=env)
    assert code == 2, said[-3000:]
    sentence = said.splitlines()[-1]
    newest = run / "checkpoints" / "checkpoint-2"
    assert f"process 1 of 2 was killed by SIGKILL; the others were ended with it, and the newest " \
        f"checkpoint is {newest}" in sentence  # fmt: skip
    assert sentence.endswith("--resume " + " ".join(settings()))
    code, said = varifocal(*command, "--resume", env=env)
    assert code == 0, said[-3000:]
    assert curve(run) == pytest.approx(alone(recipe_file, tmp_path), rel=1e-5)


@pytest.mark.slow
def test_two_launches_meet_as_two_nodes(recipe_file, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{free.getsockname()[1]}"
    command = ["launch", recipe_file, "--out", tmp_path / "run", "--num-nodes", 2, *settings()]
    with ThreadPoolExecutor() as pool:
        nodes = [pool.submit(varifocal, *command, "--rendezvous", where) for _ in range(2)]
    for node in nodes:
        code, said = node.result()
        assert code == 0, said[-3000:]
    assert curve(tmp_path / "run") == pytest.approx(alone(recipe_file, tmp_path), rel=1e-5)


@pytest.mark.slow
def test_a_job_trains_under_submitits_local_executor(recipe_file, tmp_path):
    submitit = pytest.importorskip("submitit")
    from varifocal.training.launch import Launch
    from varifocal.training.slurm import TrainingJob

    overrides = tuple(settings()[1::2])
    asked = Launch(str(recipe_file), tmp_path / "run", 2, overrides=overrides)
    executor = submitit.LocalExecutor(tmp_path / "slurm")
    executor.update_parameters(timeout_min=8)
    job = executor.submit(TrainingJob(asked))
    assert job.result() == 0, job.stderr()
    assert len(curve(tmp_path / "run")) == 6
    assert (tmp_path / "run" / "adapter").is_dir()


def assert_takes_rates(run, command, env):
    """From checkpoint-4 on, with rates that move nothing: the logged rate is not enough."""
    learned = load_file(run / "adapter" / "adapter_model.safetensors")
    shutil.rmtree(run / "checkpoints" / "checkpoint-6")
    start = load_file(run / "checkpoints" / "checkpoint-4" / "adapter_model.safetensors")
    rates = {"learning_rate": 1e-9, "connector_learning_rate": 1e-9, "lr_scheduler_type": "linear"}
    given = [word for key, rate in rates.items() for word in ("--set", f"training.{key}={rate}")]
    code, said = varifocal(*command, *given, "--num-processes", 2, "--resume", env=env)
    assert code == 0, said[-3000:]
    records = RunDirectory(run).read_metrics()[4:]
    assert [record["learning_rate"] for record in records] == pytest.approx([5e-10, 2.5e-10])
    end = load_file(run / "adapter" / "adapter_model.safetensors")
    for name, tensor in end.items():
        torch.testing.assert_close(tensor, start[name], rtol=0, atol=1e-6)
    assert any((learned[name] - start[name]).abs().max() > 1e-3 for name in start)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed"
)
@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_zero_is_launched_with_the_shipped_files(recipe_file, tmp_path, engine):
    run = tmp_path / "run"
    env = customized(tmp_path, NO_KERNEL)
    command = ["launch", recipe_file, "--out", run, "--engine", engine, *settings()]
    code, said = varifocal(*command, "--num-processes", 2, env=env)
    assert code == 0, said[-3000:]
    # From the second step on, Adam moves by zeros here what it leaves alone there.
    assert curve(run)[:2] == pytest.approx(alone(recipe_file, tmp_path)[:2], rel=1e-4)
    kept = json.loads((RunDirectory(run).newest_checkpoint() / "unlogged.json").read_text())
    assert kept["rows_per_step"] == 2
    assert_takes_rates(run, command, env)
    code, said = varifocal(*command, "--num-processes", 1, "--resume", env=env)
    assert code == 2
    assert "holds DeepSpeed's shards of 2 processes, and 1 cannot read them" in said
