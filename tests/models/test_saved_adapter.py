"""`load_adapter`: an adapter's file and the model have the same tensors, or a sentence says not."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from varifocal.errors import ModelError
from varifocal.models.saved import load_adapter
from varifocal.tuners import LoraExpertsConfig, MixLoraConfig, MMAConfig

FILE = "adapter_model.safetensors"
LORA_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
IDS = torch.tensor([[1, 5, 9, 13]])


@pytest.fixture
def saved(tmp_path, make_llama):
    """A trained LoRA, and a module that was trained whole."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(make_llama(), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    model.save_pretrained(tmp_path / "adapter")
    return model.eval(), tmp_path / "adapter"


def change(folder, do):
    held = load_file(folder / FILE)
    do(held)
    save_file(held, folder / FILE, metadata={"format": "pt"})


def test_a_whole_adapter_loads_as_pefts_own_loading_does(saved, make_llama):
    model, folder = saved
    with torch.no_grad():
        ours, theirs = (
            load_adapter(make_llama(), folder),
            PeftModel.from_pretrained(make_llama(), folder),
        )
        assert torch.equal(ours(IDS).logits, model(IDS).logits)
    assert type(ours) is type(theirs)
    assert ours.peft_config["default"].to_dict() == theirs.peft_config["default"].to_dict()
    assert not any(parameter.requires_grad for parameter in ours.parameters())


@pytest.mark.parametrize(
    ("do", "sentence"),
    [
        (lambda held: held.pop(LORA_B), r"1 tensor is missing in .* \(.*q_proj\.lora_B\.default"),
        (lambda held: held.pop("base_model.model.lm_head.weight"), r"missing in .*lm_head\.weight"),
        (
            lambda held: held.update({LORA_B.replace("q_proj", "o_proj"): torch.ones(32, 2)}),
            r"1 tensor is left over \(.*o_proj\.lora_B",
        ),
        (lambda held: held.update({LORA_B: torch.ones(32, 3)}), r"size mismatch .*Load it on"),
        (lambda held: held.clear(), r"missing in adapter_model"),
    ],
)
def test_an_adapter_of_other_tensors_is_refused(saved, make_llama, do, sentence):
    _, folder = saved
    change(folder, do)
    with pytest.raises(ModelError, match=sentence) as told:
        load_adapter(make_llama(), folder)
    assert str(folder) in str(told.value)


@pytest.mark.parametrize(
    "config",
    [
        MMAConfig(bottleneck_dim=2),
        MixLoraConfig(target_modules=["q_proj"], num_factors=4, rank=2),
        LoraExpertsConfig(target_modules=["q_proj"], num_experts=2, rank=2),
    ],
    ids=["mma", "mixlora", "lora_experts"],
)
def test_our_own_tuners_are_held_to_it_too(tmp_path, make_llama, config):
    get_peft_model(make_llama(), config).save_pretrained(tmp_path)
    load_adapter(make_llama(), tmp_path)
    names = []
    change(tmp_path, lambda held: names.append(held.popitem()[0]))
    with pytest.raises(ModelError, match="1 tensor is missing in"):
        load_adapter(make_llama(), tmp_path)


def test_files_that_are_damaged_or_not_there(saved, make_llama):
    _, folder = saved
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="does not fit this model: "):
        load_adapter(make_llama(), folder)
    (folder / FILE).unlink()
    (folder / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"holds no adapter_model\.safetensors"):
        load_adapter(make_llama(), folder)
    (folder / FILE).write_bytes(content)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json is damaged"):
        load_adapter(make_llama(), folder)
