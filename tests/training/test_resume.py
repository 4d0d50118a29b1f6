"""A run that was killed, or stopped, goes on as if nothing had happened.

The killed processes are real ones. They are killed by themselves, at a step drawn from a seed, so
that a busy machine cannot let them end first.
"""

import random
import re
import shutil
import signal

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import get_scheduler

from varifocal.data.rows.packing import PackedDataset
from varifocal.data.source import open_source
from varifocal.errors import ModelError, RunError
from varifocal.recipe import load_recipe
from varifocal.run import RunDirectory
from varifocal.training.examples import fingerprint_sources
from varifocal.training.resuming import take_rates
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer

COMMAND = "from varifocal.cli import main; main()"

# Counts training steps and, in the middle of one, sends this process a signal.
AT_STEP = """
import os
from varifocal.training.trainer import SupervisedTrainer
step = SupervisedTrainer.training_step
def training_step(self, *args, **kwargs):
    if self.state.global_step + 1 == {step}:
        os.kill(os.getpid(), {signal})
    return step(self, *args, **kwargs)
SupervisedTrainer.training_step = training_step
"""

# Two epochs of 6 rows. Neither number divides the other, so checkpoints fall between log lines.
PACE = {"training.logging_steps": 2, "training.save_steps": 3}


@pytest.fixture
def long_recipe(recipe_file, recipe):
    """Packing, dropout, images through an adapted tower, text, and an aligned connector."""
    page = yaml.safe_load(recipe_file.read_text())
    page["training"] |= {key.rpartition(".")[2]: value for key, value in PACE.items()}
    page["tuner"]["dropout"] = 0.3
    page["alignment"] = {"type": "words", "steps": 5}
    recipe_file.write_text(yaml.safe_dump(page))
    return recipe


@pytest.fixture
def varifocal(forks, tmp_path):
    """Run a command line in a process of its own, after a prelude.

    It has as many threads as the fixtures set here: another number adds up in another order, and
    curves agree no more digit for digit.
    """

    def varifocal(*arguments, prelude):
        script = tmp_path / "command.py"
        script.write_text(f"{prelude}\n{COMMAND}")
        return forks.run(["python", script, *arguments])

    return varifocal


def curve(run):
    """What a run logged, without the clock."""
    return [
        {key: value for key, value in record.items() if key != "tokens_per_second"}
        for record in run.read_metrics()
    ]


def assert_same_end(run, reference):
    assert curve(run) == curve(reference)
    mine, theirs = (
        load_file(each.adapter / "adapter_model.safetensors") for each in (run, reference)
    )
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.fixture
def steps_taken(monkeypatch):
    """The steps that this process trains, as they come."""
    taken = []
    step = SupervisedTrainer.training_step

    def training_step(self, *args, **kwargs):
        taken.append(self.state.global_step + 1)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SupervisedTrainer, "training_step", training_step)
    return taken


