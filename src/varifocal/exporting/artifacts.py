"""Each kind of artifact: written to a folder, and opened from there as anybody would."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from varifocal.assemble import Assembly
from varifocal.data.example import Example
from varifocal.exporting import gguf
from varifocal.exporting.adapters import LoraFiles, own_lora, route_lora, routed_lora
from varifocal.exporting.end_of_turn import Answered
from varifocal.exporting.graft import (
    whole_graft,
    with_prompt_marks,
    write_adapter,
    write_graft_processor,
)
from varifocal.exporting.layer_check import check_layers, lora_probes, mma_probes
from varifocal.exporting.llava import join_llava, through_pixels, write_processor
from varifocal.exporting.merging import Produce, plain_tensors, shared_table_is_adapted, wide
from varifocal.exporting.mmproj import MMPROJ, check_written_mmproj, write_mmproj
from varifocal.exporting.parity import Case
from varifocal.exporting.plain_tensors import (
    PlainModel,
    chat_template,
    fold_route,
    language_model,
    plain_model,
    write_plain,
)
from varifocal.exporting.request import Order, Target, is_pair, keeps_adapter, language_section
from varifocal.exporting.stored import Wanted, check_stored, check_stored_lora
from varifocal.exporting.vllm import check_llava_folder, check_lora, name_for_llava
from varifocal.models.decoding import stop_ids
from varifocal.models.load import load_model, load_processor
from varifocal.models.saved import load_adapter, shared_name
from varifocal.models.strict_loading import load_every_tensor
from varifocal.recipe import Recipe, leaves_text
from varifocal.writing import write_text

_FOR_TEXT: dict[Target, Target] = {"llava": "merged", "llamacpp": "gguf"}


@dataclass(frozen=True)
class Job:
    """One artifact to make.

    Attributes:
        order: what was asked for.
        recipe: the run's.
        parts: the trained model.
        route: "text" or "image" of an MMA adapter; "" where there is one for both.
        modality: the route's number; 0 where there is none.
        examples: the conversations of the parity gate.
        cases: what the trained model says to them.
        asked: prompts that the trained model has answered.
        answered: its answers.
        what: the artifact's place, for errors.
    """

    order: Order
    recipe: Recipe
    parts: Assembly
    route: str
    modality: int
    examples: Sequence[Example]
    cases: Sequence[Case]
    asked: Sequence[Example]
    answered: Sequence[Answered]
    what: str

    @property
    def form(self) -> Target:
        """The artifact's kind; of text alone, a LLaVA or its files are a plain language model's."""
        to = self.order.to
        if self.is_pair:
            return "llava" if self.route == "text" else "lora"
        return _FOR_TEXT.get(to, to) if self.route == "text" else to

    @property
    def is_pair(self) -> bool:
        """Whether the routes are a LLaVA of the base and the image route's LoRA for it."""
        return is_pair(self.order, self.recipe)

    @property
    def is_base(self) -> bool:
        """Whether the artifact is the base model: the text route, where text is left to it."""
        return self.route == "text" and leaves_text(self.recipe.tuner)

    @property
    def holds_adapter(self) -> bool:
        """Whether what an adapter changes is in the artifact, for every prompt."""
        trained = self.recipe.tuner.type not in ("none", "full")
        return trained and not self.is_base and self.form != "route"

    @property
    def keeps_adapter(self) -> bool:
        """Whether the adapter's own files lie in the artifact."""
        return keeps_adapter(self.order, self.recipe)

    @property
    def number_format(self) -> str:
        """Name of the number format of what is written, as `--dtype` takes it."""
        return self.order.dtype or self.recipe.model.dtype

    @property
    def dtype(self) -> torch.dtype:
        """Number format of what is written; with Q8_0, that of what is not in its blocks."""
        quantized = self.number_format == gguf.Q8_0
        return torch.float16 if quantized else getattr(torch, self.number_format)

    @property
    def end_of_turn(self) -> str:
        """The token that ends an answer in the run's chat template."""
        encoder = self.parts.encoder
        return f"{encoder.tokenizer.convert_ids_to_tokens(encoder.end_of_turn_id)!r}"

    @property
    def ends(self) -> list[int]:
        """Where the run's answers end."""
        return sorted(stop_ids(self.parts.base, self.parts.encoder.end_of_turn_id))


