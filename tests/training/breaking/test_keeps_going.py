"""What breaks a training from outside: nothing is lost but the step in hand, and it says the fix.

Here: SIGKILL at any moment, and checkpoints whose files were damaged afterwards.
"""

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

from fork_server import exit_code
from varifocal.assemble import open_run
from varifocal.errors import ModelError, RunError
from varifocal.manifest import damage, write_manifest
from varifocal.run import RunDirectory, checkpoint_step
from varifocal.training.resuming import find_start
from varifocal.training.train import run_training

FOUR = {"training.max_steps": 4, "training.save_steps": 2, "training.save_total_limit": 5}


@pytest.fixture
def long_file(recipe_file):
    """Packing, dropout, images through an adapted tower, text, and an aligned connector."""
    page = yaml.safe_load(recipe_file.read_text())
    page["training"] |= {"logging_steps": 2, "save_steps": 3}
    page["tuner"]["dropout"] = 0.3
    page["alignment"] = {"type": "words", "steps": 5}
    recipe_file.write_text(yaml.safe_dump(page))
    return recipe_file


class Killer:
    """Trains in children of a fork server, each into `root`, and kills them."""

    def __init__(self, stdin, stdout, recipe_file):
        self.stdin, self.stdout, self.recipe_file = stdin, stdout, recipe_file

    def train(self, root, seconds=None, touch=None):
        """Train or go on; return the exit code, the steps that were taken, and the seconds."""
        steps = Path(f"{root}.steps")
        steps.write_text("")
        request = {
            "arguments": ["train", str(self.recipe_file), "--out", str(root), "--resume"],
            "log": f"{root}.log",
            "cache": f"{root}.cache",
            "steps": str(steps),
            "seconds": seconds,
            "touch": touch,
        }
        print(json.dumps(request), file=self.stdin, flush=True)
        answer = json.loads(self.stdout.readline())
        return answer["code"], [int(line) for line in steps.read_text().split()], answer["seconds"]


@pytest.fixture
def killer(long_file, forks):
    asked, told = os.pipe(), os.pipe()
    files = [asked[0], told[1], 2]
    server = forks.start(["python", Path(__file__).with_name("fork_server.py")], files)
    for file in (asked[0], told[1]):
        os.close(file)
    with os.fdopen(asked[1], "w") as stdin, os.fdopen(told[0]) as stdout:
        yield Killer(stdin, stdout, long_file)
    exit_code(server)


def curve(run):
    """What a run logged, without the clock."""
    return [
        {key: value for key, value in record.items() if key != "tokens_per_second"}
        for record in run.read_metrics()
    ]


def weights(directory):
    return load_file(directory / "adapter_model.safetensors")


def assert_whole(run):
    """Open every file that bears its last name, without asking the manifest."""
    for path in run.checkpoints.glob("checkpoint-*"):
        assert weights(path)
        state = json.loads((path / "trainer_state.json").read_text())
        assert state["global_step"] == checkpoint_step(path)
        assert torch.load(path / "optimizer.pt", weights_only=True)["state"]
        assert torch.load(path / "scheduler.pt", weights_only=True)
        assert (path / "rng_state.pth").stat().st_size > 1000
        assert json.loads((path / "unlogged.json").read_text())["spent"]
        assert damage(path) is None
    if run.adapter.exists():
        assert weights(run.adapter)
        assert json.loads((run.adapter / "adapter_config.json").read_text())


def kill_often(killer, root, num_kills, seed):
    """Kill trainings `num_kills` times, each going on where the last was; see how they end."""
    rng = random.Random(seed)
    reference = RunDirectory(root / "reference")
    code, taken, whole_time = killer.train(reference.root)
    assert code == 0, Path(f"{reference.root}.log").read_text()
    last = taken[-1]
    assert taken == list(range(1, last + 1))
    kills, finished = 0, 0
    run = RunDirectory(root / "run0")
    while kills < num_kills or not finished:
        saved = run.newest_checkpoint()
        before = checkpoint_step(saved) if saved else 0
        moment = {}
        if kills < num_kills:
            aimed = rng.random() < 0.5
            moment = {"touch": rng.randint(1, 60)} if aimed else {}
            moment = moment or {"seconds": rng.uniform(0.01, whole_time)}
        code, taken, _ = killer.train(run.root, **moment)
        assert taken == list(range(before + 1, before + 1 + len(taken)))  # and not from the start
        assert_whole(run)
        if code == -signal.SIGKILL:
            kills += 1
            continue
        assert code == 0, Path(f"{run.root}.log").read_text()
        assert before + len(taken) == last
        assert_same_end(run, reference)
        finished += 1
        run = RunDirectory(root / f"run{finished}")
    return kills, finished


def assert_same_end(run, reference):
    assert curve(run) == curve(reference)
    mine, theirs = weights(run.adapter), weights(reference.adapter)
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    assert {path.name for path in run.root.iterdir()} == {
        path.name for path in reference.root.iterdir()
    }
    assert [path.name for path in run.root.rglob(".*")] == [".varifocal"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")
@pytest.mark.parametrize("num_kills", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_sigkill_at_any_moment_costs_the_step_in_hand(killer, tmp_path, num_kills):
    kills, finished = kill_often(killer, tmp_path, num_kills, seed=11)
    assert kills == num_kills
    assert finished >= 1


# Damage


def cut_short(checkpoint):
    file = checkpoint / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return r"adapter_model\.safetensors has \d+ bytes, and \d+ were written"


def flip_a_bit(checkpoint):
    file = checkpoint / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 16
    file.write_bytes(content)
    weights(checkpoint)  # safetensors does not see it
    return r"adapter_model\.safetensors holds other bytes than were written"


def cut_json(checkpoint):
    file = checkpoint / "trainer_state.json"
    file.write_text(file.read_text()[:40])
    return r"trainer_state\.json has 40 bytes, and \d+ were written"


def cut_optimizer(checkpoint):
    file = checkpoint / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-100])


