"""A trained adapter as PEFT's own LoRA, for the language model alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from varifocal.assemble import Assembly
from varifocal.data.example import Example, Image, ImageLike, Message
from varifocal.errors import ModelError
from varifocal.exporting.plain_tensors import as_stored, language_model
from varifocal.models.decoding import pad_left
from varifocal.tuners.mixlora.routed import route
from varifocal.tuners.mma.folding import fold_maps, readers
from varifocal.writing import unwritable_is_an_error

_WRAPPED = "base_model.model."


@dataclass(frozen=True)
class LoraFiles:
    """A LoRA as PEFT keeps it.

    Attributes:
        config: `adapter_config.json`.
        weights: by name, as `adapter_model.safetensors` holds them.
        left_out: parts of the adapter that lie outside the language model.
    """

    config: LoraConfig
    weights: dict[str, Tensor]
    left_out: tuple[str, ...] = ()

    def write(self, directory: Path) -> None:
        """Write both files into a folder.

        Raises:
            RunError: the disk is full.
        """
        ready = {name: as_stored(tensor) for name, tensor in self.weights.items()}
        with unwritable_is_an_error(directory):
            self.config.save_pretrained(str(directory))
            save_file(ready, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def route_lora(model: PeftModel, modality: int, base_name: str) -> LoraFiles:
    """Write an MMA adapter's route as a LoRA: A = D, B = W U, and W c as B's bias.

    An adapter without biases (`tuner.projection_bias: false`) gives a LoRA without any, for vLLM.

    Args:
        model: with an active MMA adapter.
        modality: 0 text, 1 image.
        base_name: the language model, for `adapter_config.json`.

    Raises:
        ModelError: something next to plain linears reads an adapted norm.
    """
    _, prefix = language_model(cast(PreTrainedModel, model.get_base_model()))
    try:
        maps, names = fold_maps(model, modality), readers(model)
    except ValueError as error:
        raise ModelError(f"{error}; so it cannot be written as a LoRA either") from error
    weights: dict[str, Tensor] = {}
    rank, has_bias = 0, cast(Any, model.active_peft_config).projection_bias
    for norm, linears in names.items():
        affine = maps[norm]
        rank = affine.down.shape[0]
        for linear in linears:
            weight = _weight(model.get_base_model().get_submodule(linear)).to(affine.up)
            stem = f"{_WRAPPED}{linear.removeprefix(prefix)}"
            weights[f"{stem}.lora_A.weight"] = affine.down
            weights[f"{stem}.lora_B.weight"] = weight @ affine.up
            if has_bias:
                weights[f"{stem}.lora_B.bias"] = weight @ affine.bias
    config = _config(weights, base_name, r=rank, lora_alpha=rank, lora_bias=has_bias)
    config.fan_in_fan_out = _turned(model, names)
    return LoraFiles(config, weights)


def own_lora(model: PeftModel, base_name: str) -> LoraFiles:
    """Take a LoRA run's adapter, without what lies outside the language model."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return for_language_model(model, cast(LoraConfig, model.active_peft_config), state, base_name)


def for_language_model(
    model: PeftModel, config: LoraConfig, state: Mapping[str, Tensor], base_name: str
) -> LoraFiles:
    """Rename a LoRA's tensors for the language model alone.

    Args:
        model: around the base that the names belong to.
        config: of the LoRA.
        state: its tensors, under PEFT's names.
        base_name: the language model, for `adapter_config.json`.

    Raises:
        ModelError: it adapts nothing in the language model.
    """
    _, prefix = language_model(cast(PreTrainedModel, model.get_base_model()))
    start = _WRAPPED + prefix
    weights = {
        _WRAPPED + name.removeprefix(start): tensor
        for name, tensor in state.items()
        if name.startswith(start) and ".lora_" in name
    }
    if not weights:
        raise ModelError("the adapter changes nothing in the language model: there is no LoRA")
    names = {name.removeprefix(_WRAPPED) for name in weights}
    outside = {
        name.removeprefix(_WRAPPED).split(".")[0]
        for name in state
        if name.removeprefix(start) not in names
    }
    written = _config(weights, base_name, r=config.r, lora_alpha=config.lora_alpha)
    for key in ("use_rslora", "use_dora", "lora_bias", "fan_in_fan_out"):
        setattr(written, key, getattr(config, key))
    written.rank_pattern = _without(prefix, config.rank_pattern)
    written.alpha_pattern = _without(prefix, config.alpha_pattern)
    return LoraFiles(written, weights, tuple(sorted(outside - {prefix.rstrip(".")})))


def _without(prefix: str, pattern: Mapping[str, Any] | None) -> dict[str, Any]:
    """Name layers as the language model does, with PEFT's own "^" in front or without."""
    return {
        f"^{name[1:].removeprefix(prefix)}" if name[:1] == "^" else name.removeprefix(prefix): value
        for name, value in (pattern or {}).items()
    }


def _config(weights: Mapping[str, Tensor], base_name: str, **settings: Any) -> LoraConfig:
    """Name the adapted linears in full: an ending could mean others too."""
    linears = {name.removeprefix(_WRAPPED).partition(".lora_")[0] for name in weights}
    return LoraConfig(
        target_modules=sorted(linears),
        base_model_name_or_path=base_name,
        task_type="CAUSAL_LM",
        inference_mode=True,
        lora_dropout=0.0,
        **settings,
    )


def _weight(linear: nn.Module) -> Tensor:
    weight = cast(Tensor, linear.weight).detach()
    return weight if isinstance(linear, nn.Linear) else weight.T


def _turned(model: PeftModel, names: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether the linears hold [inputs, outputs], as GPT-2's do."""
    linears = [model.get_base_model().get_submodule(n) for own in names.values() for n in own]
    return any(not isinstance(linear, nn.Linear) for linear in linears)


def prompt_example(prompt: str, images: Sequence[ImageLike]) -> Example:
    """Make the conversation of one prompt and its images."""
    content = (*map(Image.of, images), prompt)
    return Example(messages=(Message("user", content),))


def routed_lora(parts: Assembly, example: Example, base_name: str) -> LoraFiles:
    """Take the LoRA that a prompt chooses, for the language model alone.

    Args:
        parts: a run of MixLoRA, or of LoRA experts that are chosen by prompt.
        example: the prompt.
        base_name: the language model, for `adapter_config.json`.

    Raises:
        DataError: the prompt or its images cannot be read.
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
