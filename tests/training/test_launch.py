"""What a launch starts, what it says when a process dies, and the Slurm job's script."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from varifocal.cli import main
from varifocal.errors import RecipeError, RunError, Stopped
from varifocal.recipe import load_recipe
from varifocal.recipe.reading import SHIPPED
from varifocal.run import RunDirectory
from varifocal.training.callbacks import StopWish
from varifocal.training.engines import gather_optimizer_state
from varifocal.training.launch import (
    ENGINES,
    Launch,
    _agent,
    _cores,
    _ended,
    _signals_once,
    check_launch,
    engine_overrides,
    launch_arguments,
    resume_command,
    share_rows,
    torchrun_command,
    worker_arguments,
)
from varifocal.training.resuming import check_pace
from varifocal.training.slurm import SlurmOptions, job_script, minutes
from varifocal.training.slurm_job import TrainingJob

LAVIN = "lavin-7b-scienceqa"


def page_of(batch, steps, **more):
    overrides = {
        "training.per_device_train_batch_size": batch,
        "training.gradient_accumulation_steps": steps,
        **more,
    }
    return load_recipe(LAVIN, overrides, check_paths=False)


def shares(batch, steps, num_processes):
    return tuple(share_rows(page_of(batch, steps), num_processes).values())


@pytest.mark.parametrize(
    ("recipe", "num_processes", "expected"),
    [
        ((4, 8), 1, (4, 8)),
        ((4, 8), 8, (4, 1)),
        ((4, 8), 16, (2, 1)),
        ((4, 8), 32, (1, 1)),
        ((4, 3), 2, (3, 2)),  # six rows each: four do not divide them
    ],
)
def test_processes_share_a_steps_rows(recipe, num_processes, expected):
    assert shares(*recipe, num_processes) == expected


def test_rows_that_cannot_be_shared_are_refused():
    with pytest.raises(RecipeError) as caught:
        share_rows(page_of(4, 2), 3)
    assert str(caught.value) == (
        "3 processes cannot share the 8 rows of a step equally; start 1, 2, 4, 8, or set "
        "training.gradient_accumulation_steps"
    )


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engines_knobs_are_a_recipes(engine):
    page = load_recipe(LAVIN, engine_overrides(engine), check_paths=False)
    extras = page.training.model_extra
    assert bool(extras.get("fsdp")) == (engine == "fsdp2")
    assert bool(extras.get("deepspeed")) == engine.startswith("zero")


def test_the_launch_files_say_what_they_are_called():
    folder = SHIPPED / "launch"
    files = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    assert files.keys() == {found[1] for found in ENGINES.values() if found}
    assert files["fsdp2.json"]["version"] == 2
    for stage in (2, 3):
        config = files[f"zero{stage}.json"]
        assert config["zero_optimization"]["stage"] == stage
        # What the recipe decides is left to it.
        for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
            assert config[key] == "auto"


def test_what_a_worker_runs(tmp_path):
    asked = Launch(LAVIN, tmp_path, 8, 2, "zero3", True, ("seed=1",), "node1:29500")
    page = load_recipe(LAVIN, check_paths=False)
    zero = SHIPPED / "launch" / "zero3.json"
    command = torchrun_command(asked, page)
    assert command == (
        "torchrun --nnodes 2 --rdzv-backend c10d --rdzv-endpoint node1:29500 --nproc-per-node 8 "
        f"-m varifocal.cli train {LAVIN} --out {tmp_path} --resume --set seed=1 "
        "--set training.per_device_train_batch_size=2 "
        f"--set training.gradient_accumulation_steps=1 --set training.deepspeed={zero}"
    )
    assert worker_arguments(Launch(LAVIN, tmp_path), page)[:4] == [
        "-m",
        "varifocal.cli",
        "train",
        LAVIN,
    ]
    again = " ".join(launch_arguments(asked))
    assert again == (
        f"launch {LAVIN} --out {tmp_path} --num-processes 8 --num-nodes 2 --engine zero3 "
        "--rendezvous node1:29500 --resume --set seed=1"
    )


def test_a_wrong_launch_is_refused_before_anything_starts(recipe_file, tmp_path):
    with pytest.raises(RecipeError, match="--engine fsdp: ddp, fsdp2, zero2, zero3 are known"):
        check_launch(Launch(str(recipe_file), tmp_path / "run", engine="fsdp"))
    run = RunDirectory.create(tmp_path / "there")
    run.recipe.write_text("seed: 1")
    with pytest.raises(RunError, match="add --resume"):
        check_launch(Launch(str(recipe_file), run.root))
    for num_nodes, node_rank in ((1, 0), (2, 2)):
        nodes = Launch(str(recipe_file), tmp_path, num_nodes=num_nodes, node_rank=node_rank)
        with pytest.raises(RunError, match=f"--node-rank {node_rank}: nodes are numbered from 0"):
            check_launch(nodes)
    check_launch(Launch(str(recipe_file), tmp_path / "free"))
    assert not (tmp_path / "free").exists()  # a dry run leaves nothing


# A process that ends


def failure(exitcode, rank=1, timestamp=1):
    return SimpleNamespace(exitcode=exitcode, local_rank=rank, timestamp=timestamp)


def test_the_killed_process_is_named_and_not_its_victims(tmp_path):
    asked = Launch("tiny.yaml", tmp_path / "run", 2)
    (tmp_path / "run" / "checkpoints" / "checkpoint-6").mkdir(parents=True)
    log = tmp_path / "logs" / "run_x" / "attempt_0" / "1" / "stderr.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\nlast\n\n")
    failures = [failure(2, 0, 1), failure(-signal.SIGKILL, 1, 2), failure(-signal.SIGTERM, 0, 0)]
    error = _ended(asked, failures, tmp_path / "logs")
    assert isinstance(error, RunError)
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    assert str(error) == (
        "process 1 of 2 was killed by SIGKILL; the others were ended with it, and the newest "
        f"checkpoint is {newest}. Its last words: 'last'. Go on with: {resume_command(asked)}"
    )


def test_processes_that_were_stopped_are_no_mistake(tmp_path):
    asked = Launch("tiny.yaml", tmp_path, 2)
    assert isinstance(_ended(asked, [failure(130)], tmp_path), Stopped)
    mistake = _ended(asked, [failure(2, 0)], tmp_path)
    assert "process 0 of 2 ended with exit code 2; the others" in str(mistake)
    assert "there is no checkpoint yet" in str(mistake)


def test_a_repeated_sigterm_does_not_end_what_is_saving(monkeypatch):
    """Slurm repeats it, or sends it to every process while the launcher passes it on."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    monkeypatch.setenv("TORCHELASTIC_SIGNALS_TO_HANDLE", "")
    before = signal.getsignal(signal.SIGTERM)
    with _signals_once():
        with pytest.raises(SignalException):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert "SIGTERM" not in os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"]
        with pytest.raises(SignalException):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) is before
    wish = StopWish()
    wish(signal.SIGTERM, None)
    wish(signal.SIGTERM, None)
    assert wish.given
    with pytest.raises(KeyboardInterrupt):
        wish(signal.SIGINT, None)


