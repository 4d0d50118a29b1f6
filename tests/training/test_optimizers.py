"""Each optimiser and schedule of the installed transformers trains here, or is refused."""

import inspect
import json
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from transformers import SchedulerType
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
from transformers.training_args import OptimizerNames, TrainingArguments

from varifocal.errors import RecipeError, RunError
from varifocal.recipe.optimizers import OPTIMIZERS, REFUSED, missing_package
from varifocal.recipe.schedules import ARGUMENTS, NOT_OFFERED, Schedule
from varifocal.recipe.training import DEFAULT_OPTIMIZER
from varifocal.training.train import run_training

LORA = {"type": "lora", "rank": 2, "dropout": 0.0}


def test_every_optimiser_of_the_installed_transformers_has_its_place():
    assert {each.value for each in OptimizerNames} == OPTIMIZERS.keys() | REFUSED.keys()
    assert not OPTIMIZERS.keys() & REFUSED.keys()
    assert TrainingArguments.default_optim == DEFAULT_OPTIMIZER


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_an_optimiser_trains_or_is_refused_when_the_recipe_is_read(optim, recipe, tmp_path):
    page = {"tuner": LORA, "training.optim": optim, "training.max_steps": 2}
    page |= {"training.warmup_steps": 0, "training.lr_scheduler_type": "constant"}
    if package := missing_package(optim):
        with pytest.raises(RecipeError, match=rf"training\.optim: {optim} needs {package}; run"):
            recipe(page)
        return
    if optim.startswith("paged_") and not torch.cuda.is_available():
        with pytest.raises(RecipeError, match=rf"training\.optim: {optim} moves its state out of"):
            run_training(recipe(page), tmp_path / "run")
        return
    run_training(recipe(page), tmp_path / "run")
    tensors = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    moved = [tensor.any() for name, tensor in tensors.items() if "lora_B" in name]
    assert moved
    assert all(moved)


@pytest.mark.parametrize("optim", REFUSED)
def test_an_optimiser_that_is_not_offered_is_refused_with_the_reason(optim, recipe):
    with pytest.raises(RecipeError) as refused:
        recipe({"training.optim": optim})
    assert str(refused.value) == f"training.optim: {optim} is not offered: {REFUSED[optim]}"


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ({"optim": "adamw_tor"}, "optim: 'adamw_tor' is no optimiser of transformers; did"),
        ({"optim": "sgd", "optim_args": "momentm=0.9"}, "optim_args: sgd does not read momentm"),
        ({"optim": "sgd", "optim_args": "weight_decay=1"}, "optim_args: sgd does not read weigh"),
        ({"optim": "sgd", "optim_args": "momentum"}, "optim_args: 'momentum' was given; write it"),
        ({"optim": "sgd", "optim_args": "momentum=a"}, "optim_args: momentum=a was given; it"),
        ({"optim": "sgd", "optim_args": "nesterov=ture"}, "optim_args: nesterov=ture was given"),
        ({"optim": "sgd", "optim_args": "nesterov=true"}, "optim_args: nesterov needs a momentum"),
        ({"optim_args": "momentum=0.9"}, "optim_args: adamw_torch_fused does not read momentum"),
        ({"optim": "sgd", "adam_beta1": 0.8}, "adam_beta1: 0.8 would do nothing: sgd does not"),
        ({"optim": "adafactor", "adam_epsilon": 1e-6}, "adam_epsilon: 1e-06 would do nothing"),
        ({"lr_scheduler_type": "greedy"}, "lr_scheduler_type: greedy is not offered: it follows"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type: 'cosin' is not allowed; one of"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_kwargs: cosine_with_min"),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_kwargs: warmup_stable_decay"),
        ({"lr_scheduler_kwargs": {"num_cycle": 1.0}}, "lr_scheduler_kwargs: the schedule cosine "
         "does not read num_cycle; did you mean 'num_cycles'?"),
        ({"lr_scheduler_kwargs": {"num_cycles": -1.0}}, "lr_scheduler_kwargs: num_cycles: -1.0"),
        ({"lr_scheduler_type": "constant"}, "warmup_steps: the schedule constant has none; set"),
        ({"lr_scheduler_type": "polynomial", "max_steps": 2}, "warmup_steps: polynomial has no"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1.0}},
         "lr_scheduler_kwargs: lr_end 1 should be below training.learning_rate 0.01"),
        ({"lr_scheduler_type": "warmup_stable_decay", "max_steps": 5,
          "lr_scheduler_kwargs": {"num_decay_steps": 4}}, "lr_scheduler_kwargs: 2 steps of warm-up "
         "and 4 of num_decay_steps are more than the run's 5"),
    ],
    ids=lambda each: " ".join(map(str, each.values())) if isinstance(each, dict) else "",
)  # fmt: skip
def test_a_wrong_value_is_refused_when_the_recipe_is_read(page, sentence, recipe):
    with pytest.raises(RecipeError) as refused:
        recipe({f"training.{key}": value for key, value in page.items()})
    assert str(refused.value).startswith(f"training.{sentence}")


