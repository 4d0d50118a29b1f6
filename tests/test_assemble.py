"""An adapter is put only on the base it was trained on; what cannot be trained is refused."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from varifocal.assemble import check_base, load_adapter, open_run
from varifocal.errors import ModelError, RunError
from varifocal.recipe import ModelSection, Recipe
from varifocal.recipe.sections import Provenance


def llama(width=16):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=width,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def adapter(tmp_path):
    """A saved LoRA of a Llama of width 16, with tensors that do something."""
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def recipe(fingerprint=None):
    provenance = Provenance(versions={}, data={}, base_fingerprint=fingerprint)
    return Recipe(model=ModelSection(language_model="lm"), provenance=provenance)


def test_an_adapter_goes_onto_its_base(adapter):
    ids = torch.arange(6)[None]
    base = llama()(ids).logits
    loaded = load_adapter(llama(), adapter)
    assert not torch.equal(loaded(ids).logits, base)
    with loaded.disable_adapter():
        assert torch.equal(loaded(ids).logits, base)


def test_an_adapter_of_another_size_is_refused_in_one_sentence(adapter):
    with pytest.raises(ModelError) as caught:
        load_adapter(llama(width=32), adapter)
    text = str(caught.value)
    assert text.startswith(f"the adapter in '{adapter}' does not fit this model: ")
    assert text.endswith(" Load it on the base model that it was trained on")
    assert "\n" not in text


def test_a_torn_adapter_is_refused_in_one_sentence(adapter):
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match=rf"^the adapter in '{adapter}' does not fit this model"):
        load_adapter(llama(), adapter)


@pytest.mark.parametrize("place", ["adapter", "recipe"])
def test_another_base_is_told_by_its_content(tmp_path, adapter, place):
    recorded = recipe("a" * 64 if place == "recipe" else None)
    if place == "adapter":
        config = json.loads((adapter / "adapter_config.json").read_text())
        text = json.dumps({**config, "base_fingerprint": "a" * 64})
        (adapter / "adapter_config.json").write_text(text)
    check_base(adapter, recorded, "a" * 64)
    check_base(adapter, recorded, None)  # a base whose content nobody knows
    with pytest.raises(ModelError) as caught:
        check_base(adapter, recorded, "b" * 64)
    assert str(caught.value) == (
        f"the adapter in '{adapter}' was trained on a base with content hash {'a' * 12}, but lm "
        f"now has {'b' * 12}: name the base it was trained on in the run's recipe.yaml, or train "
        "again"
    )


def test_a_base_is_not_judged_when_nothing_was_recorded(tmp_path, adapter):
    check_base(adapter, recipe(), "b" * 64)


def test_a_run_without_an_adapter_says_how_to_finish(tmp_path, adapter):
    shutil.rmtree(adapter)
    (tmp_path / "recipe.yaml").write_text(recipe().dump_yaml())
    with pytest.raises(RunError) as caught:
        open_run(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no adapter yet; finish it with: "
        f"varifocal train {tmp_path / 'recipe.yaml'} --out {tmp_path} --resume"
    )
    with pytest.raises(RunError, match=r"nowhere is no run directory: it has no recipe\.yaml$"):
        open_run(tmp_path / "nowhere")
