"""Held-out loss, score, best checkpoint and early stopping while a run trains.

The training itself must not notice: its losses, weights and random states are those of a run
without evaluations.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from varifocal.assemble import open_run
from varifocal.data.loading import load_source
from varifocal.data.rows.packing import Collator
from varifocal.errors import RecipeError, VarifocalError
from varifocal.models.loss import supervised_loss
from varifocal.recipe.training import TrainingSection
from varifocal.run import RunDirectory
from varifocal.training.callbacks import StopTraining
from varifocal.training.train import run_training
from varifocal.training.validation import Validation, best_of

QUICK = {
    "training.max_steps": 6,
    "training.per_device_train_batch_size": 2,
    "training.save_steps": 2,
    "training.save_total_limit": 1,
    "tuner.dropout": 0.3,
}
EVERY = {"training.eval_steps": 2, "training.eval_questions": 3}


@pytest.fixture
def held_out(book):
    return {"data.evaluate": [{"path": str(book), "format": "scienceqa", "split": "train"}]}


def losses(run):
    return [line["loss"] for line in run.read_metrics() if "loss" in line]


def evaluations(run):
    return [line for line in run.read_metrics() if "eval_loss" in line]


@pytest.fixture
def train(recipe, held_out, tmp_path):
    def train(name, **more):
        changes = {key.replace("__", "."): value for key, value in more.items()}
        page = recipe({**QUICK, **held_out, **changes})
        run_training(page, tmp_path / name)
        return RunDirectory(tmp_path / name)

    return train


@pytest.mark.parametrize("tuner", ["mma", pytest.param("mixlora", marks=pytest.mark.slow)])
def test_a_training_does_not_notice_that_it_is_evaluated(train, tuner):
    more = {"tuner__type": tuner} if tuner == "mma" else {"tuner": {"type": "mixlora"}}
    if tuner == "mixlora":
        more["tuner__dropout"] = 0.3
    without = train("without", **more)
    with_them = train("with", **more, **{k.replace(".", "__"): v for k, v in EVERY.items()})
    assert losses(with_them) == losses(without)
    weights, expected = (
        load_file(run.adapter / "adapter_model.safetensors") for run in (with_them, without)
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert [line["step"] for line in evaluations(with_them)] == [2, 4, 6]
    assert not evaluations(without)


def test_the_held_out_loss_is_a_mean_over_tokens_and_answers_are_shown(train):
    run = train("run", **{k.replace(".", "__"): v for k, v in EVERY.items()})
    last = evaluations(run)[-1]
    recipe, parts = open_run(run.root)
    collate = Collator(0, load_images=parts.load_images)
    total, count = 0.0, 0
    for example in load_source(recipe.data.evaluate[0]):
        batch = collate([parts.encoder.encode(example)])
        with torch.no_grad():
            total += supervised_loss(parts.model.eval(), batch, 1).item()
        count += int((batch["labels"][:, 1:] != -100).sum())
    assert last["eval_loss"] == pytest.approx(total / count, rel=1e-5)
    cost = json.loads(run.cost.read_text())
    assert cost["tokens_evaluated"] > 3 * sum(
        len(parts.encoder.encode(each)) for each in load_source(recipe.data.evaluate[0])
    )
    assert cost["seconds_evaluation"] > 0
    assert cost["flops_evaluation"] > 0

    check_samples(run)


def check_samples(run):
    samples = json.loads((run.validation_at(4) / "samples.json").read_text())
    assert len(samples) == 3
    for sample in samples:
        assert sample["question"]
        assert sample["answer"] in sample["choices"]
        assert sample["credit"] in (None, 0.0, 1.0)
        for image in sample["images"]:
            assert (run.validation / "images" / image).read_bytes()[:2] == b"\xff\xd8"
    right = sum(sample["answer"] == sample["references"][0] for sample in samples)
    scores = [line["eval_score"] for line in evaluations(run) if line["step"] == 4]
    assert scores == [pytest.approx(100 * right / 3)]


def worse_later(monkeypatch, values):
    """Let evaluations have these losses, one after another."""
    given = iter(values)
    monkeypatch.setattr(Validation, "_loss", lambda self, trainer: next(given))


def test_the_best_checkpoint_is_kept_named_and_loaded(train, monkeypatch):
    worse_later(monkeypatch, [1.0, 0.5, 2.0])
    run = train(
        "run", training__eval_steps=2, training__eval_questions=0,
        training__load_best_model_at_end=True,
    )  # fmt: skip
    assert run.steps() == [4, 6]  # save_total_limit is 1
    best = json.loads(run.best.read_text())
    assert best == {"step": 4, "metric": "loss", "value": 0.5, "patience": 1}
    name = "adapter_model.safetensors"
    saved, of_best, of_last = (
        load_file(each / name) for each in (run.adapter, run.checkpoint(4), run.checkpoint(6))
    )
    assert all(torch.equal(saved[key], of_best[key]) for key in of_best)
    assert not all(torch.equal(saved[key], of_last[key]) for key in of_last)


@pytest.mark.slow
def test_a_training_stops_early_and_stays_stopped(train, recipe, held_out, monkeypatch, tmp_path):
    worse_later(monkeypatch, [1.0, 2.0, 2.0, 0.1])
    more = {"training.eval_steps": 1, "training.eval_questions": 0}
    more["training.early_stopping_patience"] = 2
    run = train("run", **{k.replace(".", "__"): v for k, v in more.items()})
    assert [line["step"] for line in evaluations(run)] == [1, 2, 3]
    assert run.steps() == [1, 3]
    assert len(losses(run)) == 3
    again = run_training(recipe({**QUICK, **held_out, **more}), run.root, resume=True)
    assert again.steps == 3
    assert len(losses(run)) == 3


@pytest.mark.slow
def test_a_resumed_run_has_the_evaluations_of_an_unbroken_one(
    train, recipe, held_out, tmp_path, monkeypatch
):
    every = {k.replace(".", "__"): v for k, v in EVERY.items()}
    whole = train("whole", **every)

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(StopTraining, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        train("broken", **every)
    monkeypatch.undo()
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    broken = RunDirectory(tmp_path / "broken")
    assert broken.steps() == [2]
    run_training(recipe({**QUICK, **held_out, **EVERY}), broken.root, resume=True)
    kept = ("step", "loss", "eval_loss", "eval_score", "tokens")
    lines, expected = (
        [{key: line[key] for key in kept if key in line} for line in run.read_metrics()]
        for run in (broken, whole)
    )
    assert lines == expected
    assert json.loads(broken.best.read_text()) == json.loads(whole.best.read_text())
    spent, of_whole = (json.loads(run.cost.read_text()) for run in (broken, whole))
    assert spent["tokens_evaluated"] == of_whole["tokens_evaluated"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"eval_steps": 2, "fsdp": True}, "eval_steps: needs the weights whole"),
        ({"eval_steps": 2, "deepspeed": {}}, "eval_steps: needs the weights whole"),
        ({"load_best_model_at_end": True}, "load_best_model_at_end: does nothing without"),
        ({"early_stopping_patience": 2}, "early_stopping_patience: does nothing without"),
        ({"metric_for_best_model": "score"}, "metric_for_best_model: does nothing without"),
        ({"eval_questions": 4}, "eval_questions: does nothing without training.eval_steps"),
        ({"eval_steps": 2, "eval_questions": 0, "metric_for_best_model": "score"}, "no score"),
        ({"eval_steps": 2.5}, "give whole steps"),
    ],
)
def test_what_no_evaluation_could_do_is_refused(recipe, changes, text):
    with pytest.raises(RecipeError, match=text):
        recipe({f"training.{key}": value for key, value in changes.items()})


def test_without_anything_held_out_there_is_nothing_to_evaluate(recipe, tmp_path):
    with pytest.raises(VarifocalError, match=r"data\.evaluate, which names no source"):
        run_training(recipe({**QUICK, "training.eval_steps": 2}), tmp_path / "run")


def test_the_best_and_the_patience_by_hand():
    history = [
        {"step": step, "eval_loss": loss, "eval_score": score}
        for step, loss, score in [(1, 3.0, 10.0), (2, 2.0, 50.0), (3, 1.9, 40.0), (4, 2.5, 50.0)]
    ]
    history.insert(1, {"step": 2, "loss": 0.1})
    by_loss = best_of(history, TrainingSection())
    assert by_loss is not None
    assert (by_loss.step, by_loss.patience) == (3, 1)
    by_score = best_of(history, TrainingSection(eval_steps=1, metric_for_best_model="score"))
    assert by_score is not None
    assert (by_score.step, by_score.value, by_score.patience) == (2, 50.0, 2)
    far = TrainingSection(eval_steps=1, early_stopping_patience=9, early_stopping_threshold=0.5)
    assert best_of(history, far).patience == 2  # 1.9 is better than 2.0, but not by 0.5
    assert best_of([{"step": 1, "eval_loss": float("nan")}], far).step == 1