# A checkpoint's pace


def checkpoint_of(tmp_path, rows, processes=2, shards=False):
    checkpoint = tmp_path / "checkpoint-3"
    checkpoint.mkdir()
    unlogged = {"rows_per_step": rows, "spent": [{}] * processes}
    (checkpoint / "unlogged.json").write_text(json.dumps(unlogged))
    if shards:
        (checkpoint / "global_step3").mkdir()
    return checkpoint


def test_other_steps_are_refused_with_the_mend(tmp_path):
    checkpoint = checkpoint_of(tmp_path, 32)
    check_pace(checkpoint, page_of(4, 4), 2)
    with pytest.raises(RunError, match=r"set training\.gradient_accumulation_steps to 8; "):
        check_pace(checkpoint, page_of(4, 4), 1)
    with pytest.raises(RunError, match="give back the former number of processes; "):
        check_pace(checkpoint, page_of(4, 1), 3)


def test_deepspeeds_shards_are_not_given_to_others(tmp_path):
    checkpoint = checkpoint_of(tmp_path, 32, shards=True)
    zero = {"training.deepspeed": "zero.json"}
    check_pace(checkpoint, page_of(4, 4, **zero), 2)
    with pytest.raises(RunError, match="shards of 2 processes, and 4 cannot read them"):
        check_pace(checkpoint, page_of(4, 2, **zero), 4)
    with pytest.raises(RunError, match="written under DeepSpeed and would be read without it"):
        check_pace(checkpoint, page_of(4, 4), 2)
    (checkpoint / "global_step3").rmdir()
    with pytest.raises(RunError, match="written without DeepSpeed and would be read under it"):
        check_pace(checkpoint, page_of(4, 4, **zero), 2)


# Slurm


