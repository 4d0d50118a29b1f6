"""From the model section of a recipe to a model and its processor."""

import contextlib
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
from varifocal.models.names import downloaded
from varifocal.models.preprocessing import (
    check_words,
    family_processor,
    image_side,
    load_image_processor,
    load_own_processor,
    load_tokenizer,
    prepare_as,
)
from varifocal.models.processor import GraftedProcessor
from varifocal.models.published_configs import PUBLISHED
from varifocal.models.sources import (
    Checkpoint,
    check_attention,
    clear_loading_errors,
    find_checkpoint,
    weight_files,
)
from varifocal.models.strict_loading import (
    check_has_weights,
    keep_weights,
    load_weights,
    quantisation,
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
    check_attention(section.attn_implementation)
    if meta:
        tower = None if section.vision_tower is None else find_config(section.vision_tower)
        model = _build_meta(section, find_config(section.language_model), tower)
        return LoadedModel(model, None, base_ids, None)
    language = find_checkpoint(section.language_model)
    if section.vision_tower is None:
        model, processor = _load_whole(section, language)
    else:
        tower = find_checkpoint(section.vision_tower)
        model, processor = _load_grafted(section, language, tower, seed)
    _freeze(model)
    files = [file for name in base_ids.values() for file in weight_files(name)]
    return LoadedModel(model.eval(), processor, base_ids, fingerprint(files))


def load_processor(section: ModelSection) -> Any:
    """Load the processor that `load_model` gives, from tokenizers and configs alone.

    Raises:
        ModelError: as `load_model`.
    """
    language = find_checkpoint(section.language_model)
    if section.vision_tower is None:
        return _whole_processor(section, language)
    tower = find_checkpoint(section.vision_tower)
    shapes = cast(GraftedForConditionalGeneration, _build_meta(section, language, tower))
    images = prepare_as(load_image_processor(tower), section.image_preparation)
    return _processor(images, load_tokenizer(language), shapes.connector)


def _freeze(model: PreTrainedModel) -> None:
    """Freeze everything but a connector."""
    model.requires_grad_(False)
    if (name := connector_name(model)) is not None:
        model.get_submodule(name).requires_grad_(True)


def _load_whole(section: ModelSection, checkpoint: Checkpoint) -> tuple[PreTrainedModel, Any]:
    """Load a language model with its tokenizer, or a vision-language model with its processor."""
    config = checkpoint.config
    _check_image_side(section, checkpoint)
    language = not is_vision_language(checkpoint)
    check_pad_id(checkpoint.name, config)
    check_has_weights(checkpoint)
    kind = AutoModelForCausalLM if language else AutoModelForImageTextToText
    options = _language_options(section, is_vision_language=not language)
    processor = _whole_processor(section, checkpoint)  # small files first
    model = load_weights(kind, checkpoint, partial(kind.from_config, config), **options)
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
    checkpoint = find_checkpoint(section.language_model)
    if (family := family_of(checkpoint.config)) is not None:
        family.check_image_side(checkpoint, section.image_side)


def _check_image_side(section: ModelSection, checkpoint: Checkpoint) -> None:
    """Refuse a side that the family cannot take, or a model whose images have their own size."""
    if section.image_side is None:
        return
    family = family_of(checkpoint.config)
    if family is None or not family.needs_image_side:
        raise ModelError(
            f"model.image_side belongs to a Qwen-VL or SmolVLM, and {checkpoint.name} is of type "
            f"{checkpoint.config.model_type}; leave it out"
        )
    family.check_image_side(checkpoint, section.image_side)


def _check_image_preparation(section: ModelSection, checkpoint: Checkpoint) -> None:
    """Refuse another preparation of images for a model without images, or of their own size."""
    if section.image_preparation is None:
        return
    family = family_of(checkpoint.config)
    if family is None or family.needs_image_side:
        raise ModelError(
            f"model.image_preparation: {checkpoint.name} is of type "
            f"{checkpoint.config.model_type}, and the key belongs to a vision_tower or a LLaVA; "
            "leave it out"
        )


def _whole_processor(section: ModelSection, checkpoint: Checkpoint) -> Any:
    """Load a language model's tokenizer, or a vision-language model's processor."""
    _check_image_preparation(section, checkpoint)
    if not is_vision_language(checkpoint):
        return load_tokenizer(checkpoint)
    _check_image_side(section, checkpoint)
    family = family_with_side(checkpoint.config, section.image_side)
    if family is not None:
        processor = family.load_processor(checkpoint, section.image_side)
        if (wanted := section.image_preparation) is not None:
            processor.image_processor = prepare_as(processor.image_processor, wanted)
        return processor
    processor = load_own_processor(checkpoint)
    check_words(checkpoint, processor)
    return processor


def image_tokens(processor: Any, section: ModelSection) -> ImageTokens:
    """Return what stands for an image in a row of a graft, or of a vision-language model.

    Args:
        processor: as `load_processor` gives it.
        section: the recipe's.

    Raises:
        ModelError: images take tokens by their size.
    """
    config = find_checkpoint(section.language_model).config
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


def is_vision_language(checkpoint: Checkpoint) -> bool:
    """Tell a vision-language model from a language model.

    Raises:
        ModelError: it is neither.
    """
    config = checkpoint.config
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and hasattr(config, "vision_config"):
        return True
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    raise ModelError(
        f"language_model {checkpoint.name!r} is of type {config.model_type}, which writes no text;"
        " name a causal language model or a vision-language model"
    )


def _load_grafted(
    section: ModelSection, language: Checkpoint, vision: Checkpoint, seed: int
) -> tuple[PreTrainedModel, GraftedProcessor]:
    _build_meta(section, language, vision)  # what does not fit is said before gigabytes are read
    language_model, tokenizer = _load_language(section, language)
    image_processor = prepare_as(load_image_processor(vision), section.image_preparation)
    tower = _load_tower(section, vision, image_side(image_processor))
    connector = _connector(section, tower, language_model, seed)
    processor = _processor(image_processor, tokenizer, connector)
    return graft(language_model, tower, connector, processor.image_token_id), processor


def _load_language(
    section: ModelSection, checkpoint: Checkpoint
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    check_pad_id(checkpoint.name, checkpoint.config)
    tokenizer = load_tokenizer(checkpoint)
    options = _language_options(section, is_vision_language=False)
    build = partial(AutoModelForCausalLM.from_config, checkpoint.config)
    model = load_weights(AutoModelForCausalLM, checkpoint, build, **options)
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


def vision_class(checkpoint: Checkpoint) -> type[PreTrainedModel]:
    """Return the vision model to take from a checkpoint.

    Raises:
        ModelError: it has none that Varifocal knows.
    """
    kind = checkpoint.config.model_type
    known = VISION_MODELS.get(kind)
    if known is None:
        raise ModelError(
            f"vision_tower {checkpoint.name!r} is of type {kind}; a tower is one of"
            f" {', '.join(VISION_MODELS)}"
        )
    return known


def _load_tower(section: ModelSection, checkpoint: Checkpoint, image_size: int) -> VisionTower:
    kind = vision_class(checkpoint)
    vision: Any = getattr(checkpoint.config, "vision_config", checkpoint.config)
    model = load_weights(
        kind,
        checkpoint,
        partial(cast(Any, kind)._from_config, vision),
        dtype=getattr(torch, section.dtype),
        attn_implementation=section.attn_implementation,
        use_safetensors=True,
    )
    return build_tower(model, image_size=image_size)


def _image_side(checkpoint: Checkpoint) -> int:
    """Return the side of a tower's images, by its files or, without them, by its family."""
    with contextlib.suppress(ModelError):
        if checkpoint.path:
            return image_side(load_image_processor(checkpoint))
    return image_side(family_processor(checkpoint.config))


def _connector(
    section: ModelSection, tower: VisionTower, language_model: PreTrainedModel, seed: int
) -> Connector:
    options = connector_options(section.connector or PatchMLPSection())
    embeddings = language_model.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    on_meta = embeddings.weight.is_meta
    if options["type"] in ("patch_mlp", "linear"):
        options["output_scale"] = 1.0 if on_meta else embedding_scale(embeddings)
    return build_connector(options, tower, embeddings.embedding_dim, seed=None if on_meta else seed)


def connector_options(section: ConnectorSection) -> dict[str, Any]:
    """Return `build_connector`'s options: those of the section that say what it is made of."""
    if isinstance(section, LlavaMLPSection):
        order = {} if section.image_tokens == "llava" else {"image_tokens": section.image_tokens}
        return {"type": "patch_mlp", "plain": True, **order}  # as config.json has it
    options = section.model_dump(exclude={"weights"})
    return {key: value for key, value in options.items() if (key, value) != ("hidden_dim", None)}


def _processor(
    image_processor: Any, tokenizer: PreTrainedTokenizerBase, connector: Connector
) -> GraftedProcessor:
    tokenizer.padding_side = "left"  # the side generation needs; packed rows are not padded by it
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return GraftedProcessor(image_processor, tokenizer, tokens_per_image=connector.tokens_per_image)


def _build_meta(
    section: ModelSection, language: Checkpoint, tower: Checkpoint | None
) -> PreTrainedModel:
    """Build from configs alone."""
    has_tower, config = is_vision_language(language), language.config
    if has_tower and tower is not None:
        raise ModelError(
            f"language_model {language.name!r} has a vision tower of its own;"
            " leave vision_tower out"
        )
    _check_image_side(section, language)
    check_pad_id(language.name, config)
    kind = AutoModelForImageTextToText if has_tower else AutoModelForCausalLM
    with torch.device("meta"):
        options = {"dtype": getattr(torch, section.dtype)}
        attention = section.attn_implementation
        with clear_loading_errors(language.name, language.path):
            model = kind.from_config(config, attn_implementation=attention, **options)
        _prepare(model, config, section)
        if tower is None:
            return model
        vision = getattr(tower.config, "vision_config", tower.config)
        vision_kind: Any = vision_class(tower)
        side = _image_side(tower)
        with clear_loading_errors(tower.name, tower.path):
            vision_model = vision_kind._from_config(vision, **options)
        encoder = build_tower(vision_model, image_size=side)
        connector = _connector(section, encoder, model, seed=0)
        return graft(model, encoder, connector, image_token_id=config.vocab_size)


def find_config(name: str) -> Checkpoint:
    """Resolve a name by its files if they are near, else from `PUBLISHED`, else at a hub.

    Raises:
        ModelError: its config cannot be had.
    """
    if name not in PUBLISHED:
        return find_checkpoint(name)
    path = downloaded(name)
    if path is None:
        return Checkpoint(name, "", PUBLISHED[name].config())
    return Checkpoint(name, str(path), AutoConfig.from_pretrained(path, trust_remote_code=False))