def test_settings_reach_the_optimiser(recipe, trainer_of):
    page = {"training.optim": "sgd", "training.optim_args": "momentum=0.5,nesterov=true"}
    groups = trainer_of(recipe(page)).create_optimizer().param_groups
    assert {(group["momentum"], group["nesterov"]) for group in groups} == {(0.5, True)}
    groups = trainer_of(recipe({"training.adam_epsilon": 1e-5})).create_optimizer().param_groups
    assert {group["eps"] for group in groups} == {1e-5}


# Schedules


def test_every_schedule_of_the_installed_transformers_has_its_place():
    offered = set(get_args(Schedule))
    assert offered | NOT_OFFERED.keys() == {each.value for each in SchedulerType}
    assert offered == ARGUMENTS.keys()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_schedules_arguments_are_those_of_transformers(name):
    """All but those that the Trainer gives, and one that contradicts the run's own steps."""
    found = set(inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(name)]).parameters)
    given = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
    assert ARGUMENTS[name].keys() == found - given - {"num_stable_steps"}


SETTINGS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": 1e-3, "warmup_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 1, "min_lr_ratio": 0.1},
    "polynomial": {"lr_end": 1e-3, "power": 2.0},
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_schedule_trains(name, recipe, tmp_path):
    page = {"tuner": LORA, "training.max_steps": 3, "training.lr_scheduler_type": name}
    page["training.warmup_steps"] = 0 if name == "constant" else 1
    if name in SETTINGS:
        page["training.lr_scheduler_kwargs"] = SETTINGS[name]
    run_training(recipe(page), tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoints" / "checkpoint-3" / "scheduler.pt")
    least = {"linear": 0.0, "cosine": 0.0, "cosine_with_restarts": 0.0, "constant": 1e-2,
             # at its minimum in the last step, it would rise after it
             "cosine_warmup_with_min_lr": 5.5e-3,
             "constant_with_warmup": 1e-2, "inverse_sqrt": 1e-2 * 3**-0.5}  # fmt: skip
    assert state["_last_lr"][0] == pytest.approx(least.get(name, 1e-3), abs=1e-9)


def test_a_schedule_that_does_not_fit_the_runs_steps_is_refused(recipe, tmp_path):
    page = {"training.lr_scheduler_type": "warmup_stable_decay", "training.num_train_epochs": 1}
    page["training.lr_scheduler_kwargs"] = {"num_decay_steps": 500}
    with pytest.raises(RecipeError, match=r"500 of num_decay_steps are more than the run's \d"):
        run_training(recipe(page), tmp_path / "run")


# Before anything loads


@pytest.mark.parametrize(
    ("page", "sentence"),
    [
        ({"training.fp16": True}, r"training\.fp16: float16 is computed on a CUDA device"),
        ({"training.tf32": True}, r"training\.tf32: this device has no TF32"),
        ({"training.optim": "sgd", "training.optim_args": "momentum=-1"},
         r"training\.optim: Invalid momentum value: -1"),
    ],
)  # fmt: skip
def test_a_value_that_a_library_refuses_is_refused_before_anything_loads(
    page, sentence, recipe, tmp_path, monkeypatch
):
    from varifocal.training import train as training

    monkeypatch.setattr(training, "assemble", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(RecipeError, match=sentence):
        run_training(recipe(page), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "of an older version"])
def test_resuming_with_another_optimiser_names_both(recorded, recipe, tmp_path):
    page = {"tuner": LORA, "training.max_steps": 2, "training.optim": "adafactor"}
    run_training(recipe(page), tmp_path / "run")
    if not recorded:
        file = tmp_path / "run" / "checkpoints" / "checkpoint-2" / "unlogged.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "optimizer": None}))
        (file.parent / "manifest.json").unlink()
    more = {**page, "training.max_steps": 3, "training.optim": "sgd"}
    with pytest.raises(RunError, match=r"holds the state of adafactor, and training\.optim is sgd"):
        run_training(recipe(more), tmp_path / "run", resume=True)
    run_training(recipe({**more, "training.optim": "adafactor"}), tmp_path / "run", resume=True)


def test_adamw_goes_on_with_its_fused_state(recipe, tmp_path):
    page = {"tuner": LORA, "training.max_steps": 2}
    run_training(recipe(page), tmp_path / "run")
    more = {**page, "training.max_steps": 3, "training.optim": "adamw_torch"}
    assert run_training(recipe(more), tmp_path / "run", resume=True).steps == 3
