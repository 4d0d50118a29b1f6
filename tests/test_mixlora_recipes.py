"""MixLoRA's recipes: the settings of its public scripts, and trained parameters by formula."""

import pytest

from varifocal.recipe import load_recipe
from varifocal.recipe.reading import SHIPPED
from varifocal.training.tuner import count_parameters

NAMES = ("mixlora-vision-flan-7b", "mixlora-vision-flan-llava-1.5-7b")
D, F, LAYERS = 4096, 11008, 32
INPUTS = [D] * 4 + [D, D, F]  # q, k, v, o, gate, up, down
OUTPUTS = [D] * 4 + [F, F, D]


def read(name, overrides=()):
    return load_recipe(name, overrides, check_paths=False)


def pools(factors):
    return LAYERS * factors * (sum(INPUTS) + sum(OUTPUTS))


def routers(factors, rank):
    """Those of A and of B read the input; the conditional one of B reads each factor of A."""
    return LAYERS * factors * (2 + rank) * sum(INPUTS)


def test_these_are_all():
    found = {file.stem for file in SHIPPED.glob("mixlora-*.yaml")}
    assert found == {*NAMES, "mixlora-stage1-7b"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("factors", "rank"), [(16, 4), (16, 2), (32, 8)])
def test_parameters_by_formula(name, factors, rank):
    recipe = read(name, {"tuner.num_factors": factors, "tuner.rank": rank})
    counts = count_parameters(recipe)["trained_parameters_by_part"]
    assert counts["language_model"] == pools(factors) + routers(factors, rank)
    assert counts.keys() == {"language_model", "connector"}


def test_the_counts_are_those_of_the_paper_s_arithmetic():
    assert round(pools(16) / 1e6, 1) == 40.0
    assert round(routers(16, 4) / 1e6, 1) == 109.3
    assert round((pools(16) + routers(16, 4)) / 1e6, 1) == 149.3


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_are_those_of_the_script(name):
    recipe = read(name)
    training, tuner = recipe.training, recipe.tuner
    assert (training.learning_rate, training.num_train_epochs) == (4e-5, 3)
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 128
    assert (tuner.num_factors, tuner.rank, tuner.lora_alpha) == (16, 4, 32)
    assert recipe.data.max_length == 1792


def test_stage_one_trains_the_connector_alone():
    assert count_parameters(read("mixlora-stage1-7b"))["trained_parameters_by_part"].keys() == {
        "connector"
    }
