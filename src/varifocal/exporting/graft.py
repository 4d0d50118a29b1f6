"""A grafted run as one folder: language model, vision tower, connector, processor, adapter.

What merges is merged. An adapter that answers by modality or by prompt equals no single set of
weights, so its files lie in the same folder, where transformers and PEFT find them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from varifocal.assemble import Assembly
from varifocal.data.example import Example
from varifocal.errors import ModelError
from varifocal.exporting.parity import Case
from varifocal.exporting.plain_tensors import PlainModel, chat_template, plain_model
from varifocal.models.grafted import GraftedForConditionalGeneration
from varifocal.models.processor import with_image_parts
from varifocal.models.saved import WEIGHTS

INSIDE = ("mma", "mixlora", "lora_experts")
"""Tuners whose adapter stays an adapter; of others, those that leave text to the base model."""


def check_graft(base: PreTrainedModel) -> None:
    """Refuse a run whose model is not a graft.

    Raises:
        ModelError: it is a language model, or a vision-language model of transformers.
    """
    if not isinstance(base, GraftedForConditionalGeneration):
        raise ModelError(
            "--to model is for a language model with a vision tower grafted on, and this run's is "
            f"{type(base).__name__}: use --to merged or lora"
        )


def whole_graft(base: PreTrainedModel, dtype: torch.dtype, *, merge: bool) -> PlainModel:
    """Take a graft with its LoRAs merged, or left out, and without other adapters.

    Args:
        base: the graft inside any PEFT wrapper.
        dtype: of language model and tower; the connector stays in float32, in which it computes.
        merge: whether LoRAs are merged.
    """
    artifact = plain_model(base, dtype, merge=merge)
    shapes = {
        name: shape.float() if name.startswith("connector.") else shape
        for name, shape in artifact.shapes.items()
    }
    return replace(artifact, shapes=shapes)


def write_graft_processor(parts: Assembly, directory: Path) -> None:
    """Write the run's processor with the chat template that it was trained with."""
    processor: Any = parts.processor
    own = processor.chat_template
    processor.chat_template = with_image_parts(chat_template(parts.encoder), processor.image_token)
    try:
        processor.save_pretrained(directory)
    finally:
        processor.chat_template = own


def write_adapter(model: PeftModel, directory: Path, what: str) -> None:
    """Write an adapter into its model's folder, and read its tensors back.

    Raises:
        ModelError: a tensor was read back as something else.
    """
    cast(Any, model).save_pretrained(directory, save_embedding_layers=False)
    stored = load_file(directory / WEIGHTS)
    state = get_peft_model_state_dict(
        model, state_dict=model.state_dict(), save_embedding_layers=False
    )
    for name in sorted(stored.keys() | state.keys()):
        if name not in stored or name not in state or not _is_equal(stored[name], state[name]):
            raise ModelError(
                f"{what}: the adapter's tensor {name} was read back as something else than was to "
                "be written; nothing was written. Report this with the run's recipe"
            )


def _is_equal(stored: Tensor, own: Tensor) -> bool:
    return stored.shape == own.shape and torch.equal(stored, own.detach().to("cpu", stored.dtype))


def with_prompt_marks(
    cases: Sequence[Case], examples: Sequence[Example], parts: Assembly
) -> list[Case]:
    """Mark the prompt of answered conversations, by which an adapter may route.

    A conversation without its answer needs no mark: all of it is prompt.
    """
    return [
        replace(case, inputs={**case.inputs, "prompt_mask": _prompt_mask(example, parts)})
        if example.messages[-1].role == "assistant"
        else case
        for case, example in zip(cases, examples, strict=True)
    ]


def _prompt_mask(example: Example, parts: Assembly) -> Tensor:
    encoded = parts.encoder.encode(example, with_answer=True)
    return torch.as_tensor(encoded.prompt_mask)[None]  # [1, T]
