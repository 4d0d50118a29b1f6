"""The counts of the LaVIN paper from shapes alone, and tuners attached as recipes say."""

from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from varifocal.errors import RecipeError
from varifocal.recipe import LoraSection, MMASection, NoTunerSection, load_recipe
from varifocal.training.tuner import attach_tuner, count_parameters, count_trained

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))

# facts.md 1.1, worked out by hand from the paper's shapes.
LAVIN = {
    "7b": {
        "language_model": 32 * (4096 * 8 + 8 + 2 * 4096 * 4 + 2 * 4096 + 4096 * 2 + 2),
        "vision_tower": 24 * (1024 * 8 + 8 + 2 * 1024 * 4 + 2 * 1024 + 1024 * 2 + 2),
        "connector": 1024 * 128 + 128 + 128 * 4096 + 4096,
        "modality_embedding": 2 * 4096,
    },
    "13b": {
        "language_model": 40 * (5120 * 8 + 8 + 2 * 5120 * 4 + 2 * 5120 + 5120 * 2 + 2),
        "vision_tower": 24 * (1024 * 8 + 8 + 2 * 1024 * 4 + 2 * 1024 + 1024 * 2 + 2),
        "connector": 1024 * 128 + 128 + 128 * 5120 + 5120,
        "modality_embedding": 2 * 5120,
    },
}


@pytest.fixture
def llama():
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
        )
    )


@pytest.mark.parametrize(("size", "total"), [("7b", 3_781_296), ("13b", 5_390_080)])
def test_lavin_trains_as_many_parameters_as_the_paper(size, total):
    planned = count_parameters(load_recipe(f"lavin-{size}-scienceqa", check_paths=False))
    assert planned["trained_parameters"] == total
    assert planned["trained_parameters_by_part"] == LAVIN[size]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_every_recipe_can_be_built(file):
    recipe = load_recipe(file, check_paths=False)
    planned = count_parameters(recipe)
    assert planned["trained_parameters"] > 0
    if recipe.tuner.type != "full":
        assert planned["trained_parameters"] < planned["frozen_parameters"] / 10


def test_mma_takes_every_setting_of_the_recipe(llama):
    section = MMASection(bottleneck_dim=4, router_temperature=3.0, scale=0.5, dropout=0.2)
    config = attach_tuner(llama, section, base_fingerprint="abc").peft_config["default"]
    taken = (config.bottleneck_dim, config.router_temperature, config.scale, config.dropout)
    assert taken == (4, 3.0, 0.5, 0.2)
    assert config.base_fingerprint == "abc"
    assert config.modules_to_save is None


def test_lora_takes_every_setting_of_the_recipe(llama):
    section = LoraSection(rank=2, lora_alpha=6.0, dropout=0.3, target_modules=("q_proj",))
    model = attach_tuner(llama, section)
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (2, 6.0, 0.3)
    assert count_trained(model) == {"language_model": 2 * 2 * (16 + 16)}


def test_no_tuner_trains_nothing_of_a_language_model(llama):
    assert count_trained(attach_tuner(llama, NoTunerSection())) == {}


@pytest.mark.parametrize(
    ("tuner", "parts"),
    [
        ("{type: lora}", {"language_model", "connector"}),
        ("{type: lora, adapt_vision_tower: true}", {"language_model", "vision_tower", "connector"}),
        ("{type: lora, train_connector: false}", {"language_model"}),
        (
            "{type: mma, adapt_vision_tower: false}",
            {"language_model", "modality_embedding", "connector"},
        ),
        ("{type: none}", {"connector"}),
    ],
)
def test_a_tuner_trains_the_parts_that_the_recipe_names(tuner, parts):
    recipe = load_recipe("lavin-7b-scienceqa", [f"tuner={tuner}"], check_paths=False)
    assert set(count_parameters(recipe)["trained_parameters_by_part"]) == parts


def test_frozen_parameters_are_those_of_the_base(llama):
    recipe = load_recipe("lavin-7b-scienceqa", ["tuner={type: none}"], check_paths=False)
    llama_7b, clip_l14 = 6_738_415_616, 303_179_776
    assert count_parameters(recipe)["frozen_parameters"] == llama_7b + clip_l14


def test_settings_that_peft_refuses_are_named_as_the_recipes(llama):
    with pytest.raises(RecipeError, match=r"^tuner: bottleneck_dim must be .* got 7"):
        attach_tuner(llama, MMASection(bottleneck_dim=7))
    with pytest.raises(RecipeError, match=r"^tuner: .*nowhere"):
        attach_tuner(llama, LoraSection(target_modules=("nowhere",)))
