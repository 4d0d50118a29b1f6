"""Decoding for `gpu_check`: the engine next to transformers' `generate`, one row and eight."""

import time
from dataclasses import replace
from typing import Any

import torch
from benchmarks.gpu_models import Scale, Way, build, inside, wait
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Message
from varifocal.serving.engine import Engine, Sampling

PROMPT_WORDS, STEPS = 64, 32


def decode(scale: Scale, way: Way, device: str) -> dict[str, Any]:
    """Measure tokens a second after the prompt: folded, unfolded, and transformers' own."""
    model, base = build(scale, replace(way, compiled=False), device)
    model.eval()
    found: dict[str, Any] = {}
    encoder = word_encoder()
    for fold in (True, False):
        engine = Engine(model, encoder, fold=fold, prefix_cache_gib=0)
        engine.stop_ids = frozenset()
        for rows in (1, 8):
            name = f"{'folded' if fold else 'unfolded'} {rows} rows"
            found[name] = tokens_per_second(engine, rows, device)
        engine.close()
    language = inside(model).language_model
    del base
    for rows in (1, 8):
        found[f"generate {rows} rows"] = generate(language, rows, device)
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def word_encoder() -> Encoder:
    """An encoder of 64 words, whose ids every model has."""
    vocabulary = {f"w{number}": number for number in range(PROMPT_WORDS)}
    core = Tokenizer(models.WordLevel({**vocabulary, "</s>": PROMPT_WORDS}, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return Encoder(PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>"))


@torch.inference_mode()
def tokens_per_second(engine: Engine, rows: int, device: str) -> float:
    """Let the engine's scheduler take steps after the prompts."""
    scheduler = engine._scheduler
    prompt = " ".join(f"w{number}" for number in range(PROMPT_WORDS))
    for _ in range(rows):
        request = engine._request([Message("user", (prompt,))], Sampling(STEPS + 2), adapter=True)
        scheduler.start(request)
    scheduler.step()
    wait(device)
    began = time.perf_counter()
    for _ in range(STEPS):
        scheduler.step()
    wait(device)
    seconds = time.perf_counter() - began
    while scheduler.batches:
        scheduler.step()
    return rows * STEPS / seconds


@torch.inference_mode()
def generate(language: Any, rows: int, device: str) -> float:
    """Let transformers write as many tokens; the bare prompt's time is taken off."""
    ids = torch.arange(PROMPT_WORDS, device=device).expand(rows, -1)

    def seconds(tokens: int) -> float:
        wait(device)
        began = time.perf_counter()
        language.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        wait(device)
        return time.perf_counter() - began

    seconds(1)
    return rows * STEPS / (seconds(STEPS + 1) - seconds(1))