@pytest.mark.parametrize("time", ["", "0", "1:00", "a day", "1-2"])
def test_a_wrong_time_is_refused(time):
    with pytest.raises(RunError, match="give minutes, HH:MM:SS or D-HH:MM:SS"):
        minutes(time)


def test_the_jobs_script(tmp_path):
    pytest.importorskip("submitit")
    asked = Launch(LAVIN, tmp_path / "lavin", 8, 2)
    options = SlurmOptions("gpu", "1-00:00:00", "lab", None, 24, ("qos=high", "--exclusive"))
    script = job_script(asked, options)
    lines = script.splitlines()
    for line in (
        "job-name=lavin", "nodes=2", "ntasks-per-node=1", "gpus-per-node=8", "time=1440",
        "partition=gpu", "account=lab", "signal=USR2@180", "requeue", "open-mode=append",
        "cpus-per-task=24", "qos=high", "exclusive",
    ):  # fmt: skip
        assert f"#SBATCH --{line}" in lines
    assert f"submitit.core._submit {tmp_path}/lavin/slurm" in script
    # Slurm 22.05 and later: a step has one CPU a task, whatever its job has.
    assert "--cpus-per-task=24 --kill-on-bad-exit=1" in script
    plain = job_script(asked, SlurmOptions())
    assert "account" not in plain
    assert "#SBATCH --cpus-per-task=8" in plain
    with pytest.raises(RunError, match="--sbatch nodes=3: nodes is decided here"):
        job_script(asked, SlurmOptions(more=("nodes=3",)))


def test_the_jobs_script_starts_one_launcher_a_node(tmp_path):
    """Bash runs it, with a srun that tells what it was given; the place has a blank."""
    pytest.importorskip("submitit")
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "executor $SUBMITIT_EXECUTOR" "$@"\n')
    srun.chmod(0o755)
    out = tmp_path / "my runs" / "lavin"
    script = job_script(Launch(LAVIN, out, 8, 4), SlurmOptions(cpus_per_node=24))
    env = {**os.environ, "PATH": f"{srun.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", script], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    folder = str(out / "slurm")
    assert done.stdout.splitlines() == [
        *("executor slurm", "--unbuffered", "--output", f"{folder}/%j_%t_log.out"),
        *("--cpus-per-task=24", "--kill-on-bad-exit=1"),
        *(sys.executable, "-u", "-m", "submitit.core._submit", folder),
    ]


def test_a_jobs_nodes_meet_on_its_first_one(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    slurm = {"JOB_ID": "41234567", "JOB_NODELIST": "gpu[07-08,11]", "JOB_NUM_NODES": "3"}
    for name, value in {**slurm, "NODEID": "2", "PROCID": "2", "NTASKS": "3"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    job = TrainingJob(Launch("tiny.yaml", tmp_path, 8, 3, overrides=("seed=1",)))
    words = launch_arguments(job._meeting())
    assert words[words.index("--rendezvous") + 1] == "gpu07:26567"  # 12000 + 41234567 % 20000
    assert words[words.index("--num-nodes") + 1] == "3"
    assert words[words.index("--node-rank") + 1] == "2"  # so the first process is the first node's
    assert "--resume" in words
    assert words[-2:] == ["--set", "seed=1"]
    agent = _agent(job._meeting(), str(tmp_path))
    assert (agent.rdzv_backend, agent.rdzv_configs["rank"]) == ("static", 2)
    assert "--rdzv-backend static" in torchrun_command(job._meeting(), page_of(24, 1))
    assert TrainingJob(Launch("tiny.yaml", tmp_path, 8))._meeting().rendezvous is None


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--partition", "gpu"], "are asked of Slurm; give --slurm too"),
        (["--sbatch", "qos=high"], "are asked of Slurm; give --slurm too"),
        (["--slurm", "--rendezvous", "n1:29500"], "--slurm finds them"),
        (["--slurm", "--node-rank", "0"], "--slurm finds them"),
    ],
)
def test_options_that_would_do_nothing_are_refused(words, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["varifocal", "launch", LAVIN, *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in " ".join(capsys.readouterr().err.split())


def test_a_process_gets_its_share_of_the_jobs_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    assert _cores() == 12


def test_an_optimizers_state_is_whole_on_one_process():
    import torch

    weight = torch.nn.Parameter(torch.ones(3))
    adam = torch.optim.AdamW([weight])
    weight.sum().backward()
    adam.step()
    whole, own = gather_optimizer_state(adam), adam.state_dict()
    assert whole["param_groups"] == own["param_groups"]
    assert torch.equal(whole["state"][0]["exp_avg"], own["state"][0]["exp_avg"])
