"""Projectors and LoRAs of LLaVA's code, by name."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from varifocal.errors import ModelError
from varifocal.models.layouts.rule import Rule

_OURS = "base_model.model."
_PEFT = "base_model.model."


def plain_names(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Name tensors as LLaVA's model has them: `model.mm_projector.0.weight`.

    PEFT's and, in old files, one more `model.` stand before names that were saved with a LoRA.

    Raises:
        ModelError: two names become the same.
    """
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(_PEFT)
        if short.startswith("model.model."):
            short = short.removeprefix("model.")
        if short in named:
            raise ModelError(f"{source} holds {short} twice")
        named[short] = tensor
    return named


def projector_rules(num_linears: int) -> list[Rule]:
    """Name a projector's tensors: one linear, or linears 0 and 2 of a sequence."""
    places = {"": "0."} if num_linears == 1 else {"0.": "0.", "2.": "2."}
    return [
        Rule(f"{_OURS}connector.local.{ours}{kind}", (f"model.mm_projector.{theirs}{kind}",))
        for theirs, ours in places.items()
        for kind in ("weight", "bias")
    ]


def lora_rules(names: Iterable[str]) -> list[Rule]:
    """Name a LoRA's tensors: those of the language model, whose names it has."""
    return [
        Rule(f"{_OURS}language_model.{name}", (name,))
        for name in names
        if name.endswith((".lora_A.weight", ".lora_B.weight"))
    ]
