"""Write on after prompts, one token at a time, with a key-value cache.

The one decoding loop of the package: greedy answers in evaluation and streamed chat in serving are
both it. It is plain so that every model takes it the same way, bare, grafted or wrapped by PEFT,
and so that the caller can stop at any token.

Letters: B rows, T prompt tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Choose = Callable[[Tensor], Tensor]


def reads_marks(model: nn.Module) -> bool:
    """Say whether modality, segment and prompt marks have a reader: a tuner or a grafted model."""
    if hasattr(model, "peft_config"):
        return True
    return "modality_ids" in inspect.signature(model.forward).parameters


def stop_ids(model: Any, end_of_turn_id: int) -> frozenset[int]:
    """Return the ids at which an answer ends.

    Args:
        model: its own list (`generation_config.eos_token_id`) counts.
        end_of_turn_id: what the chat template writes after an answer; a base model's list may
            not have it.
    """
    return frozenset({end_of_turn_id, *_listed(getattr(model, "generation_config", None))})


def add_stop_ids(model: Any, ids: Iterable[int | None]) -> None:
    """Let transformers' `generate` stop at further ids; those it stops at already come first.

    Args:
        model: its `generation_config.eos_token_id` is changed, and that of the language model in a
            grafted one.
        ids: None among them is left out.
    """
    for part in (model, getattr(model, "language_model", None)):
        config = getattr(part, "generation_config", None)
        if config is not None:
            known = _listed(config)
            stop_ids = list(dict.fromkeys([*known, *(i for i in ids if i is not None)]))
            if stop_ids != known:
                config.eos_token_id = stop_ids if len(stop_ids) > 1 else stop_ids[0]


def _listed(generation_config: Any) -> list[int]:
    """Return the ids at which a generation config stops."""
    own = getattr(generation_config, "eos_token_id", None)
    return [] if own is None else list(own) if isinstance(own, (list, tuple)) else [int(own)]


def greedy(logits: Tensor) -> Tensor:
    """Choose the likeliest token of every row, the lowest id of equals: [B, V] -> [B]."""
    return logits.argmax(dim=-1)


def sampler(temperature: float, top_p: float, generator: torch.Generator) -> Choose:
    """Return a choice by chance among the likeliest tokens (nucleus sampling, Holtzman 2020).

    Args:
        temperature: divides the logits; above 0.
        top_p: keep the smallest set of tokens with at least this probability, in (0, 1].
        generator: where the chance comes from; on the CPU, so that a seed means one thing
            everywhere.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}; greedy needs no sampler")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], not {top_p}")

    def choose(logits: Tensor) -> Tensor:
        logits_on_cpu = logits.double().cpu()
        best = logits_on_cpu.max(dim=-1, keepdim=True).values
        scaled = (logits_on_cpu - best) / temperature  # at most 0: no temperature overflows
        probabilities, ids = scaled.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill(before >= top_p, 0.0)
        picked = torch.multinomial(probabilities, 1, generator=generator)
        return ids.gather(-1, picked)[:, 0].to(logits.device)

    return choose


def pad_left(prompts: Sequence[Sequence[int]], modalities: Sequence[int]) -> dict[str, Tensor]:
    """Batch prompts for `decode`: input_ids, attention_mask and modality_ids, [B, T] each."""
    shape = (len(prompts), max(len(prompt) for prompt in prompts))
    input_ids, attention_mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape).long()
    for row, prompt in enumerate(prompts):
        input_ids[row, shape[1] - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        attention_mask[row, shape[1] - len(prompt) :] = 1
    modality_ids = torch.tensor(modalities)[:, None].expand(shape)
    marks = {"attention_mask": attention_mask, "modality_ids": modality_ids}
    return {"input_ids": input_ids, **marks}


@torch.inference_mode()
def decode(
    model: nn.Module,
    prompts: Mapping[str, Tensor],
    images: Mapping[str, Tensor],
    *,
    max_new_tokens: int,
    choose: Choose = greedy,
) -> Generator[Tensor, None, None]:
    """Yield the next token of every row, at most `max_new_tokens` times.

    Args:
        model: a causal language model in evaluation mode.
        prompts: `pad_left`'s batch.
        images: the model's image tensors, empty for text.
        max_new_tokens: tokens a row.
        choose: next-token logits [B, V] -> ids [B].

    Yields:
        [B] ids on the CPU. Where a row ends is the caller's to see: close the iterator when all
        have.
    """
    device = next(model.parameters()).device
    mask, modality = prompts["attention_mask"].to(device), prompts["modality_ids"].to(device)
    inputs = {
        "input_ids": prompts["input_ids"].to(device),
        "position_ids": (mask.cumsum(dim=1) - 1).clamp(min=0),
        **{name: value.to(device) for name, value in images.items()},
    }
    marks = {"modality_ids": modality, "prompt_mask": mask.bool()} if reads_marks(model) else {}
    cache = None
    for _ in range(max_new_tokens):
        output = model(
            **inputs,
            **marks,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        chosen = choose(output.logits[:, -1])
        yield chosen.cpu()
        inputs = {
            "input_ids": chosen[:, None],
            "position_ids": inputs["position_ids"][:, -1:] + 1,
        }
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if marks:
            marks = {
                "modality_ids": modality[:, -1:],
                "prompt_mask": torch.zeros_like(chosen[:, None], dtype=torch.bool),
            }
