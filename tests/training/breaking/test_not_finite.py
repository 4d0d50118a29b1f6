"""A loss or a gradient that is no number: no weight learns from it, and the sentence says why."""

import math
import re

import pytest
import torch
from torch import nn

from varifocal.errors import RunError
from varifocal.run import RunDirectory
from varifocal.training import trainer as trainer_module
from varifocal.training.callbacks import is_finite, rows_in_hand
from varifocal.training.train import run_training

SAVING = {"training.max_steps": 4, "training.save_steps": 2, "training.save_total_limit": 3}


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_gradient_that_is_no_number_is_not_learned_from(recipe, tmp_path, poisoned, number):
    run = RunDirectory(tmp_path / "run")
    with poisoned(3, number) as before, pytest.raises(RunError) as caught:
        run_training(recipe(SAVING), run.root)
    text = str(caught.value)
    assert re.match(
        rf"step 3 of 4: the loss is [\d.]+ and the norm of its gradient {number}, on row 2 of epoch"
        r" 1 \(.*record '\d+'.*\); it was not learned from\. lower training\.learning_rate "
        r"\(it is 0\.01\); checkpoint-2 is kept, and --resume goes on from it$",
        text,
    ), text
    weights = dict(before.pop("model").named_parameters())
    assert before
    assert all(torch.equal(weights[name], tensor) for name, tensor in before.items())
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-2"]


def test_the_named_rows_are_those_of_the_step(recipe, tmp_path, poisoned, monkeypatch):
    """With two rows a batch and two batches a step, in the second epoch, unevenly."""
    rows = []
    measure = trainer_module.step_not_finite

    def look(trainer, *args):
        data = trainer.train_dataset
        rows.append((data.epoch, rows_in_hand(trainer), len(data)))
        return measure(trainer, *args)

    monkeypatch.setattr(trainer_module, "step_not_finite", look)
    pace = {
        "training.per_device_train_batch_size": 2,
        "training.gradient_accumulation_steps": 2,
        "training.num_train_epochs": 4,
    }
    with poisoned(4, math.nan), pytest.raises(RunError, match=r"row 4 of epoch 2 \("):
        run_training(recipe(pace), tmp_path / "run")
    epoch, in_hand, count = rows[0]
    assert (epoch, in_hand, count) == (1, (1, [4]), 5)


def test_a_learning_rate_beyond_all_bounds_is_named_and_lowered(recipe, tmp_path):
    wild = {**SAVING, "training.learning_rate": 1e30, "training.save_steps": 1}
    wild |= {"training.max_grad_norm": 0}
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(RunError) as caught:
        run_training(recipe(wild), run.root)
    text = str(caught.value)
    assert "lower training.learning_rate (it is 1e+30); or set training.max_grad_norm to 1" in text
    assert not run.adapter.exists()
    for record in run.read_metrics():
        assert math.isfinite(record["loss"])


def test_a_resumed_run_takes_the_learning_rate_it_is_given(recipe, tmp_path, poisoned):
    """The fix that the sentence names; transformers would go on with the checkpoint's own."""
    constant = {**SAVING, "training.logging_steps": 1, "training.lr_scheduler_type": "constant"}
    constant["training.warmup_steps"] = 0
    run = RunDirectory(tmp_path / "run")
    with poisoned(3, math.nan), pytest.raises(RunError, match="checkpoint-2 is kept"):
        run_training(recipe(constant), run.root)
    lower = {**constant, "training.learning_rate": 1e-4, "training.connector_learning_rate": 2e-5}
    run_training(recipe(lower), run.root, resume=True)
    rates = [record["learning_rate"] for record in run.read_metrics()]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-4, 1e-4])


def test_an_alignment_stops_at_a_loss_that_is_no_number(recipe, tmp_path):
    aligned = {
        **SAVING,
        "alignment.type": "words",
        "alignment.steps": 60,
        "alignment.learning_rate": 1e30,
    }
    with pytest.raises(RunError) as caught:
        run_training(recipe(aligned), tmp_path / "run")
    assert re.match(
        r"alignment step \d+ of 60: the loss is .* lower alignment\.learning_rate "
        r"\(it is 1e\+30\)",
        str(caught.value),
    )
    RunDirectory.create(tmp_path / "run")  # no run is left that a mended try stumbles over


def test_an_overflow_under_fp16_is_the_scalers_business():
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    weight = nn.Parameter(torch.ones(1))
    scaler.scale((weight * 1.0).sum()).backward()
    one, infinite = torch.tensor(1.0), torch.tensor(math.inf)
    assert is_finite(one, infinite, scaler)
    assert not is_finite(one, infinite)
    assert not is_finite(torch.tensor(math.nan), one, scaler)
    assert not is_finite(torch.tensor(math.nan), one)
    spent = torch.amp.GradScaler("cpu", init_scale=1e-5)
    spent.scale(weight.sum())
    assert not is_finite(one, infinite, spent)
    assert is_finite(one, infinite.new_tensor(3.0), torch.amp.GradScaler("cpu", enabled=False))