def lose_a_file(checkpoint):
    (checkpoint / "scheduler.pt").unlink()
    return r"scheduler\.pt is missing"


def garbage(checkpoint):
    file = checkpoint / "optimizer.pt"
    file.write_bytes(os.urandom(file.stat().st_size))
    return r"optimizer\.pt holds other bytes than were written"


def cut_the_manifest(checkpoint):
    (checkpoint / "manifest.json").write_text('{"optimizer.pt": [12')
    return r"manifest\.json cannot be read"


DAMAGES = [cut_short, flip_a_bit, cut_json, lose_a_file, garbage, cut_the_manifest]


def test_a_damaged_checkpoint_is_passed_over_for_the_newest_whole_one(recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run_training(recipe(FOUR), run.root)
    end = weights(run.adapter)
    older, newest = (run.checkpoints / f"checkpoint-{step}" for step in (2, 4))
    for hurt in DAMAGES:
        copy = RunDirectory(tmp_path / hurt.__name__)
        shutil.copytree(run.root, copy.root)
        wrong = hurt(copy.checkpoints / newest.name)
        start = find_start(copy, resume=True)
        assert start.checkpoint == copy.checkpoints / older.name, hurt.__name__
        hurt(copy.checkpoints / older.name)
        with pytest.raises(RunError, match=rf"^every checkpoint .* is damaged \(.*{wrong}"):
            find_start(copy, resume=True)

    lose_a_file(newest)
    told = []
    result = run_training(recipe(FOUR), run.root, resume=True, progress=lambda *at: told.append(at))
    note = f"{newest} is damaged: scheduler.pt is missing; going on from step 2 instead"
    assert ("resume", 1, 1, note) in told
    assert result.passed_over == [note]
    # the first is where it goes on from
    assert [step for stage, step, *_ in told if stage == "train"] == [2, 3, 4]
    assert {path.name for path in run.checkpoints.iterdir()} == {
        "checkpoint-2",
        "checkpoint-4",
        "damaged-checkpoint-4",
    }
    assert all(torch.equal(end[name], tensor) for name, tensor in weights(run.adapter).items())


def test_a_checkpoint_of_an_older_version_is_resumed_with_a_note(recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run_training(recipe(FOUR), run.root)
    newest = run.checkpoints / "checkpoint-4"
    (newest / "manifest.json").unlink()
    for hurt in (cut_short, cut_json, lose_a_file, cut_optimizer):
        copy = RunDirectory(tmp_path / hurt.__name__)
        shutil.copytree(run.root, copy.root)
        hurt(copy.checkpoints / newest.name)
        start = find_start(copy, resume=True)
        assert start.checkpoint == copy.checkpoints / "checkpoint-2", hurt.__name__
    told = []
    result = run_training(recipe(FOUR), run.root, resume=True, progress=lambda *at: told.append(at))
    assert [at for at in told if at[0] == "train"] == [("train", 4, 4)]  # no step was taken
    assert len(result.passed_over) == 1
    assert result.passed_over[0].startswith(
        f"{newest} has no manifest.json, as of an older version"
    )


def test_a_damaged_adapter_is_not_used(recipe, tmp_path):
    run = RunDirectory(tmp_path / "run")
    run_training(recipe({**FOUR, "training.max_steps": 2}), run.root)
    wrong = flip_a_bit(run.adapter)
    with pytest.raises(ModelError, match=rf"adapter is damaged: {wrong}; .* --resume$"):
        open_run(run.root)
    run_training(
        recipe({**FOUR, "training.max_steps": 2}), run.root, resume=True
    )  # the fix it names
    open_run(run.root)
    (run.adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json' is damaged"):
        open_run(run.root)


def test_a_large_file_is_read_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr("varifocal.manifest.READ_WHOLE", 4 << 20)
    file = tmp_path / "weights"
    file.write_bytes(os.urandom((9 << 20) + 5))
    write_manifest(tmp_path)
    assert damage(tmp_path) is None
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)[0]
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last ^ 1]))
    assert damage(tmp_path) == "weights holds other bytes than were written"


def test_a_base_that_changed_within_its_size_and_time_is_not_trained_on(
    recipe, tmp_path, new_language
):
    language = tmp_path / "language"
    new_language(language)
    page = recipe({**FOUR, "training.max_steps": 2, "model.language_model": str(language)})
    run = RunDirectory(tmp_path / "run")
    run_training(page, run.root)
    file = language / "model.safetensors"
    stat = file.stat()
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    with safe_open(file, "pt"):
        pass
    with pytest.raises(ModelError, match=r"content hash .* give back the former files"):
        run_training(page, run.root, resume=True)
    with pytest.raises(ModelError, match="was trained on a base with content hash"):
        open_run(run.root)
