"""Folding: plain linears, one set a modality, give the adapted model's logits."""

import copy

import pytest
import torch
from peft import get_peft_model
from torch import nn

from varifocal.tuners import MMAConfig
from varifocal.tuners.mma.folding import AffineMap, fold_linear, fold_maps, readers

KINDS = ["llama", "qwen2", "qwen3", "gemma3", "gpt2", "llava"]


@pytest.fixture
def awake(tiny):
    def build(name, **settings):
        torch.manual_seed(3)
        config = MMAConfig(vision_tower=False, scale=0.7, **settings)
        model = get_peft_model(tiny(name), config).eval()
        for parameter in model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.5)
        return model

    return build


def folded_by_hand(model, modality):
    """Copy the base model with its linears folded."""
    maps, names = fold_maps(model, modality), readers(model)
    base = copy.deepcopy(model).unload()
    for norm, linears in names.items():
        for name in linears:
            linear = base.get_submodule(name)
            turned = isinstance(linear, nn.Linear)
            weight = linear.weight if turned else linear.weight.T
            weight, bias = fold_linear(weight, linear.bias, maps[norm])
            linear.weight = nn.Parameter(weight if turned else weight.T.contiguous())
            linear.bias = nn.Parameter(bias)
    return base


@pytest.mark.parametrize("modality", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_folded_model_gives_the_adapted_models_logits(awake, kind, modality):
    model = awake(kind)
    ids = torch.randint(3, 50, (2, 7))
    marks = torch.full_like(ids, modality)
    expected = model(input_ids=ids, modality_ids=marks).logits
    found = folded_by_hand(model, modality)(input_ids=ids).logits
    with model.disable_adapter():
        assert not torch.allclose(expected, model(input_ids=ids).logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_map_on_paper():
    map_ = AffineMap(
        torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0], [0.0]]), torch.tensor([5, 7.0])
    )
    weight, bias = fold_linear(torch.tensor([[1.0, 10.0]]), None, map_)
    # z = (a, b) becomes (a + 2 a + 5, b + 7); 1 and 10 of it: 3 a + 10 b + 75
    assert weight.tolist() == [[3.0, 10.0]]
    assert bias.tolist() == [75.0]
    assert fold_linear(weight, torch.tensor([1.0]), map_)[1].tolist() == [86.0]


def test_readers_are_found_by_what_they_read(awake):
    llama = readers(awake("llama"))
    assert [n.rpartition(".")[2] for n in llama["model.layers.1.input_layernorm"]] == [
        *("q_proj", "k_proj", "v_proj"),
    ]
    assert readers(awake("gpt2")) == {
        f"transformer.h.{layer}.ln_1": (f"transformer.h.{layer}.attn.c_attn",) for layer in (0, 1)
    }


def test_a_norm_that_feeds_a_residual_is_refused(awake):
    model = awake("llama")
    block = model.get_base_model().model.layers[1]
    forward = block.forward

    def leaky(hidden_states, **kwargs):
        return forward(hidden_states, **kwargs) + 0.1 * block.input_layernorm(hidden_states)

    block.forward = leaky
    with pytest.raises(ValueError, match=r"layers\.1\.input_layernorm"):
        readers(model)


def test_the_model_is_left_as_it_was(awake):
    model = awake("llama").train()
    readers(model)
    hooks = [m for m in model.modules() if m._forward_hooks]
    assert all(type(m).__name__ in ("LlamaModel", "LlavaModel") for m in hooks)
    assert all(m.training for m in model.modules())
    assert all(layer.context is None for layer in model.modules() if hasattr(layer, "context"))
