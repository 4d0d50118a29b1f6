"""Load and check what turns text and images into tensors: tokenizers and image processors."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    LlavaImageProcessorPil,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
)

from varifocal.errors import ModelError
from varifocal.models.checkpoint_files import damaged_json
from varifocal.models.packaged_weights import efficientnet_processor
from varifocal.models.sources import Checkpoint, clear_loading_errors
from varifocal.recipe import ImagePreparationSection

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.model")


def load_tokenizer(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    """Load a language model's tokenizer; for one whose padding lies past the vocabulary, unset it.

    Raises:
        ModelError: it cannot be loaded, or the model cannot be used with it.
    """
    tokenizer = _tokenizer(checkpoint)
    check_tokenizer(checkpoint, tokenizer)
    words = getattr(checkpoint.config.get_text_config(decoder=True), "vocab_size", None)
    pad = tokenizer.pad_token_id
    if words is not None and pad is not None and pad >= words:  # some copies of Llama 2 have one
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def _tokenizer(checkpoint: Checkpoint) -> Any:
    name, place = checkpoint.name, checkpoint.directory
    try:
        with clear_loading_errors(name, checkpoint.path):
            return AutoTokenizer.from_pretrained(checkpoint.path, trust_remote_code=False)
    except ModelError as error:
        if not place.is_dir() or any(next(place.glob(each), None) for each in _VOCABULARIES):
            raise
        raise ModelError(
            f"{name!r} holds no tokenizer, a file such as {_VOCABULARIES[0]} is missing; "
            "copy it from the model that the weights belong to"
        ) from error


def load_own_processor(checkpoint: Checkpoint) -> Any:
    """Load the processor that a vision-language model's checkpoint names."""
    with clear_loading_errors(checkpoint.name, checkpoint.path):
        return AutoProcessor.from_pretrained(checkpoint.path, trust_remote_code=False)


def check_words(checkpoint: Checkpoint, processor: Any) -> None:
    """Refuse a processor whose tokenizer does not belong to the model; see `check_tokenizer`.

    Raises:
        ModelError: the model cannot be used with it.
    """
    if isinstance(tokenizer := getattr(processor, "tokenizer", None), PreTrainedTokenizerBase):
        check_tokenizer(checkpoint, tokenizer, processor.chat_template)


def load_image_processor(checkpoint: Checkpoint) -> Any:
    """Load a tower's own image processor, or its family's where the checkpoint has none.

    Always the PIL one: torchvision's resizes slightly otherwise, and an answer should not depend
    on what else is installed.
    """
    try:
        with clear_loading_errors(checkpoint.name, checkpoint.path):
            processor = AutoImageProcessor.from_pretrained(checkpoint.path, backend="pil")
    except ModelError as error:
        if not isinstance(error.__cause__, OSError) or _has_file(checkpoint.directory):
            raise
        return family_processor(checkpoint.config)
    _check_image_processor(checkpoint.name, processor)
    return processor


def _check_image_processor(name: str, image_processor: Any) -> None:
    """Refuse an image processor that cannot read an image, or loses what is in it.

    Raises:
        ModelError: it raises, gives pixels that are not finite, or the same ones for two images.
    """
    probe = PIL.Image.linear_gradient("L").resize((64, 48)).convert("RGB")
    try:
        with np.errstate(all="ignore"):  # what is not finite is said below
            first, second = (
                image_processor(images=each, return_tensors="pt")["pixel_values"]
                for each in (probe, PIL.ImageOps.invert(probe))
            )
    except Exception as error:  # of whatever kind: the settings are the file's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{name!r}: its image processor reads no image: {reason}") from error
    if not first.isfinite().all() or torch.equal(first, second):
        raise ModelError(
            f"{name!r}: its image processor makes no usable pixels of an image; correct the sizes, "
            "image_mean, image_std and rescale_factor in its preprocessor_config.json"
        )


def family_processor(config: PreTrainedConfig) -> Any:
    """Return the image processor that a tower's family is published with."""
    vision = getattr(config, "vision_config", config)
    side = {"height": vision.image_size, "width": vision.image_size}
    if config.model_type.startswith("siglip"):
        return SiglipImageProcessorPil(size=side)
    if config.model_type == "dinov2":
        return BitImageProcessorPil(
            size={"shortest_edge": 256}, crop_size={"height": 224, "width": 224}
        )
    if config.model_type == "efficientnet_lite":
        return efficientnet_processor(vision.image_size)
    return CLIPImageProcessorPil(size={"shortest_edge": vision.image_size}, crop_size=side)


def pixel_loader(
    processor: Any, dtype: torch.dtype
) -> Callable[[Sequence[Any]], Mapping[str, Tensor]]:
    """Return what prepares images as `pixel_values` [N, 3, H, W] of a number format.

    Args:
        processor: with an `image_processor`.
        dtype: of the pixels.
    """

    def prepare(image: Any) -> Tensor:
        prepared = processor.image_processor(images=[image.open()], return_tensors="pt")
        return prepared["pixel_values"].to(dtype)

    def load(images: Sequence[Any]) -> Mapping[str, Tensor]:
        """Prepare one image after the other: large ones would take gigabytes decoded together."""
        return {"pixel_values": torch.cat([prepare(image) for image in images])}

    return load


def image_side(image_processor: Any) -> int:
    """Return the side, in pixels, of the squares an image processor makes.

    Raises:
        ModelError: it makes no squares of one size.
    """
    crops = getattr(image_processor, "do_center_crop", False)
    size = image_processor.crop_size if crops else image_processor.size
    height, width = size.get("height"), size.get("width")
    if height is None or height != width:
        raise ModelError(f"the image processor gives no squares of one size: {dict(size)}")
    return height


