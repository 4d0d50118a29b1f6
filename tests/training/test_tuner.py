"""MixLoRA attached as a recipe says, on models with and without eyes."""

import pytest
from peft import get_peft_model

from varifocal.assemble import assemble
from varifocal.errors import RecipeError
from varifocal.recipe import LoraExpertsSection, LoraSection, MixLoraSection, MMASection
from varifocal.training.tuner import attach_tuner, count_trained
from varifocal.tuners import MixLoraConfig, MixLoraLayer, MMAConfig, text_is_base

SETTINGS = {
    "text_route": "base",
    "num_factors": 4,
    "rank": 2,
    "conditional": False,
    "selection": "straight_through",
    "routing_scope": "sequence",
    "lora_alpha": 3.0,
    "balance": 0.1,
    "dropout": 0.2,
}


@pytest.fixture
def whole(recipe, llava):
    """A tiny LLaVA of transformers, not tuned yet."""
    changes = {"model.vision_tower": None, "model.connector": None, "data.max_length": 200}
    return assemble(recipe({"model.language_model": str(llava), **changes})).base


def adapted(model):
    return [name for name, part in model.named_modules() if isinstance(part, MixLoraLayer)]


def test_mixlora_takes_every_setting_of_the_recipe(whole):
    section = MixLoraSection(**SETTINGS, target_modules=("q_proj", "up_proj"))
    assert set(MixLoraSection.model_fields) == {
        *SETTINGS,
        "type",
        "target_modules",
        "adapt_vision_tower",
        "train_connector",
        "weights",
    }
    config = attach_tuner(whole, section, base_fingerprint="abc").peft_config["default"]
    assert {name: getattr(config, name) for name in SETTINGS} == SETTINGS
    assert config.base_fingerprint == "abc"


def test_experts_take_every_setting_of_the_recipe(whole):
    settings = {
        "text_route": "base",
        "num_experts": 3,
        "rank": 2,
        "router": "instance",
        "top_k": 2,
        "lora_alpha": 3.0,
        "balance": 0.1,
        "dropout": 0.2,
    }
    shared = {"type", "target_modules", "adapt_vision_tower", "train_connector", "weights"}
    assert set(LoraExpertsSection.model_fields) == settings.keys() | shared
    section = LoraExpertsSection(**settings, target_modules=("q_proj", "up_proj"))
    model = attach_tuner(whole, section, base_fingerprint="abc")
    config = model.peft_config["default"]
    assert {name: getattr(config, name) for name in settings} == settings
    assert config.base_fingerprint == "abc"
    sizes = [part.base_layer for part in model.modules() if isinstance(part, MixLoraLayer)]
    trained = sum(3 * 2 * (x.in_features + x.out_features) + 3 * x.in_features for x in sizes)
    assert count_trained(model)["language_model"] == trained


@pytest.mark.parametrize("section", [MMASection, MixLoraSection, LoraExpertsSection, LoraSection])
def test_every_adapter_takes_the_text_route(section, whole):
    name = {
        MMASection: "MMA",
        MixLoraSection: "MIXLORA",
        LoraExpertsSection: "LORA_EXPERTS",
        LoraSection: "IMAGE_LORA",
    }[section]
    model = attach_tuner(whole, section(text_route="base"))
    assert text_is_base(model)
    assert model.peft_config["default"].peft_type == name


@pytest.mark.parametrize("tower", [False, True])
def test_mixlora_leaves_the_tower_alone_unless_asked(whole, tower):
    section = MixLoraSection(num_factors=4, rank=2, adapt_vision_tower=tower)
    model = attach_tuner(whole, section)
    names = adapted(model)
    assert len([name for name in names if "language_model" in name]) == 2 * 7
    assert any("vision_tower" in name for name in names) == tower
    assert count_trained(model)["connector"] > 0
    assert ("vision_tower" in count_trained(model)) == tower


def test_settings_that_mixlora_refuses_are_named_as_the_recipes(whole):
    with pytest.raises(RecipeError, match=r"^tuner: rank must lie between 1 and num_factors=2"):
        attach_tuner(whole, MixLoraSection(num_factors=2, rank=4))


@pytest.mark.parametrize("section", [LoraSection, MixLoraSection, LoraExpertsSection])
def test_a_misspelt_target_among_right_ones_is_refused(whole, section):
    told = "tuner: target_modules: no module's name ends with 'v_porj'; did you mean 'v_proj'"
    with pytest.raises(RecipeError, match=told):
        attach_tuner(whole, section(target_modules=("q_proj", "v_porj")))


@pytest.mark.parametrize("config", [MMAConfig, MixLoraConfig])
def test_our_peft_methods_refuse_it_without_a_recipe(whole, config):
    right = "input_layernorm" if config is MMAConfig else "q_proj"
    with pytest.raises(ValueError, match="no module's name ends with 'nowhere'"):
        get_peft_model(whole, config(target_modules=[right, "nowhere"]))


@pytest.mark.parametrize("section", [LoraSection, MixLoraSection])
def test_a_target_that_only_the_left_out_tower_has_is_refused(whole, section):
    with pytest.raises(RecipeError, match=r"ends with 'fc1' is excluded \(a vision tower is"):
        attach_tuner(whole, section(target_modules=("q_proj", "fc1")))


@pytest.mark.parametrize("config", [MMAConfig, MixLoraConfig])
@pytest.mark.parametrize("key", ["exclude_modules", "modules_to_save"])
def test_our_peft_methods_refuse_other_wrong_names(whole, config, key):
    with pytest.raises(ValueError, match=rf"{key}: no module's name ends with 'v_porj'; did you"):
        get_peft_model(whole, config(**{key: ["v_porj"]}))
