"""Saving and loading a grafted model by transformers' own doors."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText

from varifocal.models import GraftedConfig, GraftedForConditionalGeneration

IMAGE, V = 61, 5


@pytest.mark.parametrize(
    ("connector", "tower"),
    [
        ("patch_mlp", "clip"),
        ("cls_pyramid", "clip"),
        ("linear", "clip"),
        ("patch_mlp", "siglip"),
        ("cls_pyramid", "dinov2"),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_bit_exact(make_grafted, images, tmp_path, connector, tower, tied):
    grafted = make_grafted(connector, tower, tie_word_embeddings=tied)
    grafted.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert isinstance(loaded, GraftedForConditionalGeneration)
    ours, theirs = grafted.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    ids = torch.tensor([[1, *[IMAGE] * grafted.tokens_per_image, 9]])
    inputs = {"input_ids": ids, "pixel_values": images[:1]}
    head, words = loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight
    assert (head is words) == tied
    for parameter in loaded.parameters():
        # weights mapped from a file lie at odd addresses, where kernels add in another order
        parameter.data = parameter.data.clone()
    assert torch.equal(grafted(**inputs).logits, loaded.eval()(**inputs).logits)


def test_tied_weights_are_written_once(make_grafted, tmp_path):
    make_grafted(tie_word_embeddings=True).save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "language_model.model.embed_tokens.weight" in names
    assert "language_model.lm_head.weight" not in names


def test_the_config_says_all_three_parts(make_grafted, tmp_path):
    grafted = make_grafted("cls_pyramid")
    grafted.save_pretrained(tmp_path)
    page = json.loads((tmp_path / "config.json").read_text())
    assert page["model_type"] == "grafted"
    assert page["language_config"]["model_type"] == "llama"
    assert page["vision_config"]["model_type"] == "clip_vision_model"
    assert page["connector_config"] == {
        "type": "cls_pyramid",
        "hidden_dim": 128,
        "output_scale": 0.3,
    }
    assert page["image_token_id"] == IMAGE
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, GraftedConfig)
    assert config.get_text_config().vocab_size == 61
    assert config.text_config is config.language_config


def test_a_connector_stays_float32_when_the_rest_is_loaded_smaller(make_grafted, tmp_path):
    make_grafted().save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16)
    dtypes = {
        part: {parameter.dtype for parameter in getattr(loaded, part).parameters()}
        for part in ("language_model", "vision_tower", "connector")
    }
    assert dtypes["connector"] == {torch.float32}
    assert dtypes["language_model"] == dtypes["vision_tower"] == {torch.bfloat16}


def test_the_parts_keep_their_attention_code(make_llama, make_grafted, tmp_path):
    grafted = make_grafted()
    assert grafted.language_model.config._attn_implementation == "sdpa"
    grafted.set_attn_implementation("eager")
    assert grafted.language_model.config._attn_implementation == "eager"
    assert grafted.vision_tower.model.config._attn_implementation == "eager"
    grafted.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.language_model.config._attn_implementation == "eager"


def test_generation_settings_travel(make_grafted, tmp_path):
    grafted = make_grafted()
    grafted.generation_config.eos_token_id = 17
    grafted.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == 17
    assert loaded.generation_config.pad_token_id == 0


def test_what_device_maps_and_checkpointing_ask(grafted):
    assert grafted._no_split_modules == {"LlamaDecoderLayer", "CLIPEncoderLayer"} | {
        name for name in grafted._no_split_modules if name.startswith("CLIP")
    }
    assert grafted.get_decoder() is grafted.language_model.model
    assert grafted.get_input_embeddings() is grafted.language_model.model.embed_tokens
    assert grafted.get_output_embeddings() is grafted.language_model.lm_head
    assert grafted.supports_gradient_checkpointing
