"""MLAN's recipes: the settings of its public scripts, and trained parameters by formula."""

from pathlib import Path

import pytest

from varifocal.recipe import load_recipe
from varifocal.recipe.reading import SHIPPED
from varifocal.training.tuner import count_parameters

NAMES = sorted(file.stem for file in SHIPPED.glob("mlan-*.yaml"))
BASES = ("llama2-7b", "vicuna-7b")

LAYER = 4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096  # attention, gated MLP, two norms
LLAMA_7B = 32 * LAYER + 4096 + 2 * 32_000 * 4096
LLAVA_7B = LLAMA_7B + 2 * 64 * 4096  # 64 more words, in embeddings and head
MLP2X_GELU = 1024 * 4096 + 4096 + 4096 * 4096 + 4096
CONNECTOR = MLP2X_GELU + 2 * 1024 + 24 * 24 * 1024  # layer norm, positions
LORA = 16 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
BLOCK = 4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 1024 + 4 * 1024
CLIP = 1024 + 3 * 14**2 * 1024 + (24**2 + 1) * 1024 + 24 * BLOCK + 4 * 1024

TRAINED = {
    **{f"mlan-stage1-{base}": {"connector": CONNECTOR} for base in BASES},
    **{
        f"mlan-stage2-{base}": {"language_model": LLAMA_7B, "connector": CONNECTOR}
        for base in BASES
    },
    "mlan-stage2-llama2-7b-lora": {"language_model": LORA, "connector": CONNECTOR},
    "mlan-stage2-llava-1.5-7b": {"language_model": LLAVA_7B, "connector": MLP2X_GELU},
}


def read(name, overrides=()):
    return load_recipe(name, overrides, check_paths=False)


def examples_a_step(recipe):
    training = recipe.training
    assert not recipe.data.packing
    return training.per_device_train_batch_size * training.gradient_accumulation_steps


def test_these_are_all():
    assert {*TRAINED, "mlan-stage1-demo", "mlan-stage2-demo"} == set(NAMES)


@pytest.mark.parametrize("name", TRAINED)
def test_parameters_by_formula(name):
    planned = count_parameters(read(name))
    assert planned["trained_parameters_by_part"] == TRAINED[name]
    language = LLAVA_7B if "llava" in name else LLAMA_7B
    frozen = CLIP if read(name).tuner.type == "full" else CLIP + language
    assert planned["frozen_parameters"] == frozen
    text = (SHIPPED / f"{name}.yaml").read_text()
    for part, count in TRAINED[name].items():
        assert f"{count:,}" in text or (part, "llava" in name) == ("language_model", True)


@pytest.mark.parametrize("base", BASES)
def test_stage_1_has_the_settings_of_the_paper(base):
    recipe = read(f"mlan-stage1-{base}")
    training = recipe.training
    assert (training.learning_rate, training.num_train_epochs) == (1e-3, 1.0)
    assert (training.lr_scheduler_type, training.warmup_steps) == ("cosine", 0.03)
    assert training.weight_decay == 0
    assert training.bf16
    assert examples_a_step(recipe) == 256
    assert recipe.data.max_length == 2048
    assert recipe.model.vision_tower == "openai/clip-vit-large-patch14-336"
    assert recipe.alignment is None


@pytest.mark.parametrize("base", BASES)
def test_stage_2_has_the_settings_of_the_paper(base):
    recipe = read(f"mlan-stage2-{base}")
    training = recipe.training
    assert (training.learning_rate, training.num_train_epochs) == (2e-5, 1.0)
    assert (training.lr_scheduler_type, training.warmup_steps) == ("cosine", 0.03)
    assert training.weight_decay == 0
    assert training.bf16
    assert training.gradient_checkpointing
    assert examples_a_step(recipe) == 64
    assert (recipe.data.max_length, recipe.data.mixture.total) == (2048, 80_000)
    assert recipe.seed == 42
    assert (recipe.tuner.type, recipe.tuner.dtype) == ("full", "float32")


@pytest.mark.parametrize("base", [*BASES, "demo"])
def test_stage_2_starts_from_the_connector_of_stage_1(base):
    first, second = read(f"mlan-stage1-{base}"), read(f"mlan-stage2-{base}")
    assert Path(second.model.connector.weights) == Path.cwd() / "runs" / f"mlan-stage1-{base}"
    shapes = ("type", "hidden_dim", "num_tokens", "num_global_tokens")
    for key in shapes:
        assert getattr(first.model.connector, key) == getattr(second.model.connector, key)
    assert first.model.language_model == second.model.language_model
    assert first.model.vision_tower == second.model.vision_tower


@pytest.mark.parametrize("name", [name for name in NAMES if "stage2" in name and "7b" in name])
def test_the_shares_in_the_comments_are_options(name):
    """What the comments offer can be uncommented as it stands."""
    text = (SHIPPED / f"{name}.yaml").read_text()
    for share in ("0.875", "0.5"):
        assert f"# language_fraction: {share} " in text
        recipe = read(name, [f"data.mixture.language_fraction={share}"])
        assert recipe.data.mixture.language_fraction == float(share)
    offered = next(line for line in text.splitlines() if "vision.json" in line)
    assert "{path: vision.json, format: mlan, image_folder: images}" in offered


def test_the_demo_tunes_the_demo_model_whole():
    first, second = (count_parameters(read(f"mlan-stage{stage}-demo")) for stage in (1, 2))
    assert set(first["trained_parameters_by_part"]) == {"connector"}
    assert second["trained_parameters_by_part"]["language_model"] == 134_515_008
    recipe = read("mlan-stage2-demo")
    assert [source.place.rpartition("/")[2] for source in recipe.data.train] == [
        "alpaca_999.json",
        "scienceqa-text",
        "sciencebook",
    ]