@dataclass(frozen=True)
class Artifact:
    """What was written.

    Attributes:
        model: it, opened again and seen to hold on disk what was to be written.
        cases: the gate's, with what this kind of model is given.
        answered: the run's answers, likewise.
        ends: where it stops, as what was written says.
        layers: how many layers that the adapter changes were held against the trained ones.
        wanted: its tensors before rounding, by name in the model; none of a LoRA, which is written
            as it was trained.
        notes: what a user has to know, a sentence each.
    """

    model: nn.Module
    cases: Sequence[Case]
    answered: Sequence[Answered]
    ends: Sequence[int]
    layers: int
    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def make(job: Job, directory: Path) -> Artifact:
    """Write an artifact into an empty folder, and open it.

    Raises:
        ModelError: the model has no such form.
        RunError: the disk is full.
    """
    if job.form in ("lora", "route"):
        return _written_lora(job, directory)
    return _written_model(job, directory)


def _written_model(job: Job, directory: Path) -> Artifact:
    """Write a model without adapters, and read it back."""
    content = _plain(job)
    layers = _held_layers(job, content.tensors)
    notes = (_APART,) if shared_table_is_adapted(language_model(job.parts.base)[0]) else ()
    cases, answered = job.cases, job.answered
    if job.form in ("gguf", "llamacpp"):
        notes += _write_gguf(job, content, directory)
        model = _opened(AutoModelForCausalLM, directory, job.parts, gguf_file=gguf.FILE)
        ends = gguf.stop_ids_of(directory / gguf.FILE)
    else:
        if job.form == "llava":
            content = join_llava(job.parts.base, content, job.parts.processor, job.dtype)
        write_plain(content, directory, shard_gib=job.order.shard_gib)
        _write_processor(job, directory)
        if job.order.serves == "vllm" and job.form == "llava":
            check_llava_folder(directory)
        if job.keeps_adapter:
            write_adapter(cast(PeftModel, job.parts.model), directory, job.what)
        if job.form in ("llava", "model"):
            cases, answered = _through_pixels(job, directory)
        kind = AutoModelForImageTextToText if job.form == "model" else content.kind
        model = _opened(kind, directory, job.parts)
        ends = _stops_at(model)
    wanted = _wanted(job, content)
    check_stored(model, wanted, job.what)
    return Artifact(model, cases, answered, ends, layers, wanted, notes)


_APART = (
    "The base has one table for embedding and head, and the adapter changes one of them: here they "
    "are two (tie_word_embeddings: false), which takes the memory of a second."
)
_TOGETHER = (
    "The base has one table for embedding and head, and this adapter changes one of them. PEFT "
    "runs it so; merging it with PEFT would change both. --to merged writes two tables."
)


def _plain(job: Job) -> PlainModel:
    """Fold or merge the language model, or the whole graft."""
    if job.form == "model":
        return whole_graft(job.parts.base, job.dtype, merge=not job.keeps_adapter)
    if job.recipe.tuner.type == "mma" and not job.is_base:
        return fold_route(cast(PeftModel, job.parts.model), job.modality, job.dtype)
    return plain_model(language_model(job.parts.base)[0], job.dtype, merge=not job.is_base)


def _held_layers(job: Job, tensors: Mapping[str, Produce]) -> int:
    """Hold what the adapter changes against the trained layers, those of a LLaVA's tower too."""
    if job.keeps_adapter or job.is_base:
        return 0
    if job.form == "model":
        return check_layers(lora_probes(job.parts.base), tensors, job.what)
    written, prefix = language_model(job.parts.base)
    if job.recipe.tuner.type == "mma":
        probes = mma_probes(cast(PeftModel, job.parts.model), job.modality, prefix)
        return check_layers(probes, tensors, job.what)
    held = check_layers(lora_probes(written), tensors, job.what)
    if job.form in ("llava", "llamacpp"):
        tower = cast(Any, job.parts.base).vision_tower.model
        held += check_layers(lora_probes(tower), plain_tensors(tower), job.what)
    return held


def _wanted(job: Job, content: PlainModel) -> dict[str, Wanted]:
    def as_read(tensor: Tensor, name: str) -> Tensor:
        shape = content.shapes[name]
        if job.form in ("gguf", "llamacpp"):
            return gguf.as_read(tensor, shape, quantized=job.number_format == gguf.Q8_0)
        return tensor.to(shape.dtype)

    return {
        content.inside.get(name, name): Wanted(produce, partial(as_read, name=name))
        for name, produce in content.tensors.items()
    }


def _write_processor(job: Job, directory: Path) -> None:
    if job.form == "llava":
        write_processor(job.parts, directory)
        return
    if job.form == "model":
        write_graft_processor(job.parts, directory)
        return
    processor = load_processor(language_section(job.recipe))
    if isinstance(processor, PreTrainedTokenizerBase) or job.recipe.data.chat_template is not None:
        processor.chat_template = chat_template(job.parts.encoder)
    processor.save_pretrained(directory)


