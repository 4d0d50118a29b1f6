"""What the `config.json` of a checkpoint of LLaVA's code says of its models and images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import LlamaConfig

from varifocal.errors import ModelError
from varifocal.models.checkpoint_files import CONFIG, check_config_file, read_object
from varifocal.models.vision import LLAVA_FEATURE_LAYER

_MODEL_TYPES = {"llava", "llava_llama", "llava_cmoa"}


@dataclass(frozen=True)
class LlavaFolder:
    """A folder of LLaVA's code, or of code that was made of it.

    Attributes:
        language_model: the name of the language model.
        vision_tower: the name of the image encoder.
        num_linears: of the projector: 1, or 2 with GELU between them.
        pads: whether images were padded to a square of the mean colour.
        notes: what a user has to know of prompts and images.
    """

    language_model: str
    vision_tower: str
    num_linears: int
    pads: bool
    notes: tuple[str, ...]


def read_folder(
    folder: Path, language_model: str | None = None, vision_tower: str | None = None
) -> LlavaFolder:
    """Read a folder's config.

    Args:
        folder: with a `config.json`.
        language_model: goes before the name in the config.
        vision_tower: goes before the name in the config.

    Raises:
        ModelError: it is no folder of LLaVA's code, or has parts that have no equal here.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise ModelError(f"'{folder}' is no checkpoint of LLaVA's code: it has no {CONFIG}")
    page = read_object(file)
    kind = page.get("model_type")
    if kind not in _MODEL_TYPES:
        known = ", ".join(sorted(_MODEL_TYPES))
        raise ModelError(f"{file} is of type {kind}, and those that are read are {known}")
    _check_features(file, page)
    return LlavaFolder(
        language_model or _name(file, page, "_name_or_path", "--language-model"),
        vision_tower or _name(file, page, "mm_vision_tower", "--vision-tower"),
        _num_linears(file, page),
        page.get("image_aspect_ratio") == "pad",
        tuple(_notes(page)),
    )


_FORMER_KEYS = {"rope_theta", "rope_scaling", "torch_dtype"}
_NOT_ITS_OWN = {"model_type", "architectures", "transformers_version", "_name_or_path"}


def language_config(folder: Path) -> LlamaConfig:
    """Read the language model's own part of a whole checkpoint's config.

    Raises:
        ModelError: a size is none that a model can have.
    """
    file = folder / CONFIG
    check_config_file(file)
    known = {*LlamaConfig().to_dict(), *_FORMER_KEYS} - _NOT_ITS_OWN
    page = {key: value for key, value in read_object(file).items() if key in known}
    config = LlamaConfig.from_dict(page)
    config.architectures = ["LlamaForCausalLM"]
    return config


def _name(file: Path, page: dict[str, Any], key: str, option: str) -> str:
    name = page.get(key)
    if not isinstance(name, str) or not name:
        raise ModelError(f"{file} has no {key}: give {option}")
    return name


def _check_features(file: Path, page: dict[str, Any]) -> None:
    expected = {
        "mm_vision_select_layer": LLAVA_FEATURE_LAYER,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "mix_mm_projector": False,
    }
    for key, value in expected.items():
        if page.get(key, value) != value:
            raise ModelError(
                f"{file}: {key} is {page[key]!r}, and only {value!r} has an equal here"
            )


def _num_linears(file: Path, page: dict[str, Any]) -> int:
    kinds = {"linear": 1, "mlp2x_gelu": 2}
    kind = page.get("mm_projector_type", "linear")
    if kind not in kinds:
        raise ModelError(
            f"{file}: mm_projector_type is {kind!r}; those with an equal here are linear and "
            "mlp2x_gelu"
        )
    return kinds[kind]


def _notes(page: dict[str, Any]) -> list[str]:
    notes = [
        "Prompts are written as LLaVA's v1 (data.chat_template: vicuna_v1), with which LLaVA 1.5, "
        "MixLoRA and MLAN were tuned; a projector alone was trained with llava_plain, which leaves "
        "questions out."
    ]
    if page.get("image_aspect_ratio") == "anyres":
        notes.append("Images were cut into tiles (image_aspect_ratio: anyres); here each is one.")
    return notes
