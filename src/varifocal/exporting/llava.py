"""A grafted model as transformers' own LLaVA, which other engines read too.

Letters: V vocabulary, D language width.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    CLIPVisionModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    SiglipVisionModel,
)
from transformers.core_model_loading import revert_weight_conversion

from varifocal.assemble import Assembly
from varifocal.data.example import Example, Image
from varifocal.errors import ModelError
from varifocal.exporting.merging import Produce, plain_tensors
from varifocal.exporting.parity import Case
from varifocal.exporting.plain_tensors import PlainModel, chat_template, distinct
from varifocal.models.connector import PlainMLP
from varifocal.models.grafted import GraftedForConditionalGeneration
from varifocal.models.processor import GraftedProcessor, with_image_parts
from varifocal.models.vision import PREFIX_TOKENS, TransformersTower

_TOWERS = (CLIPVisionModel, SiglipVisionModel)
_PROJECTOR = {
    "local.0": "model.multi_modal_projector.linear_1",
    "local.2": "model.multi_modal_projector.linear_2",
}


def check_llava_export(base: PreTrainedModel, *, merges: bool, to: str = "llava") -> None:
    """Refuse what cannot be a LLaVA, before anything is computed.

    Args:
        base: the run's model inside any PEFT wrapper.
        merges: whether the tuner's adapters merge into the weights, those of the tower too.
        to: the artifact, for the error.

    Raises:
        ModelError: it is no graft, or its tower, connector or tower's adapters do not fit.
    """
    if not isinstance(base, GraftedForConditionalGeneration):
        raise ModelError(
            f"--to {to} is for a language model with a vision tower grafted on, and this run's is "
            f"{type(base).__name__}: use --to merged, which writes it as what it is"
        )
    tower = base.vision_tower
    if not isinstance(tower, TransformersTower) or not isinstance(tower.model, _TOWERS):
        raise ModelError(
            f"--to {to} takes a CLIP or SigLIP tower, which those who read LLaVA know, and not "
            f"{type(tower.model).__name__}; train with another model.vision_tower, or use --to "
            "merged for the language model alone"
        )
    connector = projector(base)
    if isinstance(connector, PlainMLP) and connector.select != "patches" and to == "llava":
        raise ModelError(
            "this run was trained in llama.cpp's order of CLIP's tokens (connector.image_tokens: "
            "llamacpp), which LLaVA has not: use --to llamacpp"
        )
    if not isinstance(connector, PlainMLP) or connector.num_linears != 2:
        raise ModelError(
            "LLaVA's projector is linear, GELU, linear on every patch, and this run's connector "
            "has more (norm, positions, pooling, global tokens or a set scale) or less: train with "
            "model.connector: {type: mlp2x_gelu}, or use --to merged for the language "
            "model alone"
        )
    if not merges and any(isinstance(part, BaseTunerLayer) for part in tower.modules()):
        raise ModelError(
            "the vision tower holds adapters that are routed by each image's own state, so no "
            "fixed weights equal it; train with tuner.adapt_vision_tower: false, or use --to "
            "merged for the language model alone"
        )


def join_llava(
    base: PreTrainedModel, language: PlainModel, processor: GraftedProcessor, dtype: torch.dtype
) -> PlainModel:
    """Join a folded or merged language model, the tower and the projector into a LLaVA.

    LLaVA looks the placeholder up before it puts an image in its place. Where its id lies past
    the vocabulary, the embedding (and the head) get a row for it: a copy of that of a token which
    the model has learnt not to write.

    Args:
        base: the graft, as `check_llava_export` lets it through.
        language: its language model, as it is written.
        processor: the graft's.
        dtype: of the tensors that are written.

    Raises:
        ModelError: the language model's head is not LLaVA's: one linear without a bias.
    """
    graft = cast(Any, base)
    config = _config(graft, language, processor)
    with torch.device("meta"):
        shaped = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    shaped.tie_weights()
    tensors = _language(graft, language, cast(Any, config.text_config).vocab_size, processor)
    for name, produce in plain_tensors(graft.vision_tower.model).items():
        tensors[f"model.vision_tower.{name}"] = produce
    for name, produce in plain_tensors(projector(graft)).items():
        part, _, kind = name.rpartition(".")
        tensors[f"{_PROJECTOR[part]}.{kind}"] = produce
    shapes = distinct(shaped)
    if shapes.keys() != tensors.keys():
        odd = sorted(shapes.keys() ^ tensors.keys())
        raise ModelError(
            f"{language.kind.__name__} has no place in a LLaVA: {odd[0]} is in one of them alone; "
            "use --to merged for the language model alone"
        )
    saved = _saved_names(shaped, shapes)
    return PlainModel(
        LlavaForConditionalGeneration,
        config,
        _generation_config(language, config),
        {name: tensors[own] for name, own in saved.items()},
        {name: shapes[own] for name, own in saved.items()},
        saved,
    )


def write_processor(parts: Assembly, directory: Path) -> None:
    """Write LLaVA's processor: our images' preparation, placeholder and chat template."""
    tower, processor = cast(Any, parts.base).vision_tower.model, parts.processor
    LlavaProcessor(
        processor.image_processor,
        processor.tokenizer,
        patch_size=tower.config.patch_size,
        vision_feature_select_strategy=_strategy(tower),
        chat_template=with_image_parts(chat_template(parts.encoder), processor.image_token),
        image_token=processor.image_token,
        num_additional_image_tokens=PREFIX_TOKENS[type(tower)],
    ).save_pretrained(directory)


def through_pixels(
    cases: Sequence[Case], examples: Sequence[Example], parts: Assembly, directory: Path
) -> list[Case]:
    """Put the written processor's tensors in the place of the trained language model's inputs.

    Args:
        cases: what the trained model said.
        examples: the conversations, in the same order, each with its answer or without.
        parts: the trained model.
        directory: where the LLaVA lies.

    Raises:
        ModelError: the processor writes a prompt otherwise than the run's own.
    """
    processor = AutoProcessor.from_pretrained(directory)
    return [
        replace(case, inputs=_inputs(example, parts, processor))
        for case, example in zip(cases, examples, strict=True)
    ]


def _inputs(example: Example, parts: Assembly, processor: Any) -> dict[str, Tensor]:
    answered = example.messages[-1].role == "assistant"
    asked = processor.apply_chat_template(
        [_turn(message) for message in example.messages[: -1 if answered else None]],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ours = parts.encoder.encode(example, with_answer=False).input_ids.tolist()
    if asked["input_ids"][0].tolist() != ours:
        raise ModelError(
            "the written processor writes a prompt otherwise than the run does, so its model would "
            "be asked otherwise than it was trained; nothing was written. Report this with the "
            "run's recipe"
        )
    whole = torch.as_tensor(parts.encoder.encode(example, with_answer=answered).input_ids)[None]
    images = {name: asked[name] for name in ("pixel_values",) if name in asked}
    return {"input_ids": whole, **images}


def _turn(message: Any) -> dict[str, Any]:
    content = [
        {"type": "image", "image": part.open()}
        if isinstance(part, Image)
        else {"type": "text", "text": part}
        for part in message.content
    ]
    return {"role": message.role, "content": content}


def projector(base: PreTrainedModel) -> nn.Module:
    """Return a graft's connector as it runs: the trained copy where PEFT keeps one."""
    connector = cast(Any, base).connector
    saved = getattr(connector, "modules_to_save", None)
    return connector if saved is None else saved[connector.active_adapters[0]]


