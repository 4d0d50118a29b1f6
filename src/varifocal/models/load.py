"""From the model section of a recipe to a model and its processor."""

from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from varifocal.cache import fingerprint
from varifocal.errors import ModelError
from varifocal.models.config_checks import check_pad_id
from varifocal.models.connector import Connector, build_connector, embedding_scale
from varifocal.models.families.base import (
    ImageTokens,
    connector_name,
    family_of,
    family_with_side,
)
from varifocal.models.families.grafted import FAMILY as GRAFTED
from varifocal.models.grafted import GraftedForConditionalGeneration, graft
from varifocal.models.loading import check_has_weights, keep_weights, load_weights, quantisation
from varifocal.models.preprocessing import (
    check_words,
    family_processor,
    image_side,
    load_image_processor,
    load_own_processor,
    load_tokenizer,
)
from varifocal.models.processor import GraftedProcessor
from varifocal.models.published import PUBLISHED
from varifocal.models.sources import (
    check_attention,
    clear_loading_errors,
    read_config,
    weight_files,
)
from varifocal.models.vision import VISION_MODELS, VisionTower, build_tower
from varifocal.recipe import ConnectorSection, LlavaMLPSection, ModelSection, PatchMLPSection


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be tuned or asked.

    Attributes:
        model: a grafted model; or the language model (or vision-language model) as it is. In
            evaluation mode, and frozen but for the connector.
        processor: `GraftedProcessor`; a tokenizer for a plain language model; for a
            vision-language model its own processor. None for a meta build whose files are away.
        base_ids: the names the frozen parts were loaded by: `language_model`, `vision_tower`.
        fingerprint: SHA-256, in hex, over the frozen parts' weight files; None for a meta build.
    """

    model: PreTrainedModel
    processor: Any
    base_ids: dict[str, str]
    fingerprint: str | None


def load_model(section: ModelSection, *, meta: bool = False, seed: int = 0) -> LoadedModel:
    """Load what a recipe's `model` section names.

    Args:
        section: language model, vision tower (or null), connector, dtype.
        meta: build from configs alone, on the meta device: shapes and no weights.
        seed: of the connector's first parameters.

    Raises:
        ModelError: a name is unknown or cannot be had, or the parts do not fit each other.
    """
    base_ids = {"language_model": section.language_model}
    if section.vision_tower is not None:
        base_ids["vision_tower"] = section.vision_tower
    if meta:
        return _load_meta(section, base_ids)
    check_attention(section.attn_implementation)
    if section.vision_tower is None:
        model, processor = _load_whole(section)
    else:
        model, processor = _load_grafted(section, section.vision_tower, seed)
    _freeze(model)
    files = [file for name in base_ids.values() for file in weight_files(name)]
    return LoadedModel(model.eval(), processor, base_ids, fingerprint(files))


def load_processor(section: ModelSection) -> Any:
    """Load the processor that `load_model` gives, from tokenizers and configs alone.

    Raises:
        ModelError: as `load_model`.
    """
    if section.vision_tower is None:
        return _whole_processor(section)
    shapes = cast(GraftedForConditionalGeneration, _load_meta(section, {}).model)
    image_processor = load_image_processor(section.vision_tower)
    name = section.language_model
    tokenizer = load_tokenizer(name, read_config(name))
    return _processor(image_processor, tokenizer, shapes.connector)


def _freeze(model: PreTrainedModel) -> None:
    """Freeze everything but a connector."""
    model.requires_grad_(False)
    if (name := connector_name(model)) is not None:
        model.get_submodule(name).requires_grad_(True)


def _load_whole(section: ModelSection) -> tuple[PreTrainedModel, Any]:
    """Load a language model with its tokenizer, or a vision-language model with its processor."""
    name = section.language_model
    config = read_config(name)
    _check_image_side(section, config)
    language = not is_vision_language(config, name)
    check_pad_id(name, config)
    check_has_weights(name)
    kind = AutoModelForCausalLM if language else AutoModelForImageTextToText
    options = _language_options(section, is_vision_language=not language)
    processor = _whole_processor(section)  # small files first
    model = load_weights(kind, name, partial(kind.from_config, config), **options)
    keep_weights(model)
    _prepare(model, config, section)
    return model, processor


def _prepare(model: PreTrainedModel, config: PreTrainedConfig, section: ModelSection) -> None:
    """Let a model with images of one size read packed rows."""
    family = family_with_side(config, section.image_side)
    if family is not None:
        family.prepare(model, section.image_side)


def check_image_side(section: ModelSection) -> None:
    """Refuse a model whose images would take tokens by their size, before it is loaded.

    Raises:
        ModelError: it needs `image_side` and has none, or its config cannot be had.
    """
    name = section.language_model
    config = read_config(name)
    if (family := family_of(config)) is not None:
        family.check_image_side(name, config, section.image_side)


def _check_image_side(section: ModelSection, config: PreTrainedConfig) -> None:
    """Refuse a side that the family cannot take, or a model whose images have their own size."""
    if section.image_side is None:
        return
    name, family = section.language_model, family_of(config)
    if family is None or not family.needs_image_side:
        raise ModelError(
            f"model.image_side belongs to a Qwen-VL or SmolVLM, and {name} is of type "
            f"{config.model_type}; leave it out"
        )
    family.check_image_side(name, config, section.image_side)


def _whole_processor(section: ModelSection) -> Any:
    """Load a language model's tokenizer, or a vision-language model's processor."""
    name = section.language_model
    config = read_config(name)
    if not is_vision_language(config, name):
        return load_tokenizer(name, config)
    _check_image_side(section, config)
    family = family_with_side(config, section.image_side)
    if family is not None:
        return family.load_processor(name, config, section.image_side)
    processor = load_own_processor(name)
    check_words(name, processor, config)
    return processor


def image_tokens(processor: Any, section: ModelSection) -> ImageTokens:
    """Return what stands for an image in a row of a graft, or of a vision-language model.

    Args:
        processor: as `load_processor` gives it.
        section: the recipe's.

    Raises:
        ModelError: images take tokens by their size.
    """
    config = read_config(section.language_model)
    if section.vision_tower is not None:
        return GRAFTED.image_tokens(processor, config)
    family = family_with_side(config, section.image_side)
    if family is not None:
        return family.image_tokens(processor, config)
    raise ModelError(
        f"{section.language_model} is a vision-language model of type {config.model_type}, whose "
        "images take more or fewer tokens by their size; this version trains and asks language "
        "models, grafts of them, LLaVA 1.5's kind, Qwen2-VL's and SmolVLM's with "
        "model.image_side: name a language model, and a vision_tower"
    )


def is_vision_language(config: PreTrainedConfig, name: str) -> bool:
    """Tell a vision-language model from a language model.

    Raises:
        ModelError: it is neither.
    """
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and hasattr(config, "vision_config"):
        return True
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    raise ModelError(
        f"language_model {name!r} is of type {config.model_type}, which writes no text;"
        " name a causal language model or a vision-language model"
    )


def _load_grafted(
    section: ModelSection, vision_tower: str, seed: int
) -> tuple[PreTrainedModel, GraftedProcessor]:
    _load_meta(section, {})  # what does not fit is said before gigabytes are read
    language_model, tokenizer = _load_language(section)
    image_processor = load_image_processor(vision_tower)
    tower = _load_tower(section, vision_tower, image_side(image_processor))
    connector = _connector(section, tower, language_model, seed)
    processor = _processor(image_processor, tokenizer, connector)
    return graft(language_model, tower, connector, processor.image_token_id), processor


def _load_language(section: ModelSection) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    name = section.language_model
    config = read_config(name)
    check_pad_id(name, config)
    tokenizer = load_tokenizer(name, config)
    options = _language_options(section, is_vision_language=False)
    build = partial(AutoModelForCausalLM.from_config, config)
    model = load_weights(AutoModelForCausalLM, name, build, **options)
    keep_weights(model)
    return model, tokenizer


def _language_options(section: ModelSection, *, is_vision_language: bool) -> dict[str, Any]:
    options: dict[str, Any] = {
        "dtype": getattr(torch, section.dtype),
        "attn_implementation": section.attn_implementation,
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    if section.quantization is not None:
        options["quantization_config"] = quantisation(
            section, is_vision_language=is_vision_language
        )
    return options


def vision_class(config: PreTrainedConfig, name: str) -> type[PreTrainedModel]:
    """Return the vision model to take from a checkpoint.

    Raises:
        ModelError: it has none that Varifocal knows.
    """
    known = VISION_MODELS.get(config.model_type)
    if known is None:
        raise ModelError(
            f"vision_tower {name!r} is of type {config.model_type}; a tower is one of"
            f" {', '.join(VISION_MODELS)}"
        )
    return known


def _load_tower(section: ModelSection, name: str, image_size: int) -> VisionTower:
    config = read_config(name)
    kind = vision_class(config, name)
    vision: Any = getattr(config, "vision_config", config)
    model = load_weights(
        kind,
        name,
        partial(cast(Any, kind)._from_config, vision),
        dtype=getattr(torch, section.dtype),
        attn_implementation=section.attn_implementation,
        use_safetensors=True,
    )
    return build_tower(model, image_size=image_size)


def _image_side(name: str, config: PreTrainedConfig) -> int:
    """Return the side of a tower's images, by its files or, without them, by its family."""
    try:
        return image_side(load_image_processor(name))
    except ModelError:
        return image_side(family_processor(config))


