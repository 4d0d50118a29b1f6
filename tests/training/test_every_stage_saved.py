"""Whatever a stage of a training changes is in its checkpoints, for every tuner.

Unbroken, stopped and resumed trainings are compared in memory, by every tensor of the model: a
tensor that a stage changes and no file holds differs after the resumption.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from varifocal.assemble import open_run
from varifocal.errors import RecipeError, RunError
from varifocal.manifest import MANIFEST
from varifocal.run import RunDirectory
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer

FOUR_STEPS = {"training.max_steps": 4, "training.save_steps": 2, "training.learning_rate": 1e-3}
ALIGNED = {
    "alignment.type": "words",
    "alignment.steps": 3,
    "alignment.batch_size": 6,
}
TUNERS = {
    "mma": {"type": "mma", "dropout": 0.2},
    "lora": {"type": "lora", "rank": 2, "adapt_vision_tower": True},
    "mixlora": {"type": "mixlora", "num_factors": 4, "rank": 2},
    "mixlora-random": {"type": "mixlora", "num_factors": 4, "rank": 2, "selection": "random"},
    "none": {"type": "none"},
    "full": {"type": "full"},
}
QUICK = (("mma", True), ("full", False))
EVERY = [
    pytest.param(name, connector, id=f"{name}-{connector}", marks=marks)
    for name in TUNERS
    for connector in (True, False)
    for marks in [() if (name, connector) in QUICK else pytest.mark.slow]
    if (name, connector) != ("none", False)  # nothing is trained
]


def tensors(model):
    """Every parameter and buffer, but PEFT's untouched copies of what is trained whole."""
    state = model.state_dict()
    return {name: state[name].clone() for name in state if ".original_module." not in name}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Train into "run", and return the model's tensors before the third step and at the end."""
    step, own = SupervisedTrainer.training_step, SupervisedTrainer.train

    def run(page, **options):
        seen = {}

        def training_step(self, *args, **kwargs):
            seen.setdefault(self.state.global_step, tensors(self.model))
            return step(self, *args, **kwargs)

        def to_the_end(self, *args, **kwargs):
            out = own(self, *args, **kwargs)
            seen[self.state.global_step] = tensors(self.model)
            return out

        with monkeypatch.context() as watched:
            watched.setattr(SupervisedTrainer, "training_step", training_step)
            watched.setattr(SupervisedTrainer, "train", to_the_end)
            run_training(page, tmp_path / "run", **options)
        return seen[2], seen[4]

    return run


def as_stopped_after_two(root):
    """Take from a finished run what it wrote after its second step."""
    run = RunDirectory(root)
    newest = run.newest_checkpoint()
    assert newest is not None
    for folder in (newest, run.adapter, run.model):
        shutil.rmtree(folder, ignore_errors=True)
    return run


def page_of(recipe, name, connector, further=()):
    tuner = {**TUNERS[name], "train_connector": connector}
    return recipe({**FOUR_STEPS, "tuner": tuner, **dict(further)})


@pytest.mark.parametrize(("name", "connector"), EVERY)
def test_a_stopped_run_is_opened_and_resumed_as_it_was(recipe, trained, tmp_path, name, connector):
    is_saved = connector or name == "full"  # else an alignment is refused
    page = page_of(recipe, name, connector, ALIGNED if is_saved else ())
    after_two, unbroken = trained(page)
    assert_equal(tensors(open_run(tmp_path / "run")[1].model), unbroken)
    as_stopped_after_two(tmp_path / "run")
    assert_equal(tensors(open_run(tmp_path / "run")[1].model), after_two)
    assert_equal(trained(page, resume=True)[1], unbroken)


@pytest.mark.parametrize("name", [name for name in TUNERS if name != "full"])
@pytest.mark.parametrize("key", ["alignment.type", "model.connector.weights"])
def test_an_adapter_that_would_not_hold_the_connector_is_refused(recipe, tmp_path, name, key):
    value = "words" if key == "alignment.type" else str(tmp_path)
    page = page_of(recipe, name, False, {key: value})
    with pytest.raises(RecipeError, match=r"would not save it; set tuner\.train_connector to true"):
        run_training(page, tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "connector"), [("full", False), pytest.param("mma", True, marks=pytest.mark.slow)]
)
def test_a_connector_of_another_run_is_read_once(recipe, trained, tmp_path, name, connector):
    """That run may be trained further, or deleted, while this one is stopped."""
    run_training(page_of(recipe, "none", True, {"training.max_steps": 1}), tmp_path / "first")
    page = page_of(recipe, name, connector, {"model.connector.weights": str(tmp_path / "first")})
    after_two, unbroken = trained(page)
    as_stopped_after_two(tmp_path / "run")
    shutil.rmtree(tmp_path / "first")
    assert_equal(tensors(open_run(tmp_path / "run")[1].model), after_two)
    assert_equal(trained(page, resume=True)[1], unbroken)


def leave_connector_out(checkpoint):
    """Write a checkpoint as an older version did."""
    (checkpoint / MANIFEST).unlink()
    file = checkpoint / "model.safetensors"
    held = load_file(file)
    without = {name: each for name, each in held.items() if not name.startswith("connector.")}
    assert 0 < len(without) < len(held)
    save_file(without, file)


def test_a_fresh_connector_that_an_older_checkpoint_lacks_is_drawn_again(recipe, trained, tmp_path):
    page = page_of(recipe, "full", False)
    after_two, unbroken = trained(page)
    leave_connector_out(as_stopped_after_two(tmp_path / "run").checkpoint(2))
    assert_equal(tensors(open_run(tmp_path / "run")[1].model), after_two)
    assert_equal(trained(page, resume=True)[1], unbroken)


def test_an_aligned_connector_that_an_older_checkpoint_lacks_is_not_made_up(recipe, tmp_path):
    page = page_of(recipe, "full", False, {**ALIGNED, "training.max_steps": 2})
    run_training(page, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    shutil.rmtree(run.model)
    leave_connector_out(run.checkpoint(2))
    for again in (lambda: open_run(run.root), lambda: run_training(page, run.root, resume=True)):
        with pytest.raises(RunError, match=r"did not save an aligned connector that tuner\.train_"):
            again()


def test_a_checkpoint_that_lacks_a_trained_tensor_is_not_resumed(recipe, tmp_path):
    page = page_of(recipe, "full", False, {"training.max_steps": 3})
    run_training(page, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    file = as_stopped_after_two(run.root).checkpoint(2) / "model.safetensors"
    held = load_file(file)
    held.popitem()
    (file.parent / MANIFEST).unlink()
    save_file(held, file)
    with pytest.raises(RunError, match="holds other tensors than are trained"):
        run_training(page, run.root, resume=True)
