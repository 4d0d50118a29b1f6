"""Recipes for families of published models: dry builds, counts by formula, and a listing."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from typer.testing import CliRunner

from varifocal.cli.commands import app
from varifocal.errors import ModelError, RecipeError
from varifocal.models.families.qwen_vl import cell_side
from varifocal.models.families.smolvlm import smolvlm_tokens_per_image
from varifocal.models.load import is_vision_language
from varifocal.models.published_configs import PUBLISHED
from varifocal.models.sources import Checkpoint
from varifocal.planning.devices import GPUS
from varifocal.planning.estimate import estimate
from varifocal.recipe import load_recipe
from varifocal.recipe.reading import SHIPPED
from varifocal.training.tuner import count_parameters

# What public pages give for the released weights, to the last parameter.
PARAMETERS = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Meta-Llama-3-8B-Instruct": 8_030_261_248,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "Qwen/Qwen2.5-3B-Instruct": 3_085_938_688,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1_711_376_384,
    "HuggingFaceTB/SmolLM3-3B": 3_075_098_624,
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "HuggingFaceTB/SmolVLM-256M-Instruct": 256_484_928,
    "HuggingFaceTB/SmolVLM-500M-Instruct": 507_482_304,
}

# Width and number of layers.
GRAFTS = {
    "HuggingFaceTB/SmolLM2-360M-Instruct": (960, 32),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (2048, 24),
    "HuggingFaceTB/SmolLM3-3B": (2048, 36),
    "Qwen/Qwen2.5-1.5B-Instruct": (1536, 28),
    "Qwen/Qwen2.5-3B-Instruct": (2048, 36),
    "Qwen/Qwen2.5-7B-Instruct": (3584, 28),
    "Qwen/Qwen3-1.7B": (2048, 28),
    "Qwen/Qwen3-4B": (2560, 36),
    "Qwen/Qwen3-8B": (4096, 36),
    "lmsys/vicuna-7b-v1.5": (4096, 32),
    "meta-llama/Meta-Llama-3-8B-Instruct": (4096, 32),
}

# Width, MLP's width, width of keys, layers.
QWEN_VLS = {
    "Qwen/Qwen2-VL-2B-Instruct": (1536, 8960, 256, 28),
    "Qwen/Qwen2-VL-7B-Instruct": (3584, 18944, 512, 28),
    "Qwen/Qwen2.5-VL-3B-Instruct": (2048, 11008, 256, 36),
    "Qwen/Qwen2.5-VL-7B-Instruct": (3584, 18944, 512, 28),
}

SMOLVLMS = {
    "HuggingFaceTB/SmolVLM-256M-Instruct": (576, 1536, 192, 30),
    "HuggingFaceTB/SmolVLM-500M-Instruct": (960, 2560, 320, 32),
}


def read(name, model=None, **more):
    overrides = {"model.language_model": model} if model else {}
    return load_recipe(name, {**overrides, **more}, check_paths=False)


def head(name):
    text = (SHIPPED / f"{name}.yaml").read_text()
    lines = [line.split() for line in text.splitlines() if line.startswith("#   ")]
    return [words for words in lines if len(words) == 3 and "/" in words[1]]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_published_config_has_the_models_parameters(name):
    config = PUBLISHED[name].config()
    has_tower = is_vision_language(Checkpoint(name, "", config))
    kind = AutoModelForImageTextToText if has_tower else AutoModelForCausalLM
    with torch.device("meta"):
        model = kind.from_config(config)
    assert sum(each.numel() for each in model.parameters()) == PARAMETERS[name]


def adapter(width, layers):
    """A bottleneck of 8: down with bias, two ways up with biases in halves, and the router."""
    return layers * (8 * width + 8 + 2 * (4 * width + width) + 2 * width + 2)


@pytest.mark.parametrize("name", GRAFTS)
def test_a_graft_of_a_family_trains_by_formula(name):
    width, layers = GRAFTS[name]
    planned = count_parameters(read("lavin-scienceqa-24gb", name))
    assert planned["trained_parameters_by_part"] == {
        "language_model": adapter(width, layers),
        "vision_tower": adapter(1024, 24),
        "connector": 1024 * 128 + 128 + 128 * width + width,
        "modality_embedding": 2 * width,
    }
    assert ["#", name, f"{planned['trained_parameters']:,}"] in head("lavin-scienceqa-24gb")


def test_the_head_names_these_models_and_no_others():
    listed = [words[1] for words in head("lavin-scienceqa-24gb") if words[1] in PUBLISHED]
    assert set(listed) == set(GRAFTS)
    listed = [words[1] for words in head("qwen-vl-lora") if words[1] in PUBLISHED]
    assert set(listed) == set(QWEN_VLS)


def test_its_settings_are_lavins():
    own, lavin = read("lavin-scienceqa-24gb"), read("lavin-7b-scienceqa")
    assert own.tuner == lavin.tuner
    of_sources = {"__all__": {"prompt_text"}}
    prompts = {"chat_template": True, "train": of_sources, "evaluate": of_sources}
    assert own.data.model_dump(exclude=prompts) == lavin.data.model_dump(exclude=prompts)
    assert own.data.chat_template is None  # each model's own
    assert own.model.connector == lavin.model.connector
    same = {"learning_rate", "num_train_epochs", "warmup_steps", "weight_decay", "max_grad_norm"}
    own, lavin = own.training.model_dump(), lavin.training.model_dump()
    assert {key: own[key] for key in same} == {key: lavin[key] for key in same}


def lora(width, inner, keys, layers):
    into = 2 * 2 * width + 2 * (width + keys) + 3 * (width + inner)
    return 16 * layers * into


@pytest.mark.parametrize("name", QWEN_VLS)
def test_a_qwen_vl_trains_by_formula(name):
    recipe = read("qwen-vl-lora", name)
    planned = count_parameters(recipe)
    assert planned["trained_parameters_by_part"] == {"language_model": lora(*QWEN_VLS[name])}
    assert planned["frozen_parameters"] == PARAMETERS[name]
    assert ["#", name, f"{planned['trained_parameters']:,}"] in head("qwen-vl-lora")
    assert (recipe.model.image_side // cell_side(PUBLISHED[name].config())) ** 2 == 256


@pytest.mark.parametrize("name", SMOLVLMS)
def test_a_smolvlm_trains_by_formula(name):
    recipe = read("qwen-vl-lora", name, **{"model.image_side": 512})
    planned = count_parameters(recipe)
    width, *_ = SMOLVLMS[name]
    assert planned["trained_parameters_by_part"] == {
        "language_model": lora(*SMOLVLMS[name]),
        "connector": 768 * 16 * width,
    }
    assert smolvlm_tokens_per_image(PUBLISHED[name].config()) == 64


def test_llava_trains_by_formula():
    parts = count_parameters(read("llava-1.5-lora"))["trained_parameters_by_part"]
    projector = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert parts == {"language_model": lora(4096, 11008, 4096, 32), "connector": projector}
    text = (SHIPPED / "llava-1.5-lora.yaml").read_text()
    assert all(f"{count:,}" in text for count in parts.values())


def test_lora_experts_train_by_formula_and_otherwise_as_the_lora():
    mixture, single = read("lora-experts-llava-1.5-7b"), read("llava-1.5-lora")
    parts = count_parameters(mixture)["trained_parameters_by_part"]
    routers = 32 * 4 * (6 * 4096 + 11008)
    pools, projector = lora(4096, 11008, 4096, 32), 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert parts == {"language_model": pools + routers, "connector": projector}
    text = (SHIPPED / "lora-experts-llava-1.5-7b.yaml").read_text()
    counts = (pools, routers, projector)
    assert all(f"{count:,}" in text for count in counts)
    tuner = mixture.tuner
    assert (tuner.num_experts, tuner.router, tuner.top_k) == (4, "token", None)
    assert tuner.lora_alpha / tuner.rank == single.tuner.lora_alpha / single.tuner.rank
    assert tuner.target_modules == single.tuner.target_modules
    others = {"name", "tuner"}
    assert mixture.model_dump(exclude=others) == single.model_dump(exclude=others)


def test_a_plan_of_a_qwen_vl_says_that_it_fits_24_gb():
    recipe = read("qwen-vl-lora", **{"data.mixture.total": 1000})
    planned = estimate(recipe, GPUS["rtx3090"], quick=True)
    assert planned.fits
    assert planned.vision_passes == 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [
        *((file.stem, None) for file in sorted(SHIPPED.glob("*.yaml"))),
        *(("lavin-scienceqa-24gb", model) for model in GRAFTS),
        *(("qwen-vl-lora", model) for model in QWEN_VLS),
    ],
)
def test_every_recipe_is_planned_for_a_card(name, model):
    recipe = read(name, model, **{"data.mixture.total": 1000})
    planned = estimate(recipe, GPUS["rtx3090"], quick=True)
    assert planned.hours > 0
    one_card = ("llava-1.5-lora", "lora-experts-llava-1.5-7b", "qwen-vl-lora")
    for_one_card = model is not None or name in one_card
    assert planned.fits or not (for_one_card or "4bit" in name or "demo" in name)


def test_a_qwen_vl_without_a_side_says_what_to_set():
    with pytest.raises(ModelError, match=r"set model\.image_side, 448 for example"):
        estimate(read("qwen-vl-lora", **{"model.image_side": None}), GPUS["rtx3090"])


def run(*words):
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


def test_all_recipes_are_listed_with_what_they_need():
    printed = run("recipes")
    names = [file.stem for file in SHIPPED.glob("*.yaml")]
    assert {line for line in printed.splitlines() if line in names} == set(names)
    blocks = {block.split("\n", 1)[0]: block for block in printed.replace("\n  ", "\t").split("\n")}
    blocks = {key.split("\t")[0]: block for key, block in blocks.items()}
    assert "smollm2-135m-instruct (packaged)" in blocks["demo"]
    assert "huggyllama/llama-7b (hub)" in blocks["lavin-7b-scienceqa"]
    assert "data.root itself" in blocks["lavin-7b-scienceqa"]
    assert "chat.json (llava)" in blocks["mixlora-stage1-7b"]
    assert "varifocal train mlan-stage1-vicuna-7b" in blocks["mlan-stage2-vicuna-7b"]
    told = " ".join(blocks["lavin-7b-scienceqa"].split())
    assert "settings of the paper and its public code." in told


def test_a_recipe_is_printed_to_be_copied():
    assert run("recipes", "demo") == (SHIPPED / "demo.yaml").read_text()
    with pytest.raises(RecipeError, match="did you mean 'demo'"):
        CliRunner().invoke(app, ["recipes", "demmo"], catch_exceptions=False)


PAPERS = Path(__file__).parents[1] / "docs" / "papers"


def test_a_projector_as_llavas_can_take_the_connectors_place():
    page = (PAPERS / "mlan.md").read_text()
    assert '--set "model.connector={type: mlp2x_gelu}"' in page
    recipe = load_recipe(
        "mlan-stage1-llama2-7b",
        ["model.connector={type: mlp2x_gelu}"],
        check_paths=False,
    )
    assert count_parameters(recipe)["trained_parameters"] == 20_979_712


def test_a_row_too_short_for_a_image_is_planned_as_text():
    recipe = read("mlan-stage2-llama2-7b-lora", **{"data.max_length": 512})
    planned = estimate(recipe, GPUS["a6000"], quick=True)
    assert planned.tokens == 80_000 * 512
    assert planned.vision_passes == 0
