"""A run that was stopped is opened, scored, compared and reported as of its newest checkpoint."""

import json
import logging
import signal

import pytest
import torch
from safetensors.torch import load_file

from varifocal.assemble import open_run, weights_fingerprint
from varifocal.cli.commands import app
from varifocal.errors import ModelError, RunError, Stopped
from varifocal.evaluation.compare import compare_runs
from varifocal.reports.card import make_card
from varifocal.reports.runs_table import tabulate_runs as lay_side_by_side
from varifocal.run import RunDirectory
from varifocal.trained_weights import find_trained, is_finished
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer

SIX_STEPS = {"training.max_steps": 6, "training.save_steps": 1, "training.save_total_limit": None}


@pytest.fixture
def stopped(recipe, book, tmp_path, monkeypatch):
    """Train six steps, and stop by a signal within the third: `stopped({...})`."""
    step = SupervisedTrainer.training_step

    def stop_in_third(self, *args, **kwargs):
        if self.state.global_step == 2:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    def make(changes=(), name="run"):
        source = {"path": str(book), "format": "scienceqa", "split": "train"}
        page = recipe({**SIX_STEPS, "data.evaluate": [source], **dict(changes)})
        with monkeypatch.context() as broken:
            broken.setattr(SupervisedTrainer, "training_step", stop_in_third)
            with pytest.raises(Stopped, match="stopped after step 3 of 6; it is saved"):
                run_training(page, tmp_path / name)
        return page, RunDirectory(tmp_path / name)

    return make


def tensors(parts):
    return {name: each.detach().clone() for name, each in parts.model.named_parameters()}


def test_it_is_opened_as_of_the_step_after_which_it_stopped(stopped, tmp_path, caplog):
    page, run = stopped()
    assert not run.adapter.exists()
    with caplog.at_level(logging.WARNING, "varifocal"):
        _, parts = open_run(run.root)
    assert f"{run.root} has not reached its end: this is the run as of step 3" in caplog.text
    assert f"varifocal train {run.recipe} --out {run.root} --resume" in caplog.text
    run_training(page, tmp_path / "whole")
    same, end = (tensors(open_run(tmp_path / "whole", checkpoint=n)[1]) for n in (3, 6))
    found = tensors(parts)
    assert found.keys() == same.keys()
    assert all(torch.equal(each, same[name]) for name, each in found.items())
    assert any(not torch.equal(each, end[name]) for name, each in found.items())


def test_a_stopped_full_tuning_is_opened_with_its_trained_tensors(stopped):
    _, run = stopped({"tuner": {"type": "full"}, "training.learning_rate": 1e-3})
    assert not run.model.exists()
    found = tensors(open_run(run.root)[1])
    trained = load_file(run.newest_checkpoint() / "model.safetensors")
    assert trained
    assert all(torch.equal(found[name], each) for name, each in trained.items())


def test_a_full_tuning_of_another_base_is_refused(stopped, tmp_path):
    _, run = stopped({"tuner": {"type": "full"}})
    page = run.recipe.read_text()
    digest = next(line for line in page.splitlines() if "base_fingerprint" in line)
    run.recipe.write_text(page.replace(digest, "  base_fingerprint: " + "f" * 64))
    with pytest.raises(ModelError, match="was trained on a base with content hash ffffffffffff"):
        open_run(run.root)


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(stopped, caplog):
    _, run = stopped()
    (run.newest_checkpoint() / "adapter_model.safetensors").write_bytes(b"short")
    open_run(run.root)
    assert "as of step 2 (checkpoint-2); checkpoint-3 is damaged" in caplog.text


def test_a_run_without_a_checkpoint_says_what_to_do(stopped):
    _, run = stopped()
    for step in run.steps():
        (run.checkpoint(step)).rename(run.root / f"away-{step}")
    with pytest.raises(RunError, match="has no adapter yet; finish it with"):
        open_run(run.root)


def test_a_finished_run_that_was_extended_and_stopped_is_its_newest_checkpoint(
    recipe, tmp_path, monkeypatch
):
    run_training(recipe({**SIX_STEPS, "training.max_steps": 2}), tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    assert is_finished(run)
    assert find_trained(run).place == run.adapter
    step = SupervisedTrainer.training_step

    def stop(self, *args, **kwargs):
        signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(SupervisedTrainer, "training_step", stop)
    with pytest.raises(Stopped):
        run_training(recipe(SIX_STEPS), run.root, resume=True)
    assert not is_finished(run)
    assert find_trained(run).step == 3
    assert lay_side_by_side([run.root]).runs[0].state == "unfinished, saved at step 3"


def test_other_weights_have_another_fingerprint(stopped):
    page, run = stopped()
    prints = []
    for _ in range(2):
        _, parts = open_run(run.root)
        prints.append(weights_fingerprint(run.root, parts, None))
        run_training(page, run.root, resume=True)
    assert prints[0] is not None
    assert prints[0] != prints[1]


def test_its_scores_stand_by_the_step_and_are_not_those_of_the_end(stopped, tmp_path, capsys):
    page, run = stopped()
    app(["eval", str(run.root)], standalone_mode=False)
    scores = run.evaluations_at(3) / "book-train.json"
    assert json.loads(scores.read_text())["measures"][-1]["count"] == 15
    assert not list(run.evaluations.glob("*.json"))
    app(["benchmark", str(run.root), "sciencebook", "--data", str(tmp_path / "book"),
         "--split", "train", "--limit", "3"], standalone_mode=False)  # fmt: skip
    assert (run.evaluations_at(3) / "sciencebook-train-first3.json").is_file()
    capsys.readouterr()
    found = lay_side_by_side([run.root]).runs[0]
    assert found.state == "unfinished, saved at step 3, scored at step 3"
    assert "book-train" in found.scores
    assert "book-train" in make_card(run.root).markdown()
    run_training(page, run.root, resume=True)
    assert lay_side_by_side([run.root]).runs[0].scores == {}
    app(["eval", str(run.root)], standalone_mode=False)
    assert (run.evaluations / "book-train.json").is_file()


def test_it_is_compared_with_another(stopped, tmp_path, capsys):
    page, run = stopped()
    run_training(page, tmp_path / "whole")
    for root in (run.root, tmp_path / "whole"):
        app(["eval", str(root)], standalone_mode=False)
    assert compare_runs(run.root, tmp_path / "whole").suites[0].rows[0].count == 15
