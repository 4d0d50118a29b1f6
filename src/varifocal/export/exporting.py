"""From a run directory to artifacts that others load; nothing leaves without the gate's consent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from varifocal.assemble import Assembly, open_run
from varifocal.data.example import Example
from varifocal.errors import ModelError, RunError
from varifocal.export.adapters import LoraFiles, merge, own_lora, route_lora
from varifocal.export.card import write_card
from varifocal.export.parity import Case, Parity, compare, prompts, references
from varifocal.export.plain import PlainModel, fold_route, language_model, plain
from varifocal.export.routed import routed_lora
from varifocal.export.shards import write_plain
from varifocal.models.load import load_model, load_processor
from varifocal.recipe import ModelSection, Recipe
from varifocal.run import RunDirectory, whole_directory, write_json, write_text

Target = Literal["merged", "lora", "route"]
ROUTES = {"text": 0, "image": 1}


@dataclass(frozen=True)
class Exported:
    """One artifact.

    Attributes:
        directory: where it lies.
        parity: how near it is to the trained model.
        notes: what a user has to know.
    """

    directory: Path
    parity: Parity
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """What an export was asked for.

    Attributes:
        run: the run directory.
        to: the artifact's kind.
        dtype: number format of the weights; by default the run's.
        num_prompts: prompts of the parity gate.
        max_gap: largest difference of two logits that passes; by default as rounding allows.
        shard_gib: most GiB a file.
        prompt: whose LoRA is taken, for `route`.
        command: that was typed, for the card.
    """

    run: RunDirectory
    to: Target
    dtype: str | None = None
    num_prompts: int = 16
    max_gap: float | None = None
    shard_gib: float = 4.0
    prompt: Example | None = None
    command: str = ""


def export(order: Order, out: Path, tell: Callable[[str], None] | None = None) -> list[Exported]:
    """Write a run as plain checkpoints or as LoRAs, and hold each against the trained model.

    MMA gives two artifacts, `out/text` and `out/image`, since its weights differ by modality; any
    other tuner gives one, `out` itself. Each is written whole or not at all.

    Args:
        order: what is asked for.
        out: the folder; what stood there is replaced.
        tell: told of each step in a few words.

    Raises:
        RunError: there is no finished run, or the disk is full.
        ModelError: this tuner has no such form, or the artifact failed the parity gate.
    """
    say = tell or (lambda text: None)
    recipe, parts = open_run(order.run.root, dtype=order.dtype)
    kind = recipe.tuner.type
    _check_possible(order, recipe, parts)
    say(f"the trained model answers {order.num_prompts} prompts")
    done = []
    for name, modality in ROUTES.items() if kind == "mma" else (("", 0),):
        asked = [order.prompt] if order.prompt else _examples(order, parts, name)
        cases = references(parts, asked, modality)
        target = out / name if name else out
        say(f"{target}: writing and comparing")
        done.append(_write(order, recipe, parts, (name, modality), cases, target))
    return done


def _check_possible(order: Order, recipe: Recipe, parts: Assembly) -> None:
    kind = recipe.tuner.type
    if (order.to == "route") != (order.prompt is not None):
        raise ModelError("--to route takes the LoRA that one prompt chooses: give --prompt with it")
    if order.to == "route" and kind != "mixlora":
        raise ModelError(
            f"--to route is for MixLoRA, and this run's tuner is {kind}: use --to lora or merged"
        )
    if kind == "mixlora" and order.to != "route":
        raise ModelError(
            "MixLoRA picks other factors for every prompt, so no single set of weights equals it; "
            f"one prompt's LoRA can leave: varifocal export {order.run.root} --to route --prompt "
            "'...'"
        )
    if order.to == "lora" and kind in ("none", "full"):
        changed = "no weight of" if kind == "none" else "every weight of"
        raise ModelError(
            f"this run trained {changed} the language model, so there is no LoRA of it; "
            "use --to merged"
        )
    if getattr(parts.base, "is_quantized", False):
        raise ModelError(
            f"the run's base is held in {recipe.model.quantization}; open it unquantised first: "
            f"set model.quantization to null in {order.run.recipe} (the adapter fits both), and "
            "the parity gate will compare with that"
        )


def _examples(order: Order, parts: Assembly, route: str) -> Sequence[Example]:
    sees = parts.load_images is not None
    if route:
        return list(prompts(order.num_prompts, pictures=sees and route == "image"))
    half = order.num_prompts // 2 if sees else 0
    return [*prompts(order.num_prompts - half, pictures=False), *prompts(half, pictures=True)]


def _write(
    order: Order,
    recipe: Recipe,
    parts: Assembly,
    route: tuple[str, int],
    cases: Sequence[Case],
    target: Path,
) -> Exported:
    name, modality = route
    notes = tuple(_notes(recipe, parts, name))
    dtype = getattr(torch, recipe.model.dtype)
    with whole_directory(target) as staging:
        if order.to == "merged":
            model = _written_plain(order, recipe, parts, modality, staging)
        else:
            files = _lora(order, recipe, parts, modality)
            notes += tuple(f"The run's {part} is not in a LoRA." for part in files.left_out)
            files.write(staging)
            model = _on_its_base(recipe, parts, staging)
        parity = compare(cases, model, dtype, order.max_gap)
        parity.check(str(target))
        _write_papers(order, recipe, name, parity, notes, staging)
    return Exported(target, parity, notes)


def _written_plain(
    order: Order, recipe: Recipe, parts: Assembly, modality: int, staging: Path
) -> nn.Module:
    """Write a plain checkpoint and open it as anybody would."""
    content = _plain(recipe, parts, modality)
    write_plain(content, staging, shard_gib=order.shard_gib)
    section = _language_section(recipe)
    load_processor(section).save_pretrained(staging)
    return _opened(content.kind, staging, parts)


def _plain(recipe: Recipe, parts: Assembly, modality: int) -> PlainModel:
    dtype = getattr(torch, recipe.model.dtype)
    if recipe.tuner.type == "mma":
        return fold_route(cast(PeftModel, parts.model), modality, dtype)
    merged = merge(parts.model) if isinstance(parts.model, PeftModel) else parts.base
    return plain(language_model(merged)[0], dtype)


def _opened(kind: type[PreTrainedModel], directory: Path, parts: Assembly) -> nn.Module:
    written = language_model(parts.base)[0]
    options: dict[str, Any] = {"attn_implementation": written.config._attn_implementation}
    model: Any = kind.from_pretrained(directory, dtype=written.dtype, **options)
    return model.to(written.device).eval()


def _lora(order: Order, recipe: Recipe, parts: Assembly, modality: int) -> LoraFiles:
    model, base_name = cast(PeftModel, parts.model), recipe.model.language_model
    if order.prompt is not None:
        return routed_lora(parts, order.prompt, base_name)
    if recipe.tuner.type == "mma":
        return route_lora(model, modality, base_name)
    return own_lora(model, base_name)


def _on_its_base(recipe: Recipe, parts: Assembly, adapter: Path) -> nn.Module:
    """Load the language model afresh and put the written LoRA around it."""
    loaded = load_model(_language_section(recipe)).model
    device = next(parts.model.parameters()).device
    return PeftModel.from_pretrained(cast(Any, loaded.to(device)), str(adapter)).eval()


def _language_section(recipe: Recipe) -> ModelSection:
    changes = {"vision_tower": None, "connector": None, "quantization": None}
    return recipe.model.model_copy(update=changes)


def _notes(recipe: Recipe, parts: Assembly, route: str) -> Iterator[str]:
    grafted = language_model(parts.base)[1] != ""
    if route == "text":
        yield "The text route: what the model does with rows that show no picture."
    if route == "image":
        yield "The image route: what the model does with rows that show a picture."
    if grafted:
        yield (
            "The language model alone: vision tower and connector stay in the run. Fed with their "
            "visual tokens as `inputs_embeds`, the image route gives the run's logits."
            if route == "image"
            else "The language model alone, without vision tower and connector."
        )
    if route and grafted and getattr(recipe.tuner, "adapt_vision_tower", False):
        yield (
            "The vision tower's adapters, where it has any, are routed by each picture's own state "
            "and have no folded form; they stay in the run."
        )


def _write_papers(
    order: Order,
    recipe: Recipe,
    route: str,
    parity: Parity,
    notes: Sequence[str],
    directory: Path,
) -> None:
    merged = order.to == "merged"
    base = recipe.model.language_model
    load = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "model = AutoModelForCausalLM.from_pretrained(HERE)\n"
        "tokenizer = AutoTokenizer.from_pretrained(HERE)"
        if merged
        else "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        "model = PeftModel.from_pretrained(base, HERE)"
    )
    title = f"{recipe.name or order.run.root.name}{f', {route} route' if route else ''}"
    card = write_card(
        title,
        base=base,
        library="transformers" if merged else "peft",
        load=load,
        parity=parity,
        notes=notes,
        command=order.command or f"varifocal export {order.run.root} --to {order.to}",
    )
    write_text(directory / "README.md", card)
    write_json(directory / "parity.json", {**asdict(parity), "passed": parity.passed})
    for file in directory.iterdir():
        file.chmod(0o644)  # an artifact is for others, too


def read_parity(directory: Path) -> dict[str, Any]:
    """Read an artifact's parity back.

    Raises:
        RunError: the folder is no export.
    """
    file = directory / "parity.json"
    if not file.is_file():
        raise RunError(f"{directory} is no export of Varifocal: it has no parity.json")
    return json.loads(file.read_text())
