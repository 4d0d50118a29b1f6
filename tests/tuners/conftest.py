"""Tiny models of many kinds for the tuners' tests: 2 layers, width 16, no dropout of their own."""

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

VOCABULARY = 61
IMAGE_TOKEN = 60
_TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "image_size": 8,
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _llava() -> nn.Module:
    text = hf.LlamaConfig(**_TEXT)
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**_VISION),
            text_config=text,
            image_token_index=IMAGE_TOKEN,
            vision_feature_layer=-1,
        )
    )


def _gpt2() -> nn.Module:
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCABULARY, **sizes, **dropouts, **ends))


_BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**_TEXT)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**_TEXT)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**_TEXT)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(
            **_TEXT, sliding_window=4, layer_types=["sliding_attention", "full_attention"]
        )
    ),
    "gpt2": _gpt2,
    "llava": _llava,
    "clip": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**_VISION)),
    "siglip": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**_VISION)),
    "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**_VISION)),
}


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], nn.Module]:
    """Build a tiny model by name, the same weights every time, in float64 and evaluation mode."""

    def build(name: str) -> nn.Module:
        torch.manual_seed(0)
        return _BUILDERS[name]().double().eval()

    return build


@pytest.fixture(scope="session")
def batch() -> Callable[[str], dict[str, Tensor]]:
    """Make inputs for a tiny model: a text row and an image row, or three images."""

    def make(name: str) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(7)
        pixels = torch.randn(3, 3, 8, 8, generator=random).double()
        ids = torch.randint(3, IMAGE_TOKEN, (2, 7), generator=random)
        if name in ("clip", "siglip", "dinov2"):
            return {"pixel_values": pixels}
        if name == "llava":
            ids[1, 1:5] = IMAGE_TOKEN
            return {"input_ids": ids, "pixel_values": pixels[:1]}
        modality = torch.tensor([0, 1])[:, None].expand(2, 7)
        return {"input_ids": ids, "modality_ids": modality}

    return make
