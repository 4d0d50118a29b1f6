"""One prompt's LoRA out of a MixLoRA run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn

from varifocal.assemble import Assembly
from varifocal.data.example import Example, Image, Message
from varifocal.errors import ModelError
from varifocal.export.adapters import LoraFiles, for_language_model
from varifocal.models.decoding import pad_left
from varifocal.tuners.mixlora.routed import route


def prompt_example(prompt: str, images: Sequence[Path]) -> Example:
    """Make the conversation of one prompt and its pictures."""
    content = (*(Image(path=path.expanduser()) for path in images), prompt)
    return Example(messages=(Message("user", content),))


def routed_lora(parts: Assembly, example: Example, base_name: str) -> LoraFiles:
    """Take the LoRA that a prompt chooses, for the language model alone.

    Args:
        parts: a MixLoRA run.
        example: the prompt.
        base_name: the language model, for `adapter_config.json`.

    Raises:
        DataError: the prompt or its pictures cannot be read.
        ModelError: the prompt chooses nothing.
    """
    model = cast(PeftModel, parts.model)
    encoded = parts.encoder.encode(example, with_answer=False)
    row: dict[str, Any] = pad_left([encoded.input_ids.tolist()], [encoded.modality])
    row.pop("attention_mask")
    row["prompt_mask"] = torch.ones_like(row["input_ids"], dtype=torch.bool)
    if encoded.images and parts.load_images is not None:
        row |= parts.load_images(encoded.images)
    device = next(cast(nn.Module, model).parameters()).device
    given = {name: cast(Tensor, value).to(device) for name, value in row.items()}
    try:
        routed = route(model, given)
    except ValueError as error:
        raise ModelError(str(error)) from error
    return for_language_model(model, routed.config, routed.weights, base_name)