def test_a_run_that_is_killed_and_stopped_ends_as_one_that_was_not(
    long_recipe, recipe_file, tmp_path, steps_taken, varifocal
):
    reference = RunDirectory(tmp_path / "reference")
    result = run_training(long_recipe(), reference.root)
    steps = result.steps
    records = curve(reference)
    assert [record["step"] for record in records] == list(range(2, steps + 1, 2))
    assert len({record["loss"] for record in records}) == len(records)
    assert steps >= 10

    run = RunDirectory(tmp_path / "run")
    command = ("train", recipe_file, "--out", run.root)
    killed_at = random.Random(2).randint(4, steps // 2)  # in the first epoch, after a checkpoint
    prelude = AT_STEP.format(step=killed_at, signal=int(signal.SIGKILL))
    killed = varifocal(*command, prelude=prelude)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert run.newest_checkpoint().name == "checkpoint-3"
    assert not run.adapter.exists()
    with pytest.raises(RunError, match="holds a run already; add --resume to go on with it"):
        run_training(long_recipe(), run.root)
    # As a kill in the middle of saving leaves it.
    half = run.checkpoints / ".checkpoint-6.varifocal-tmp-0123abcd-1-0123abcd"
    (half / "checkpoint-6").mkdir(parents=True)
    (half / "checkpoint-6" / "adapter_model.safetensors").write_bytes(b"half")

    stopped_at = random.Random(3).randint(steps // 2 + 2, steps - 2)  # in the second epoch
    prelude = AT_STEP.format(step=stopped_at, signal=int(signal.SIGINT))
    stopped = varifocal(*command, "--resume", prelude=prelude)
    assert stopped.returncode == 130, stopped.stderr
    assert "Traceback" not in stopped.stderr
    sentence = re.search(r"^stopped after step .*$", stopped.stderr, re.MULTILINE).group()
    next_command = f"varifocal train {run.recipe} --out {run.root} --resume"
    assert sentence == (
        f"stopped after step {stopped_at} of {steps}; it is saved. Go on with: {next_command}"
    )
    assert run.newest_checkpoint().name == f"checkpoint-{stopped_at}"
    assert curve(run) == records[: stopped_at // 2]

    # As the command does it: from the run's own copy of the recipe.
    steps_taken.clear()
    finished = run_training(load_recipe(run.recipe), run.root, resume=True)
    assert steps_taken == list(range(stopped_at + 1, steps + 1))  # and did not start over
    assert_same_end(run, reference)
    assert finished.tokens == result.tokens
    assert finished.supervised_tokens == result.supervised_tokens
    assert list(run.checkpoints.glob(".*")) == []


def test_the_second_epoch_is_packed_anew_and_resuming_knows_it(long_recipe, tmp_path, monkeypatch):
    """The rows that are given out, by epoch: otherwise the test above could not tell."""
    given = []
    get = PackedDataset.__getitem__

    def note(self, index):
        given.append((self.epoch, index, tuple(self.rows[index])))
        return get(self, index)

    monkeypatch.setattr(PackedDataset, "__getitem__", note)
    run_training(long_recipe(), tmp_path / "run")
    by_epoch = [[row for e, _, row in given if e == epoch] for epoch in (0, 1)]
    assert sorted(map(sorted, by_epoch[0])) != sorted(map(sorted, by_epoch[1]))
    assert all(sorted(sum(rows, ())) == list(range(15)) for rows in by_epoch)
    assert any(len(row) > 1 for rows in by_epoch for row in rows)


def test_the_last_line_holds_the_loss_of_the_last_steps(recipe, tmp_path):
    told = []
    steps = {"training.max_steps": 5, "training.save_steps": 5}
    every = RunDirectory(tmp_path / "every")
    run_training(recipe({**steps, "training.logging_steps": 1}), every.root)
    losses = [line["loss"] for line in every.read_metrics()]
    some = RunDirectory(tmp_path / "some")
    page = recipe({**steps, "training.logging_steps": 3})
    result = run_training(page, some.root, progress=lambda *at: told.append(at))
    lines = {line["step"]: line["loss"] for line in some.read_metrics()}
    assert lines == {3: pytest.approx(sum(losses[:3]) / 3), 5: pytest.approx(sum(losses[3:]) / 2)}
    assert result.loss == lines[5]
    training = [at for at in told if at[0] == "train"]
    assert [at[1] for at in training] == [0, 1, 2, 3, 4, 5]
    assert [at[1] for at in training if any(at[3:])] == [3, 5]  # a log file has a line of these
    names = f"{page.model.language_model}, {page.model.vision_tower}"
    assert told[:2] == [("load", 0, 1, names), ("load", 1, 1)]
    assert f"loss {lines[5]:.3f}" in training[-1][3]
    assert run_training(page, some.root, resume=True).loss == lines[5]


def test_a_run_that_took_steps_is_not_saved_as_one_without(recipe, tmp_path):
    run_training(recipe({"training.max_steps": 1, "training.save_steps": 1}), tmp_path / "run")
    with pytest.raises(RunError, match="has taken steps, and training"):
        run_training(recipe({"training.max_steps": 0}), tmp_path / "run", resume=True)


def test_resuming_a_finished_run_changes_nothing(recipe, tmp_path):
    page = recipe({"training.max_steps": 3})
    run = RunDirectory(tmp_path / "run")
    first = run_training(page, run.root)
    before = curve(run), load_file(run.adapter / "adapter_model.safetensors")
    again = run_training(page, run.root, resume=True)
    after = curve(run), load_file(run.adapter / "adapter_model.safetensors")
    assert after[0] == before[0]
    assert all(torch.equal(after[1][name], tensor) for name, tensor in before[1].items())
    assert (again.steps, again.loss) == (first.steps, first.loss)
    assert again.tokens == first.tokens


def test_resuming_before_the_first_checkpoint_starts_from_the_beginning(recipe, tmp_path):
    page = recipe({"training.max_steps": 2})
    run = RunDirectory.create(tmp_path / "run")
    run.recipe.write_text(page.dump_yaml())
    run.append_metrics({"step": 1, "loss": 9.0})
    run_training(page, run.root, resume=True)
    run_training(page, tmp_path / "reference")
    assert_same_end(run, RunDirectory(tmp_path / "reference"))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ({"seed": 6}, "seed"),
        ({"tuner.bottleneck_dim": 4}, "tuner"),
        ({"model.connector.hidden_dim": 8}, "model.connector"),
        ({"data.mixture.total": 4}, "data.mixture"),
        ({"data.row_length": 640}, "data.row_length"),
        ({"data.train[0].prompt_format": "QCM-ALE"}, "data.train"),
    ],
)
def test_a_run_is_not_resumed_as_another_one(recipe, tmp_path, override, key):
    run = RunDirectory(tmp_path / "run")
    run_training(recipe({"training.max_steps": 1}), run.root)
    kept = run.recipe.read_text()
    with pytest.raises(RunError) as caught:
        run_training(recipe({"training.max_steps": 2, **override}), run.root, resume=True)
    assert str(caught.value) == (
        f"{run.root} was started with another {key}; resume it with the recipe it keeps "
        f"({run.recipe}), or choose another --out"
    )
    assert run.recipe.read_text() == kept


def test_a_run_is_not_resumed_on_another_base(recipe, tmp_path, new_language):
    new_language(tmp_path / "language")
    page = recipe({"training.max_steps": 1, "model.language_model": str(tmp_path / "language")})
    run = RunDirectory(tmp_path / "run")
    run_training(page, run.root)
    new_language(tmp_path / "language", seed=1)
    with pytest.raises(ModelError, match=r"was started on a base with content hash [0-9a-f]{12}"):
        run_training(page, run.root, resume=True)


def test_a_run_is_not_resumed_on_other_records(recipe, rewrite, tmp_path):
    page = recipe({"training.max_steps": 1})
    run_training(page, tmp_path / "run")
    rewrite(lambda problems, splits: problems["1"].update(question="Which colour is that?"))
    with pytest.raises(RunError, match=r"was started on other records than \S+/book holds"):
        run_training(page, tmp_path / "run", resume=True)


def test_data_that_were_moved_are_the_same_and_others_to_score_on_are_allowed(
    recipe, book, tmp_path
):
    run_training(recipe({"training.max_steps": 1}), tmp_path / "run")
    moved = str(book.rename(tmp_path / "moved"))
    score = {"data.evaluate": [{"path": moved, "format": "scienceqa", "max_examples": 2}]}
    page = recipe({"data.train[0].path": moved, "training.max_steps": 2, **score})
    assert run_training(page, tmp_path / "run", resume=True).steps == 2


def test_a_source_is_known_by_what_is_trained_on_not_by_what_is_scored_on(recipe, book):
    same_place = [{"path": str(book), "format": "scienceqa", "max_examples": 2}]
    alone, beside = recipe(), recipe({"data.evaluate": same_place})
    assert fingerprint_sources(beside.data) == fingerprint_sources(alone.data)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "inverse_sqrt"])
