"""Full tuning: what moves and what does not, held in float32, saved whole and opened again."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

import varifocal  # noqa: F401  # registers the graft
from varifocal.assemble import assemble, open_run
from varifocal.errors import RecipeError
from varifocal.models.saved import load_connector
from varifocal.recipe import FullSection, NoTunerSection
from varifocal.run import RunDirectory
from varifocal.training.full_tuning import save_full_model
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer
from varifocal.training.tuner import attach_tuner, part_of

KINDS = ("plain", "graft", "llava")


@pytest.fixture
def recipe_of(recipe, llava):
    """A recipe that tunes everything: `recipe_of("graft", {...})`."""
    changes = {
        "plain": {"model.vision_tower": None, "model.connector": None},
        "graft": {},
        "llava": {
            "model.language_model": str(llava),
            "model.vision_tower": None,
            "model.connector": None,
            "data.max_length": 200,
        },
    }

    def make(kind, further=()):
        page = {"tuner": {"type": "full"}, "training.max_steps": 4, "training.save_steps": 2}
        page |= {"training.learning_rate": 1e-3} | changes[kind] | dict(further)
        if kind == "plain":
            page["data.train"] = [letters(recipe().data.train[0].path)]
        return recipe(page)

    return make


def letters(book):
    """The book's questions without an image."""
    return {"path": book, "format": "scienceqa", "split": "train", "skills": ["letters"]}


