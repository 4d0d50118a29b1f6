"""The ordinary LoRA that one prompt chooses, as PEFT's own files."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..plugin import evaluating
from .layer import MixLoraLayer
from .record import listening
from .routing import Chosen


@dataclass(frozen=True)
class RoutedLora:
    """A LoRA with the scaling and linears of the adapter it was taken from.

    Its rank is the number of chosen factors; of chosen experts, the sum of their ranks.

    Attributes:
        config: for `get_peft_model` or a file.
        weights: by name, as `adapter_model.safetensors` holds them: A [r, inputs] and B
            [outputs, r] of each linear, and what the adapter trained whole.
    """

    config: LoraConfig
    weights: dict[str, Tensor]

    def save(self, directory: str | Path) -> None:
        """Write `adapter_config.json` and `adapter_model.safetensors`."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.save_pretrained(str(folder))
        weights = {name: weight.cpu().contiguous() for name, weight in self.weights.items()}
        save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def route(model: nn.Module, prompt: Tensor | Mapping[str, Any]) -> RoutedLora:
    """Take the ordinary LoRA that a prompt chooses.

    On the prompt and whatever follows it, that LoRA gives the logits of the adapter: A's rows are
    the chosen factors, B's columns their partners times the pair's weight. In a
    conversation it is the choice of the last turn, which differs from what earlier turns used.

    Args:
        model: a model with an active adapter, MixLoRA or LoRA experts with `router="instance"`, as
            a `PeftModel` or not.
        prompt: `input_ids` [T] or [1, T], or the model's arguments for one row, such as
            `input_ids`, `pixel_values`, `prompt_mask`.

    Returns:
        The LoRA; nothing is written.

    Raises:
        ValueError: if the prompt is not one row, or a linear made no choice or several (a vision
            tower's, with several images; one for each token), or no adapter is active.
    """
    arguments = {"input_ids": prompt} if isinstance(prompt, Tensor) else dict(prompt)
    ids = arguments.get("input_ids")
    if ids is not None and ids.dim() == 1:
        arguments["input_ids"] = ids = ids[None]
    if ids is not None and len(ids) != 1:
        raise ValueError(f"route takes the prompt of one row; got {len(ids)} rows")
    chosen: dict[str, Chosen] = {}
    with torch.no_grad(), evaluating(model), listening(model, lambda c: _add(chosen, c)):
        model(**arguments, use_cache=False)
    layers = {
        module.name: module
        for module in model.modules()
        if isinstance(module, MixLoraLayer) and module.adapter() is not None
    }
    if any(_leaves(layer, chosen[name]) for name, layer in layers.items() if name in chosen):
        raise ValueError(
            "the prompt has no image, and text_route='base' leaves it to the base model: there is "
            "no LoRA to take"
        )
    if not layers:
        raise ValueError("no MixLoRA adapter is active")
    if missing := [name for name in layers if name not in chosen]:
        raise ValueError(f"the prompt did not run through {missing[0]}, so it chose nothing there")
    weights: dict[str, Tensor] = {}
    for name, layer in layers.items():
        weights |= _lora_weights(name, layer, chosen[name])
    rank = len(next(iter(weights.values())))
    return RoutedLora(_lora_config(layers, rank), weights | _trained_whole(model, layers))


def save_routed(
    model: nn.Module, prompt: Tensor | Mapping[str, Any], directory: str | Path
) -> None:
    """Write the ordinary LoRA that a prompt chooses as PEFT files; see `route`."""
    route(model, prompt).save(directory)


def _leaves(layer: MixLoraLayer, chosen: Chosen) -> bool:
    config = layer.mixlora_config[cast(str, layer.adapter())]
    return layer.in_decoder and config.text_route == "base" and not chosen.groups.decided.any()


def _add(chosen: dict[str, Chosen], choice: Chosen) -> None:
    if choice.groups.members is None:
        raise ValueError(
            f"{choice.layer} weighs its experts for every token (router='token'), so a prompt "
            "chooses no ordinary LoRA; train with router='instance'"
        )
    if choice.layer in chosen or len(choice.groups.segments) != 1:
        raise ValueError(
            f"{choice.layer} chose factors several times for one prompt; an ordinary LoRA has room "
            "for one choice"
        )
    chosen[choice.layer] = choice


def _lora_weights(name: str, layer: MixLoraLayer, chosen: Chosen) -> dict[str, Tensor]:
    adapter = cast(str, layer.adapter())
    groups = torch.nonzero(chosen.groups.decided[0])
    last = int(groups[-1]) if len(groups) else 0
    down, up = layer.lora_of(adapter, chosen.choice, last)
    return {
        f"base_model.model.{name}.lora_A.weight": down,
        f"base_model.model.{name}.lora_B.weight": up,
    }


def _lora_config(layers: dict[str, MixLoraLayer], rank: int) -> LoraConfig:
    layer = next(iter(layers.values()))
    config = cast(Any, layer.mixlora_config[cast(str, layer.adapter())])
    return LoraConfig(
        r=rank,
        lora_alpha=cast(int, config.scaling * rank),
        lora_dropout=0.0,
        target_modules=sorted(layers),
        modules_to_save=config.modules_to_save,
        fan_in_fan_out=any(isinstance(layer.base_layer, Conv1D) for layer in layers.values()),
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    )


def _trained_whole(model: nn.Module, layers: dict[str, MixLoraLayer]) -> dict[str, Tensor]:
    """Copy the modules that the adapter trained whole, such as a connector."""
    if not isinstance(model, PeftModel):
        return {}
    adapter = next(iter(layers.values())).adapter()
    saved = get_peft_model_state_dict(model, adapter_name=cast(str, adapter))
    return {name: weight for name, weight in saved.items() if ".mixlora_" not in name}
