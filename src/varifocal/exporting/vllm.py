"""What vLLM takes of an adapter: its own rules, read in its source, put to the written files.

vLLM itself was not run. Each rule names the file of vLLM in which it stands; they were read in
releases 0.22 to 0.33. What vLLM would refuse is refused here, and so is what it would load and
silently leave out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from varifocal.errors import ModelError
from varifocal.writing import unwritable_is_an_error, write_json

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Of `--max-lora-rank` (vllm/config/lora.py, `MaxLoRARanks`)."""

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ENDS = (".lora_A.weight", ".lora_B.weight")
_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_INSIDE = "base_model.model."
_FILES = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


def check_lora(directory: Path) -> int:
    """Hold a written LoRA against vLLM's rules.

    Args:
        directory: of PEFT's two files.

    Returns:
        The `--max-lora-rank` that it needs.

    Raises:
        ModelError: vLLM would refuse it, or leave a part of it out.
    """
    page = json.loads((directory / _CONFIG).read_text())
    with safe_open(directory / _WEIGHTS, "pt") as file:
        names = list(file.keys())
    broken = next(_broken(page, names), None)
    if broken is not None:
        rule, fix = broken
        raise ModelError(f"vLLM would not serve {directory.name or directory}: {rule}; {fix}")
    return next(rank for rank in RANKS if rank >= page["r"])


def _broken(page: dict[str, Any], names: list[str]) -> Iterator[tuple[str, str]]:
    """Yield each rule that an adapter breaks, and what to do."""
    if page.get("lora_bias") or page.get("bias", "none") != "none":
        yield (
            "it takes no bias in an adapter (vllm/lora/peft_helper.py, validate_legal)",
            "train with tuner.projection_bias: false, or serve --to merged",
        )
    if page.get("modules_to_save"):
        yield (
            "modules_to_save has to be empty (vllm/lora/peft_helper.py, _validate_features)",
            "use --to merged or llava, which write such modules into the model",
        )
    if page.get("use_dora"):
        yield "it takes no DoRA (vllm/lora/peft_helper.py)", "use --to merged"
    if page["r"] > RANKS[-1]:
        yield (
            f"its rank is {page['r']}, and {RANKS[-1]} is the largest (vllm/config/lora.py)",
            "use --to merged",
        )
    if page.get("rank_pattern") or page.get("alpha_pattern"):
        yield (
            "it has layers of other rank or scale, and releases before rank_pattern was known "
            "scale all alike (vllm/lora/peft_helper.py)",
            "use --to merged",
        )
    for name in names:
        stem = name.removesuffix(_ENDS[0]).removesuffix(_ENDS[1])
        if not name.endswith(_ENDS):
            yield f"{name} is unsupported LoRA weight (vllm/lora/utils.py)", "use --to merged"
        elif not name.startswith(_INSIDE) or stem.rsplit(".", 1)[-1] not in _LINEARS:
            yield (
                f"{stem} is no linear layer of a LLaMA-like model there, so it would be refused or "
                "left out (vllm/lora/lora_model.py, check_unexpected_modules)",
                "use --to merged",
            )


def name_for_llava(directory: Path) -> None:
    """Rename a language model's LoRA for a LLaVA around it.

    vLLM maps `model.language_model.` to its own names of a LLaVA's layers, and PEFT finds the same
    names in transformers' LlavaForConditionalGeneration.

    Raises:
        RunError: the disk is full.
    """
    page = json.loads((directory / _CONFIG).read_text())
    page["target_modules"] = sorted(_in_llava(name) for name in page["target_modules"])
    page["base_model_name_or_path"] = "../text"
    tensors = load_file(directory / _WEIGHTS)
    renamed = {
        _INSIDE + _in_llava(name.removeprefix(_INSIDE)): tensor for name, tensor in tensors.items()
    }
    with unwritable_is_an_error(directory):
        save_file(renamed, directory / _WEIGHTS, metadata={"format": "pt"})
        write_json(directory / _CONFIG, page)


def _in_llava(name: str) -> str:
    inside = name.removeprefix("model.")
    return name if inside == name else f"model.language_model.{inside}"


def check_llava_folder(directory: Path) -> None:
    """Hold a written LLaVA against what vLLM reads of it.

    Raises:
        ModelError: a file is missing, or the placeholder has no row or another id.
    """
    present = {path.name for path in directory.iterdir()}
    missing = [name for name in _FILES if name not in present]
    if not present & set(_PROCESSORS):
        missing.append(_PROCESSORS[0])
    if missing:
        raise ModelError(
            f"vLLM would not serve {directory.name}: it has no {', '.join(missing)} "
            "(vllm/transformers_utils/processor.py); report this with the run's recipe"
        )
    config = json.loads((directory / "config.json").read_text())
    token = config.get("image_token_index", config.get("image_token_id"))
    added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
    ids = {entry["id"] for entry in added}
    rows = config["text_config"]["vocab_size"]
    if token not in ids or token >= rows:
        raise ModelError(
            f"vLLM would not serve {directory.name}: its image token {token} is no added token of "
            f"tokenizer.json or has no row among {rows} (vllm/model_executor/models/llava.py); "
            "report this with the run's recipe"
        )
