"""Tiny models of every kind, built from configs: no file, no network."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from varifocal.models import GraftedForConditionalGeneration, build_connector, build_tower, graft

VOCABULARY = 61
IMAGE = VOCABULARY  # the placeholder lies just past the vocabulary
WIDTH = 32


def tiny_llama(**changes: object) -> LlamaForCausalLM:
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**options, **changes})).eval()
    model.generation_config.pad_token_id = 0
    return model


def tiny_vit(kind: str, blocks: int = 8) -> PreTrainedModel:
    shared = {
        "hidden_size": 24,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 7,
    }
    torch.manual_seed(1)
    if kind == "clip":
        return CLIPVisionModel(CLIPVisionConfig(**shared, intermediate_size=40)).eval()
    if kind == "siglip":
        return SiglipVisionModel(SiglipVisionConfig(**shared, intermediate_size=40)).eval()
    return Dinov2Model(Dinov2Config(**shared, mlp_ratio=2)).eval()


def tiny_grafted(
    connector: str = "patch_mlp",
    tower: str = "clip",
    seed: int = 2,
    image: int = IMAGE,
    **language: object,
) -> GraftedForConditionalGeneration:
    language_model = tiny_llama(**language)
    vision_tower = build_tower(tiny_vit(tower))
    options = {"type": connector, "output_scale": 0.3}
    if connector == "patch_mlp":
        options |= {"hidden_dim": 20, "num_tokens": 4, "num_global_tokens": 1}
    built = build_connector(options, vision_tower, WIDTH, seed=seed)
    return graft(language_model, vision_tower, built, image).eval()


@pytest.fixture(scope="session")
def make_llama() -> Callable[..., LlamaForCausalLM]:
    return tiny_llama


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., PreTrainedModel]:
    return tiny_vit


@pytest.fixture
def make_grafted() -> Callable[..., GraftedForConditionalGeneration]:
    return tiny_grafted


@pytest.fixture
def grafted() -> GraftedForConditionalGeneration:
    return tiny_grafted()


@pytest.fixture
def images() -> torch.Tensor:
    """Four different images, [4, 3, 28, 28]."""
    return torch.randn(4, 3, 28, 28, generator=torch.Generator().manual_seed(3))


TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<s>' + message['role'] + '\n' + message['content'] + '</s>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 59 tokens: letters, digits, a few marks and three specials."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:?!()'<|>/_-"
    words = ["<pad>", "<s>", "</s>", *letters]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "?"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return tiny_tokenizer