def _strategy(tower: PreTrainedModel) -> str:
    """Name the states that are kept: all but the CLS token's, or all where there is none."""
    return "default" if PREFIX_TOKENS[type(tower)] else "full"


def _config(graft: Any, language: PlainModel, processor: GraftedProcessor) -> LlavaConfig:
    tower, text = graft.vision_tower, copy.deepcopy(language.config)
    text.vocab_size = max(text.vocab_size, processor.image_token_id + 1)
    config = LlavaConfig(
        vision_config=copy.deepcopy(tower.model.config),
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=processor.tokens_per_image,
        projector_hidden_act="gelu",
        vision_feature_select_strategy=cast(Any, _strategy(tower.model)),
        vision_feature_layer=tower.feature_layer,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    config.architectures = [LlavaForConditionalGeneration.__name__]
    config.dtype = text.dtype
    return config


def _language(
    graft: Any, language: PlainModel, rows: int, processor: GraftedProcessor
) -> dict[str, Produce]:
    """Rename a causal LM's tensors, and let those of V rows have one for the placeholder."""
    own, modules = graft.language_model, {m: n for n, m in graft.language_model.named_modules()}
    tables = {f"{modules[own.get_input_embeddings()]}.weight"}
    if (head := own.get_output_embeddings()) is not None:
        tables.add(f"{modules[head]}.weight")
    like = _unwritten(processor)
    renamed: dict[str, Produce] = {}
    for name, produce in language.tensors.items():
        inside = name.removeprefix(f"{own.base_model_prefix}.")
        new = name if inside == name else f"model.language_model.{inside}"
        renamed[new] = partial(_grown, produce, rows, like) if name in tables else produce
    return renamed


def _grown(produce: Produce, rows: int, like: int) -> Tensor:
    """Lengthen a table [V, D] to so many rows by copies of one."""
    table = produce()
    more = rows - table.shape[0]
    return torch.cat([table, table[like : like + 1].expand(more, -1)]) if more > 0 else table


def _unwritten(processor: GraftedProcessor) -> int:
    """Return the id of a token that starts or fills texts and is no answer's end."""
    tokenizer: Any = cast(Any, processor).tokenizer
    ids = (tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    return next((i for i in ids if i is not None and i != tokenizer.eos_token_id), 0)


def _generation_config(language: PlainModel, config: LlavaConfig) -> Any:
    """Forbid the placeholder, as the graft does where its id lies in the vocabulary."""
    generation = copy.deepcopy(language.generation_config)
    if generation is not None:
        suppressed = generation.suppress_tokens or []
        generation.suppress_tokens = sorted({*suppressed, config.image_token_index})
    return generation


def _saved_names(model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Map the names that LLaVA checkpoints have on disk to those in the model."""
    own = {id(tensor): name for name, tensor in tensors.items()}
    return {
        name: own[id(tensor)] for name, tensor in revert_weight_conversion(model, tensors).items()
    }