def _connector(
    section: ModelSection, tower: VisionTower, language_model: PreTrainedModel, seed: int
) -> Connector:
    options = connector_options(section.connector or PatchMLPSection())
    embeddings = language_model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    on_meta = embeddings.weight.is_meta
    if options["type"] == "patch_mlp":
        options["output_scale"] = 1.0 if on_meta else embedding_scale(embeddings)
    return build_connector(options, tower, embeddings.embedding_dim, seed=None if on_meta else seed)


def connector_options(section: ConnectorSection) -> dict[str, Any]:
    """Return `build_connector`'s options: those of the section that say what it is made of."""
    if isinstance(section, LlavaMLPSection):
        return {"type": "patch_mlp", "plain": True}  # as config.json has it
    options = section.model_dump(exclude={"weights"})
    return {key: value for key, value in options.items() if (key, value) != ("hidden_dim", None)}


def _processor(
    image_processor: Any, tokenizer: PreTrainedTokenizerBase, connector: Connector
) -> GraftedProcessor:
    tokenizer.padding_side = "left"  # the side generation needs; packed rows are not padded by it
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return GraftedProcessor(image_processor, tokenizer, tokens_per_image=connector.tokens_per_image)


def _load_meta(section: ModelSection, base_ids: dict[str, str]) -> LoadedModel:
    """Build from configs alone."""
    config = config_for_counting(section.language_model)
    language = not is_vision_language(config, section.language_model)
    if not language and section.vision_tower is not None:
        raise ModelError(
            f"language_model {section.language_model!r} has a vision tower of its own;"
            " leave vision_tower out"
        )
    _check_image_side(section, config)
    check_pad_id(section.language_model, config)
    kind = AutoModelForCausalLM if language else AutoModelForImageTextToText
    with torch.device("meta"):
        options = {"dtype": getattr(torch, section.dtype)}
        attention = section.attn_implementation
        with clear_loading_errors(section.language_model):
            model = kind.from_config(config, attn_implementation=attention, **options)
        _prepare(model, config, section)
        if section.vision_tower is None:
            return LoadedModel(model, None, base_ids, None)
        vision = config_for_counting(section.vision_tower)
        vision_kind = vision_class(vision, section.vision_tower)
        vision = getattr(vision, "vision_config", vision)
        side = _image_side(section.vision_tower, vision)
        with clear_loading_errors(section.vision_tower):
            vision_model = vision_kind._from_config(vision, **options)
        tower = build_tower(vision_model, image_size=side)
        connector = _connector(section, tower, model, seed=0)
        grafted = graft(model, tower, connector, image_token_id=config.vocab_size)
    return LoadedModel(grafted, None, base_ids, None)


def config_for_counting(name: str) -> PreTrainedConfig:
    """Return a name's config, from its files if they are near, else from `PUBLISHED`, else a hub.

    Raises:
        ModelError: it cannot be had.
    """
    if name in PUBLISHED:
        try:
            return AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except OSError:
            return PUBLISHED[name].config()
    return read_config(name)
