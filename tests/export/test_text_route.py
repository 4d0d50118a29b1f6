"""Exports of runs that leave text to the base model."""

import pytest
import torch
from peft import PeftConfig
from transformers import LlamaForCausalLM

from varifocal.data.example import Example, Message
from varifocal.errors import ModelError
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order

MMA = {"type": "mma", "router_temperature": 1.0, "text_route": "base"}
LORA = {"type": "lora", "text_route": "base"}


@pytest.fixture(scope="module")
def run_of(make_run):
    runs = {}

    def get(tuner):
        name = tuner["type"]
        if name not in runs:
            runs[name] = make_run(tuner)
        return runs[name]

    return get


def same_as(language, directory):
    base = LlamaForCausalLM.from_pretrained(language).state_dict()
    found = LlamaForCausalLM.from_pretrained(directory).state_dict()
    return found.keys() == base.keys() and all(torch.equal(found[n], base[n]) for n in base)


@pytest.mark.parametrize("tuner", [MMA, LORA], ids=["mma", "lora"])
def test_the_text_route_is_the_base_to_the_last_number(run_of, tmp_path, parts_directory, tuner):
    text, image = export_run(Order(run_of(tuner), "merged", num_prompts=2), tmp_path / "out")
    assert [one.directory.name for one in (text, image)] == ["text", "image"]
    assert same_as(parts_directory / "language", text.directory)
    assert not same_as(parts_directory / "language", image.directory)
    assert (text.layers, text.parity.largest_gap) == (0, 0.0)
    assert image.layers > 0
    card = (text.directory / "README.md").read_text()
    assert "The text route: the base model itself" in card
    card = (image.directory / "README.md").read_text()
    assert "The image route" in card
    assert "Rows without an image belong to the base model" in card


@pytest.mark.parametrize("tuner", [MMA, LORA], ids=["mma", "lora"])
def test_there_is_a_lora_for_images_alone(run_of, tmp_path, tuner):
    (image,) = export_run(Order(run_of(tuner), "lora", num_prompts=2), tmp_path / "out")
    assert image.directory == tmp_path / "out" / "image"
    assert PeftConfig.from_pretrained(image.directory).peft_type == "LORA"
    assert any("default_mm_loras" in note for note in image.notes)


@pytest.mark.parametrize("tuner", [MMA, LORA], ids=["mma", "lora"])
def test_a_gguf_leaves_for_each_route(run_of, tmp_path, tuner):
    text, image = export_run(Order(run_of(tuner), "gguf", num_prompts=2), tmp_path / "out")
    assert text.parity.passed
    assert image.parity.passed


def test_a_text_prompt_has_no_lora_to_leave_with(make_run, tmp_path):
    run = make_run({"type": "mixlora", "num_factors": 6, "rank": 2, "text_route": "base"})
    prompt = Example((Message("user", ("Who is it?",)),))
    with pytest.raises(ModelError, match="the prompt has no image, and text_route='base'"):
        export_run(Order(run, "route", prompt=prompt), tmp_path / "out")