def prepare_as(image_processor: Any, section: ImagePreparationSection | None) -> Any:
    """Return the image processor that a recipe asks for, with a tower's own size and filter.

    Args:
        image_processor: the tower's own.
        section: the recipe's `model.image_preparation`; None changes nothing.

    Returns:
        One of transformers', which any program that reads its file prepares images with.

    Raises:
        ModelError: the tower's own makes no squares of one size.
    """
    if section is None:
        return image_processor
    side = image_side(image_processor)
    square = {"height": side, "width": side}
    shapes: dict[str, dict[str, Any]] = {
        "crop": {"size": {"shortest_edge": side}, "crop_size": square},
        "squash": {"size": square, "do_center_crop": False},
        "pad": {"size": {"shortest_edge": side}, "crop_size": square, "do_pad": True},
    }
    own = image_processor.to_dict()
    given = {"image_mean": section.mean, "image_std": section.std}
    settings = {key: list(value) for key, value in given.items() if value is not None}
    if section.fit is None:
        return type(image_processor)(**{**own, **settings})
    kept = ("resample", "rescale_factor", "image_mean", "image_std")
    settings = {key: own[key] for key in kept} | shapes[section.fit] | settings
    kind = LlavaImageProcessorPil if section.fit == "pad" else CLIPImageProcessorPil
    return kind(**settings)


def _has_file(folder: Path) -> bool:
    """Tell whether a local checkpoint has a file of an image processor, damaged or not."""
    return (folder / "preprocessor_config.json").exists() or damaged_json(folder) is not None


_PROBE = "a 1"


def check_tokenizer(
    checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, template: Any = None
) -> None:
    """Refuse a tokenizer that a language model cannot be used with.

    Args:
        checkpoint: of the language model, or the vision-language model.
        tokenizer: as loaded from it.
        template: a processor's chat template; by default the tokenizer's own.

    Raises:
        ModelError: it reads nothing, its ids lie past the vocabulary, or its chat template is
            empty or broken.
    """
    name = checkpoint.name
    _check_reads(name, tokenizer)
    _check_vocabulary(name, tokenizer, checkpoint.config)
    jinja = template or tokenizer.chat_template
    if isinstance(jinja, str) and not jinja.strip():
        raise ModelError(
            f"{name!r}: its chat template ({_place(checkpoint)}) is empty; copy it again, or "
            "delete it if the model has none"
        )
    if jinja:
        _check_template(checkpoint, tokenizer, template)


def _check_reads(name: str, tokenizer: Any) -> None:
    """Refuse the empty tokenizer that transformers makes where the vocabulary's file is missing."""
    try:
        ids = set(tokenizer(_PROBE, add_special_tokens=False).input_ids)
    except Exception as error:  # of whatever kind: the settings are the file's
        raise ModelError(
            f"{name!r}: its tokenizer reads no text: {' '.join(str(error).split())}; restore its "
            "tokenizer_config.json"
        ) from error
    if not ids - {tokenizer.unk_token_id}:
        files = sorted(set(type(tokenizer).vocab_files_names.values()) | {"tokenizer.json"})
        raise ModelError(
            f"{name!r}: its tokenizer reads no text at all, it has {len(tokenizer)} tokens; a file "
            f"of its vocabulary is missing or empty ({', '.join(files)}): copy it from the model "
            "that the tokenizer belongs to"
        )


def _check_vocabulary(name: str, tokenizer: Any, config: PreTrainedConfig) -> None:
    """Refuse words that the model has no embedding for.

    A token that was added and is never written may lie past the vocabulary (Gemma 3 1B's image
    token does), and so may a padding token, for which another is taken.
    """
    words = getattr(config.get_text_config(decoder=True), "vocab_size", None)
    if not isinstance(words, int):
        return
    ends = {
        tokenizer.convert_ids_to_tokens(number): number
        for number in (tokenizer.bos_token_id, tokenizer.eos_token_id)
        if number is not None
    }
    largest = max(
        (n for n in tokenizer.get_vocab().values() if n < tokenizer.vocab_size), default=0
    )
    token = tokenizer.convert_ids_to_tokens(largest)
    past = {**({token: largest} if isinstance(token, str) else {}), **ends}
    for token, number in past.items():
        if number >= words:
            raise ModelError(
                f"{name!r}: its tokenizer gives {token!r} the id {number}, and config.json says "
                f"vocab_size {words} (ids 0 to {words - 1}); take tokenizer and model from one "
                "checkpoint"
            )


def _check_template(checkpoint: Checkpoint, tokenizer: Any, template: Any) -> None:
    """Refuse a chat template that cannot write one user turn, neither as a text nor as parts."""
    try:
        jinja = template or tokenizer.get_chat_template()
        try:
            _write_turn(tokenizer, jinja, _PROBE)
        except Exception:
            _write_turn(tokenizer, jinja, [{"type": "text", "text": _PROBE}])
    except Exception as error:  # a template may raise anything
        first = error.__context__ or error
        raise ModelError(
            f"{checkpoint.name!r}: its chat template ({_place(checkpoint)}) cannot write a single "
            f"user turn: {type(first).__name__}: {' '.join(str(first).split())}; fix the template"
        ) from error


def _write_turn(tokenizer: Any, jinja: Any, content: Any) -> None:
    turn = {"role": "user", "content": content}
    tokenizer.apply_chat_template(
        [turn], chat_template=jinja, tokenize=False, add_generation_prompt=True
    )


def _place(checkpoint: Checkpoint) -> str:
    """Return where a checkpoint's chat template is."""
    folder = checkpoint.directory
    files = ("chat_template.jinja", "chat_template.json")
    paths = [str(folder / each) for each in files if (folder / each).is_file()]
    return paths[0] if paths else "chat_template in tokenizer_config.json"