def test_a_schedule_goes_on_as_if_it_had_been_given_from_the_start(schedule):
    """The oracle is a schedule of the new recipe, stepped as often."""

    def made(name, rates, steps):
        groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": rate} for rate in rates]
        optimizer = torch.optim.AdamW(groups)
        made = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=9)
        for _ in range(steps):
            optimizer.step()
            made.step()
        return optimizer, made

    before = [each.state_dict() for each in made("polynomial", [1e-2, 5e-3], 4)]
    optimizer, resumed = made(schedule, [1e-4, 3e-4], 0)
    for each, state in zip((optimizer, resumed), before, strict=True):
        each.load_state_dict(state)
    take_rates(optimizer, resumed, [1e-4, 3e-4])
    for steps in range(4, 9):
        oracle, expected = made(schedule, [1e-4, 3e-4], steps)
        assert resumed.get_last_lr() == expected.get_last_lr()
        assert [group["lr"] for group in optimizer.param_groups] == [
            group["lr"] for group in oracle.param_groups
        ]
        optimizer.step()
        resumed.step()


def test_longer_training_is_resumed(recipe, tmp_path, steps_taken):
    run_training(recipe({"training.max_steps": 1}), tmp_path / "run")
    result = run_training(recipe({"training.max_steps": 3}), tmp_path / "run", resume=True)
    assert result.steps == 3
    assert steps_taken == [1, 2, 3]
    metrics = RunDirectory(tmp_path / "run").read_metrics()
    assert [record["step"] for record in metrics] == [1, 2, 3]


def test_a_holdout_is_scored_and_resumed_and_another_is_refused(recipe, run, tmp_path):
    pace = {"training.max_steps": 2, "training.save_steps": 1}
    page = recipe({**pace, "data.holdout": 0.4})
    trained = RunDirectory(tmp_path / "run")
    run_training(page, trained.root)
    trained_on, held_out = (
        {example.name for section in side for example in open_source(section)}
        for side in (page.data.train, page.data.evaluate)
    )
    assert len(trained_on) + len(held_out) == 15
    assert trained_on.isdisjoint(held_out)
    shutil.rmtree(trained.checkpoints / "checkpoint-2")
    shutil.rmtree(trained.adapter)
    with pytest.raises(RunError, match="data"):
        run_training(recipe({**pace, "data.holdout": 0.5}), trained.root, resume=True)
    assert run_training(page, trained.root, resume=True).steps == 2
    assert run("eval", trained.root)[0] == 0
    scored = next(trained.evaluations.glob("*.predictions.jsonl")).read_text().splitlines()
    assert len(scored) == len(held_out)
