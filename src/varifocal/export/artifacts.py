"""Each kind of artifact: written to a folder, and opened from there as anybody would."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from varifocal.assemble import Assembly
from varifocal.data.example import Example
from varifocal.export import gguf
from varifocal.export.adapters import LoraFiles, merge, own_lora, route_lora
from varifocal.export.llava import llava, through_pixels, write_processor
from varifocal.export.order import Order, Target, language_section
from varifocal.export.parity import Case
from varifocal.export.plain import PlainModel, fold_route, language_model, plain
from varifocal.export.routed import routed_lora
from varifocal.export.shards import write_plain
from varifocal.export.template import chat_template
from varifocal.models.load import load_model, load_processor
from varifocal.recipe import Recipe


@dataclass(frozen=True)
class Job:
    """One artifact to make.

    Attributes:
        order: what was asked for.
        recipe: the run's.
        parts: the trained model.
        route: "text" or "image" of an MMA adapter; "" where there is one for both.
        modality: the route's number.
        examples: the conversations of the parity gate.
        cases: what the trained model says to them.
    """

    order: Order
    recipe: Recipe
    parts: Assembly
    route: str
    modality: int
    examples: Sequence[Example]
    cases: Sequence[Case]

    @property
    def form(self) -> Target:
        """The artifact's kind; beside a LLaVA, the text route is a plain language model."""
        return "merged" if self.order.to == "llava" and self.route == "text" else self.order.to

    @property
    def dtype(self) -> torch.dtype:
        """Number format of what is written."""
        return getattr(torch, self.recipe.model.dtype)


@dataclass(frozen=True)
class Made:
    """What was written.

    Attributes:
        model: it, opened again.
        cases: the gate's, with what this kind of model is given.
        left_out: parts of the adapter that it does not hold.
    """

    model: nn.Module
    cases: Sequence[Case]
    left_out: tuple[str, ...] = ()


def make(job: Job, directory: Path) -> Made:
    """Write an artifact into an empty folder, and open it.

    Raises:
        ModelError: the model has no such form.
        RunError: the disk is full.
    """
    if job.form == "merged":
        return Made(_written_plain(job, directory), job.cases)
    if job.form == "llava":
        return _written_llava(job, directory)
    if job.form == "gguf":
        return Made(_written_gguf(job, directory), job.cases)
    files = _lora(job)
    files.write(directory)
    return Made(_on_its_base(job, directory), job.cases, files.left_out)


def _written_plain(job: Job, directory: Path) -> nn.Module:
    content = _plain(job)
    write_plain(content, directory, shard_gib=job.order.shard_gib)
    processor = load_processor(language_section(job.recipe))
    if isinstance(processor, PreTrainedTokenizerBase):
        processor.chat_template = chat_template(job.parts.encoder)
    processor.save_pretrained(directory)
    return _opened(content.kind, directory, job.parts)


def _written_llava(job: Job, directory: Path) -> Made:
    content = llava(job.parts.base, _plain(job), job.parts.processor, job.dtype)
    write_plain(content, directory, shard_gib=job.order.shard_gib)
    write_processor(job.parts, directory)
    cases = through_pixels(job.cases, job.examples, job.parts, directory)
    return Made(_opened(content.kind, directory, job.parts), cases)


def _written_gguf(job: Job, directory: Path) -> nn.Module:
    encoder = job.parts.encoder
    gguf.write_gguf(
        _plain(job),
        load_processor(language_section(job.recipe)),
        directory / gguf.FILE,
        template=chat_template(encoder),
        end_of_turn=encoder.end_of_turn_id,
    )
    return _opened(AutoModelForCausalLM, directory, job.parts, gguf_file=gguf.FILE)


def _plain(job: Job) -> PlainModel:
    """Fold or merge the language model."""
    parts = job.parts
    if job.recipe.tuner.type == "mma":
        return fold_route(cast(PeftModel, parts.model), job.modality, job.dtype)
    merged = merge(parts.model) if isinstance(parts.model, PeftModel) else parts.base
    return plain(language_model(merged)[0], job.dtype)


def _opened(kind: Any, directory: Path, parts: Assembly, **options: Any) -> nn.Module:
    written: PreTrainedModel = language_model(parts.base)[0]
    options["attn_implementation"] = written.config._attn_implementation
    model: Any = kind.from_pretrained(directory, dtype=written.dtype, **options)
    return model.to(written.device).eval()


def _lora(job: Job) -> LoraFiles:
    model, base_name = cast(PeftModel, job.parts.model), job.recipe.model.language_model
    if job.order.prompt is not None:
        return routed_lora(job.parts, job.order.prompt, base_name)
    if job.recipe.tuner.type == "mma":
        return route_lora(model, job.modality, base_name)
    return own_lora(model, base_name)


def _on_its_base(job: Job, adapter: Path) -> nn.Module:
    """Load the language model afresh and put the written LoRA around it."""
    loaded = load_model(language_section(job.recipe)).model
    device = next(job.parts.model.parameters()).device
    with warnings.catch_warnings():  # a bias that cannot be merged: the card says so
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed")
        return PeftModel.from_pretrained(cast(Any, loaded).to(device), str(adapter)).eval()
