"""Tiny models of the kinds that the papers' code was trained on."""

import pytest
import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaForCausalLM,
)

from tiny import byte_tokenizer, llama_config

SIDE = 28


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def bases(tmp_path_factory):
    """A folder with `llama` (2 layers, D 32) and `clip` (8 blocks, C 16); nobody changes it."""
    root = tmp_path_factory.mktemp("bases")
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(root / "llama")
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(tokenizer)).save_pretrained(root / "llama")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 8}
    sizes |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": 14}
    torch.manual_seed(1)
    CLIPVisionModel(CLIPVisionConfig(**sizes)).save_pretrained(root / "clip")
    square = {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
    processor.save_pretrained(root / "clip")
    return root
