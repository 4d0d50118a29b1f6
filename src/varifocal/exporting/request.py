"""What an export is asked for, and whether a run can give it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from varifocal.assemble import Assembly
from varifocal.data.example import Example
from varifocal.errors import ModelError
from varifocal.exporting.gguf import Q8_0, check_gguf
from varifocal.exporting.graft import INSIDE, check_graft
from varifocal.exporting.llava import check_llava_export
from varifocal.exporting.mmproj import check_mmproj
from varifocal.exporting.plain_tensors import language_model
from varifocal.exporting.vocabulary import vocabulary_of
from varifocal.models.load import load_processor
from varifocal.recipe import (
    LoraExpertsSection,
    ModelSection,
    PeftSection,
    Recipe,
    TunerSection,
    leaves_text,
)
from varifocal.run import RunDirectory

Target = Literal["merged", "lora", "route", "llava", "gguf", "llamacpp", "model"]


@dataclass(frozen=True)
class Order:
    """What an export was asked for.

    Attributes:
        run: the run directory.
        to: the artifact's kind.
        dtype: number format of the weights; by default the run's. `q8_0` is for GGUF alone.
        num_prompts: prompts of the parity gate.
        max_gap: largest difference of two logits that passes; by default as rounding allows.
        shard_gib: most GiB a safetensors file.
        prompt: whose LoRA is taken, for `route`.
        command: that was typed, for the card.
        strength: factor on what the adapter changes.
        serves: the server by whose rules the artifact is checked.
    """

    run: RunDirectory
    to: Target
    dtype: str | None = None
    num_prompts: int = 16
    max_gap: float | None = None
    shard_gib: float = 4.0
    prompt: Example | None = None
    command: str = ""
    strength: float = 1.0
    serves: Literal["vllm"] | None = None


def is_pair(order: Order, recipe: Recipe) -> bool:
    """Whether the export is a LLaVA of the base and the image route's LoRA for it."""
    return order.serves == "vllm" and order.to == "llava" and leaves_text(recipe.tuner)


def keeps_adapter(order: Order, recipe: Recipe) -> bool:
    """Whether the artifact holds the adapter as an adapter, which serves every row."""
    return order.to == "model" and (recipe.tuner.type in INSIDE or leaves_text(recipe.tuner))


def check_possible(order: Order, recipe: Recipe, parts: Assembly) -> None:
    """Refuse what a run cannot give, before it answers a prompt.

    Raises:
        ModelError: this tuner, base or connector has no such form; the fix is said.
    """
    if order.dtype == Q8_0 and order.to not in ("gguf", "llamacpp"):
        raise ModelError(
            f"{Q8_0} is a number format of GGUF files: use --to gguf or --to llamacpp, or another "
            "--dtype"
        )
    _check_prompt(order, recipe.tuner.type)
    _check_tuner(order, recipe.tuner)
    _check_server(order, recipe)
    if order.to == "model":
        check_graft(parts.base)
    elif not getattr(recipe.tuner, "router", True):
        raise ModelError(
            "export folds MMA by its routes, and this run's adapters have none (tuner.router: "
            "false); serve the run itself, or train it with tuner.router: true"
        )
    if getattr(parts.base, "is_quantized", False):
        raise ModelError(
            f"the run's base is held in {recipe.model.quantization}; open it unquantised first: "
            f"set model.quantization to null in {order.run.recipe} (the adapter fits both), and "
            "the parity gate will compare with that"
        )
    if order.to == "llava":
        check_llava_export(parts.base, merges=recipe.tuner.type in ("lora", "peft"))
    if order.to == "llamacpp":
        check_mmproj(parts.base, merges=recipe.tuner.type in ("lora", "peft"))
    if order.to in ("gguf", "llamacpp"):
        check_gguf(language_model(parts.base)[0].config)
        vocabulary_of(load_processor(language_section(recipe)), parts.encoder)


def _check_prompt(order: Order, kind: str) -> None:
    if (order.to == "route") != (order.prompt is not None):
        raise ModelError("--to route takes the LoRA that one prompt chooses: give --prompt with it")
    if order.to == "route" and kind not in ("mixlora", "lora_experts"):
        raise ModelError(
            f"--to route is for MixLoRA and LoRA experts, and this run's tuner is {kind}: use --to "
            "lora or merged"
        )


def _check_tuner(order: Order, tuner: TunerSection) -> None:
    kind = tuner.type
    if isinstance(tuner, LoraExpertsSection):
        _check_experts(order, tuner)
    if kind == "mixlora" and order.to not in ("route", "model"):
        raise ModelError(
            "MixLoRA picks other factors for every prompt, so no single set of weights equals it; "
            "one prompt's LoRA can leave: "
            f"varifocal export {shlex.quote(str(order.run.root))} --to route --prompt '...'; "
            "--to model writes the graft with its adapter"
        )
    if isinstance(tuner, PeftSection) and tuner.method != "lora":
        raise ModelError(
            f"export merges or writes a LoRA, and this run's tuner is PEFT's {tuner.method}: serve "
            "the run itself, or train it with tuner.method: lora"
        )
    if order.to == "lora" and kind in ("none", "full"):
        changed = "no weight of" if kind == "none" else "every weight of"
        raise ModelError(
            f"this run trained {changed} the language model, so there is no LoRA of it; "
            "use --to merged"
        )


def _check_experts(order: Order, tuner: LoraExpertsSection) -> None:
    if order.to == "model" or (order.to == "route" and tuner.router == "instance"):
        return
    whose, instead = "prompt", " one prompt's LoRA (--to route --prompt '...'), or"
    if tuner.router == "token":
        whose, instead = "token", ""
    raise ModelError(
        f"every {whose} weighs this run's LoRA experts anew, so no single set of weights equals "
        f"them; export{instead} the graft with its adapter (--to model)"
    )


def _check_server(order: Order, recipe: Recipe) -> None:
    if order.serves is None:
        return
    if order.to not in ("lora", "llava", "merged"):
        raise ModelError(f"vLLM reads --to lora, llava or merged, and not {order.to}")
    adapter = order.to == "lora" or is_pair(order, recipe)
    if adapter and recipe.tuner.type == "mma" and recipe.tuner.projection_bias:
        raise ModelError(
            "vLLM takes no bias in an adapter, and this run's MMA has biases: train with "
            "tuner.projection_bias: false, or serve --to merged, into which they fold exactly"
        )


def language_section(recipe: Recipe) -> ModelSection:
    """Return a recipe's model section without its vision tower and its quantisation."""
    return recipe.model.without_tower(quantization=None)