def _through_pixels(job: Job, directory: Path) -> tuple[list[Case], list[Answered]]:
    """Give the gate's prompts as the written processor does."""
    cases = through_pixels(job.cases, job.examples, job.parts, directory)
    if job.keeps_adapter:
        cases = with_prompt_marks(cases, job.examples, job.parts)
    prompts = through_pixels(
        [answer.case for answer in job.answered], job.asked, job.parts, directory
    )
    pairs = zip(job.answered, prompts, strict=True)
    return cases, [replace(answer, case=case) for answer, case in pairs]


def _write_gguf(job: Job, content: PlainModel, directory: Path) -> tuple[str, ...]:
    tokenizer = load_processor(language_section(job.recipe))
    notes = gguf.write_gguf(
        content,
        tokenizer,
        directory / gguf.FILE,
        job.parts.encoder,
        quantized=job.number_format == gguf.Q8_0,
    )
    if job.form == "llamacpp":
        file = directory / MMPROJ
        write_mmproj(job.parts, file, job.dtype)
        check_written_mmproj(job.parts, file, job.dtype, job.what)
    return notes


def _opened(kind: Any, directory: Path, parts: Assembly, **options: Any) -> Any:
    written: PreTrainedModel = language_model(parts.base)[0]
    options["attn_implementation"] = written.config._attn_implementation
    model: Any = load_every_tensor(kind, directory, directory.name, dtype=written.dtype, **options)
    return model.to(written.device).eval()


def _stops_at(model: Any) -> list[int]:
    """Return where a model that was read back says that it stops."""
    ends = model.generation_config.eos_token_id
    return list(ends) if isinstance(ends, (list, tuple)) else [ends]


def _written_lora(job: Job, directory: Path) -> Artifact:
    """Write an adapter, and read it back around the language model."""
    files = _lora(job)
    layers = 0
    if job.form == "lora" and job.recipe.tuner.type == "mma":
        layers = _held_layers(job, _with_lora(job, files))
    files.write(directory)
    write_text(directory / "chat_template.jinja", chat_template(job.parts.encoder))
    model = _on_its_base(job, directory)
    trained = language_model(job.parts.base)[0]
    check_stored_lora(model, files, trained, job.what)
    if job.order.serves == "vllm":
        check_lora(directory)
        if job.is_pair:
            name_for_llava(directory)
    notes = [f"The run's {part} is not in a LoRA." for part in files.left_out]
    notes += [_TOGETHER] if shared_table_is_adapted(trained) else []
    notes.append(
        f"Answers end with {job.end_of_turn}: set the base's `generation_config.eos_token_id` to "
        f"{job.ends}, as the card's code does; chat_template.jinja is the run's."
    )
    return Artifact(model, job.cases, job.answered, job.ends, layers, notes=tuple(notes))


def _with_lora(job: Job, files: LoraFiles) -> dict[str, Produce]:
    """Return the weights and biases that a folded route's LoRA gives, in float32 at least."""
    written = language_model(job.parts.base)[0]
    tensors: dict[str, Produce] = {}
    for name in files.config.target_modules or ():
        tensors[f"{name}.weight"] = partial(_lora_weight, written, files.weights, name)
        if files.config.lora_bias:
            tensors[f"{name}.bias"] = partial(_lora_bias, written, files.weights, name)
    return tensors


def _lora_weight(written: nn.Module, weights: Mapping[str, Tensor], name: str) -> Tensor:
    linear: Any = written.get_submodule(name)
    up, down = (weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "BA")
    change = up @ down  # [O, D]
    return wide(linear.weight) + (change if isinstance(linear, nn.Linear) else change.T)


def _lora_bias(written: nn.Module, weights: Mapping[str, Tensor], name: str) -> Tensor:
    bias = cast("Tensor | None", written.get_submodule(name).bias)
    change = weights[f"base_model.model.{name}.lora_B.bias"]
    return change if bias is None else wide(bias) + change


def _lora(job: Job) -> LoraFiles:
    model, base_name = (
        cast(PeftModel, job.parts.model),
        shared_name(job.recipe.model.language_model),
    )
    if job.order.prompt is not None:
        return routed_lora(job.parts, job.order.prompt, base_name)
    if job.recipe.tuner.type == "mma":
        return route_lora(model, job.modality, base_name)
    return own_lora(model, base_name)


def _on_its_base(job: Job, adapter: Path) -> PeftModel:
    """Load the language model afresh and put the written LoRA around it."""
    loaded: Any = load_model(language_section(job.recipe)).model
    like = language_model(job.parts.base)[0]
    base = loaded.to(like.device, like.dtype)
    with warnings.catch_warnings():
        # a bias that cannot be merged: the card says so
        warnings.filterwarnings("ignore", message="`lora_bias=True` was passed")
        return load_adapter(base, adapter).eval()