def parameters(parts):
    return {name: each.detach().clone() for name, each in parts.base.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_moves_all_of_the_language_model_and_opens_as_it_was_trained(
    recipe_of, tmp_path, kind
):
    page = recipe_of(kind)
    before = parameters(assemble(page))
    result = run_training(page, tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    assert not run.adapter.exists()
    _, opened = open_run(run.root)
    after = parameters(opened)
    assert after.keys() == before.keys()
    moved = {part_of(name) for name in after if not torch.equal(after[name], before[name])}
    still = {part_of(name) for name in after if torch.equal(after[name], before[name])}
    assert moved == set(result.trained_parameters)
    assert moved == ({"language_model"} if kind == "plain" else {"language_model", "connector"})
    assert still <= {"vision_tower"}
    counted = sum(e.numel() for n, e in before.items() if part_of(n) == "language_model")
    assert result.trained_parameters["language_model"] == counted
    # The last checkpoint holds what the opened model has: nothing was lost on the way.
    trained = load_file(run.newest_checkpoint() / "model.safetensors")
    assert {name: after[name].tolist() for name in trained} == {
        name: each.tolist() for name, each in trained.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_alone_opens_what_was_saved(recipe_of, tmp_path, kind):
    run_training(recipe_of(kind, {"training.max_steps": 1}), tmp_path / "run")
    _, opened = open_run(tmp_path / "run")
    auto = AutoModelForCausalLM if kind == "plain" else AutoModelForImageTextToText
    alone = auto.from_pretrained(tmp_path / "run" / "model").eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(alone(input_ids=ids).logits, opened.base(input_ids=ids).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_as_an_unbroken_one(recipe_of, tmp_path, monkeypatch, kind):
    page = recipe_of(kind)
    run_training(page, tmp_path / "whole")
    step = SupervisedTrainer.training_step

    def stop_in_fourth(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as broken:
        broken.setattr(SupervisedTrainer, "training_step", stop_in_fourth)
        with pytest.raises(KeyboardInterrupt):
            run_training(page, tmp_path / "broken")
    run = RunDirectory(tmp_path / "broken")
    assert run.newest_checkpoint().name == "checkpoint-2"
    assert not run.model.exists()
    run_training(page, run.root, resume=True)
    unbroken, resumed = (parameters(open_run(tmp_path / name)[1]) for name in ("whole", "broken"))
    assert all(torch.equal(each, resumed[name]) for name, each in unbroken.items())
    losses = [
        [record["loss"] for record in RunDirectory(tmp_path / name).read_metrics()]
        for name in ("whole", "broken")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("kind", "held"), [("graft", {"language_model", "connector"}), ("llava", {"language_model"})]
)
def test_a_checkpoint_holds_what_no_base_holds_and_no_more(recipe_of, tmp_path, kind, held):
    """A graft's connector is in no file of the base, a LLaVA's frozen projector is."""
    page = recipe_of(kind, {"tuner.train_connector": False, "training.max_steps": 2})
    run_training(page, tmp_path / "run")
    with safe_open(
        RunDirectory(tmp_path / "run").newest_checkpoint() / "model.safetensors", "pt"
    ) as file:
        assert {part_of(name) for name in file.keys()} == held  # noqa: SIM118


@pytest.mark.parametrize(("held", "moves"), [("float32", True), ("bfloat16", False)])
def test_a_tiny_learning_rate_moves_weights_that_are_held_in_float32(
    recipe_of, tmp_path, held, moves
):
    """AdamW steps of 1e-6 are below half of bfloat16's spacing at the norms' 1.0 (2^-9)."""
    page = recipe_of(
        "graft",
        {
            "tuner.dtype": held,
            "model.dtype": "bfloat16",
            "training.learning_rate": 1e-6,
            "training.bf16": True,
        },
    )
    run_training(page, tmp_path / "run")
    trained = load_file(RunDirectory(tmp_path / "run").newest_checkpoint() / "model.safetensors")
    norms = {name: each for name, each in trained.items() if "layernorm" in name}
    assert norms
    assert all(bool((each != 1).any()) == moves for each in norms.values())


def test_the_saved_model_has_the_recipes_format(recipe_of, tmp_path):
    run_training(recipe_of("llava", {"model.dtype": "bfloat16"}), tmp_path / "run")
    _, opened = open_run(tmp_path / "run")
    assert {each.dtype for each in opened.base.parameters()} == {torch.bfloat16}
    with safe_open(tmp_path / "run" / "model" / "model.safetensors", "pt") as file:
        dtypes = {
            file.get_slice(name).get_dtype()
            for name in file.keys()  # noqa: SIM118
            if "language_model" in name
        }
    assert dtypes == {"BF16"}


def test_gathered_weights_are_saved_as_the_models_own(recipe_of, tmp_path):
    """Where weights are spread over processes, the model itself holds none to save."""
    parts = assemble(recipe_of("graft", {"model.dtype": "bfloat16"}))
    model = attach_tuner(parts.base, FullSection())
    state = {name: each.clone() for name, each in model.state_dict().items()}
    written = []
    for name, gathered in (("own", None), ("gathered", state)):
        save_full_model(model, parts.processor, tmp_path / name, torch.bfloat16, gathered)
        written.append(load_file(tmp_path / name / "model.safetensors"))
        for parameter in model.parameters():
            parameter.data.zero_()
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(each, written[1][name]) for name, each in written[0].items())


def test_what_is_trained_is_held_in_float32_and_the_tower_as_it_came(recipe_of):
    page = recipe_of("llava", {"model.dtype": "bfloat16"})
    model = attach_tuner(assemble(page).base, page.tuner)
    held = {(part_of(n), e.dtype, e.requires_grad) for n, e in model.named_parameters()}
    assert held == {
        ("language_model", torch.float32, True),
        ("connector", torch.float32, True),
        ("vision_tower", torch.bfloat16, False),
    }


def test_a_trained_projector_is_held_in_float32_beside_a_frozen_model(recipe_of, recipe, tmp_path):
    images = [letters(recipe().data.train[0].path) | {"skills": ["colours"]}]
    changes = {"model.dtype": "bfloat16", "tuner": {"type": "none"}, "data.train": images}
    page = recipe_of("llava", changes)
    model = attach_tuner(assemble(page).base, NoTunerSection())
    trained = [each for each in model.parameters() if each.requires_grad]
    assert {each.dtype for each in trained} == {torch.float32}
    result = run_training(page, tmp_path / "run")
    assert set(result.trained_parameters) == {"connector"}
    open_run(tmp_path / "run")


def test_a_quantised_model_is_not_tuned_in_full(recipe_of):
    base = assemble(recipe_of("plain")).base
    base.is_quantized = True
    with pytest.raises(RecipeError, match="holds them in 4 or 8 bits; leave quantization out"):
        attach_tuner(base, FullSection())


def test_a_connector_starts_from_a_run_of_full_tuning(recipe_of, tmp_path):
    run_training(recipe_of("graft"), tmp_path / "run")
    fresh = assemble(recipe_of("graft")).base
    load_connector(fresh, tmp_path / "run")
    trained = open_run(tmp_path / "run")[1].base.connector.state_dict()
    assert all(torch.equal(each, trained[n]) for n, each in fresh.connector.state_dict().items())


def test_a_frozen_connector_may_come_from_another_run(recipe_of, tmp_path):
    """It is saved with the model, so nothing is lost, unlike next to an adapter."""
    run_training(recipe_of("graft"), tmp_path / "first")
    weights = {"model.connector.weights": str(tmp_path / "first")}
    run_training(
        recipe_of("graft", weights | {"tuner.train_connector": False}), tmp_path / "second"
    )
    first, second = (open_run(tmp_path / name)[1].base for name in ("first", "second"))
    theirs = first.connector.state_dict()
    assert all(torch.equal(each, theirs[n]) for n, each in second.connector.state_dict().items())


def test_the_connector_can_learn_at_another_rate(recipe_of, tmp_path, monkeypatch):
    rates = {}
    make = SupervisedTrainer.create_optimizer

    def create_optimizer(self, model=None):
        optimizer = make(self, model)
        names = {id(each): name for name, each in self.model.named_parameters()}
        for group in optimizer.param_groups:
            for each in group["params"]:
                rates.setdefault(part_of(names[id(each)]), set()).add(group["lr"])
        return optimizer

    monkeypatch.setattr(SupervisedTrainer, "create_optimizer", create_optimizer)
    rate = {"training.connector_learning_rate": 0.5, "training.warmup_steps": 0}
    run_training(recipe_of("llava", rate), tmp_path / "run")
    assert rates == {"language_model": {1e-3}, "connector": {0.5}}
