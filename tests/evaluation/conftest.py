"""Tiny language models, a tokenizer of bytes, and random questions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny import byte_tokenizer, llama_config
from varifocal.assemble import Assembly
from varifocal.evaluation.benchmarks.scienceqa import choice_benchmark
from varifocal.evaluation.evaluated_model import EncodedAsker
from varifocal.evaluation.open_answers import items_of
from varifocal.evaluation.runner import AskOptions, run
from varifocal.models.likelihood import EncodedQuestion

VOCABULARY = 61

RandomQuestions = Callable[[int], list[EncodedQuestion]]


@pytest.fixture
def llama() -> LlamaForCausalLM:
    """Three layers in float64, with weights large enough that every token matters."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture
def random_questions() -> RandomQuestions:
    rng = np.random.default_rng(3)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(1, VOCABULARY, rng.integers(low, high)).astype(np.int32)

    def questions(count: int) -> list[EncodedQuestion]:
        return [
            EncodedQuestion(ids(1, 20), tuple(ids(1, 7) for _ in range(rng.integers(1, 6))))
            for _ in range(count)
        ]

    return questions


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, ids 0 to 255, then the special ones."""
    return byte_tokenizer(image_token="<|image|>", ids_are_bytes=True)


@pytest.fixture
def chat_llama(tokenizer) -> LlamaForCausalLM:
    """A tiny model over the tokenizer's bytes, in float64."""
    torch.manual_seed(0)
    config = llama_config(tokenizer, initializer_range=0.4)
    return LlamaForCausalLM(config).double().eval()


@pytest.fixture
def score_choices(tmp_path_factory):
    """Score multiple-choice questions: `score_choices(model, encoder, examples)` -> a Result."""

    def score(model, encoder, examples, load_images=None, method="likelihood", **way):
        parts = Assembly(
            model=model,
            processor=encoder.tokenizer,
            encoder=encoder,
            fingerprint=None,
            features=None,
            load_images=load_images,
        )
        most = way.pop("max_new_tokens", 64)
        benchmark = choice_benchmark("scienceqa", "here", method, most)
        folder = tmp_path_factory.mktemp("scores")
        how = AskOptions(**{"token_budget": 4096, **way})
        return run(benchmark, items_of(examples), EncodedAsker(parts), folder, options=how)

    return score
