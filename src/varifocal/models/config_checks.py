"""Whether a config can be that of the weights next to it, said before anything is built."""

import math
import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedConfig

from varifocal.errors import ModelError
from varifocal.models.checkpoint_files import Shapes

_TWO_TOWERS = ("clip", "siglip")
"""The `model_type` of checkpoints of which the vision half alone is used, and may be alone."""
_TOWERS = ("clip_vision_model", "siglip_vision_model", "dinov2")
_WIDTHS = ("intermediate_size", "vocab_size")
_NUMBER = re.compile(r"\.(\d+)\.")
_REMEDY = "take config.json and weights from the same checkpoint"
_FAR = 4
"""How far beyond a tensor's longest side a size is refused unbuilt; below it, by tensors' names."""
_SLACK = 100_000_000
_PACKED = 16
"""Weights that a number of a quantised checkpoint may hold: 2 bits each in 32."""


def check_against_weights(name: str, config: PreTrainedConfig, shapes: Shapes) -> None:
    """Refuse a depth, width or vocabulary that a checkpoint's tensors cannot have.

    Args:
        name: what error texts call the checkpoint.
        config: of a language model, a vision tower or a vision-language model.
        shapes: the checkpoint's tensors.

    Raises:
        ModelError: the config's number and what the weights hold.
    """
    if not shapes:
        return
    numbers = [int(each) for key in shapes if "expert" not in key for each in _NUMBER.findall(key)]
    sides = {side for shape in shapes.values() for side in shape}
    for part in _parts(config):
        depth = _number(part, "num_hidden_layers")
        if numbers and depth is not None and depth > max(numbers) + 1:
            raise ModelError(
                f"{name!r}: config.json says {depth} layers ({part.model_type}), and its weights "
                f"hold {max(numbers) + 1}; {_REMEDY}"
            )
        width = _number(part, "hidden_size")
        if width is not None and width not in sides:
            raise ModelError(
                f"{name!r}: config.json says hidden_size {width} ({part.model_type}), and none of "
                f"its {len(shapes)} tensors has a side of that length; {_REMEDY}"
            )
        for key in _WIDTHS:
            size = _number(part, key)
            if size is not None and size > _FAR * max(sides):
                raise ModelError(
                    f"{name!r}: config.json says {key} {size} ({part.model_type}), and the longest "
                    f"side of its tensors is {max(sides)}; {_REMEDY}"
                )


def check_number(name: str, config: PreTrainedConfig, described: int, shapes: Shapes) -> None:
    """Refuse a model of far more parameters than its weights hold, before memory is allocated.

    Args:
        name: what error texts call the checkpoint.
        config: its config.
        described: parameters of the model that the config describes.
        shapes: the checkpoint's tensors.

    Raises:
        ModelError: with both numbers.
    """
    held = sum(math.prod(shape) for shape in shapes.values())
    packed = _PACKED if getattr(config, "quantization_config", None) is not None else 2
    if shapes and described > packed * held + _SLACK:
        raise ModelError(
            f"{name!r}: config.json describes a model of {described:,} parameters, and its weights "
            f"hold {held:,} numbers; {_REMEDY}"
        )


def check_pad_id(name: str, config: PreTrainedConfig) -> None:
    """Refuse a language model whose padding token lies past its vocabulary.

    Raises:
        ModelError: with both numbers.
    """
    text: Any = config.get_text_config(decoder=True)
    pad, words = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if isinstance(pad, int) and isinstance(words, int) and not -words <= pad < words:
        raise ModelError(
            f"{name!r}: config.json says pad_token_id {pad}, and the vocabulary has {words} words "
            f"(ids 0 to {words - 1}); correct one of them, or {_REMEDY}"
        )


def _parts(config: PreTrainedConfig) -> Iterator[Any]:
    """Yield the configs whose sizes are those of tensors that are used.

    Other towers than those that Varifocal grafts may mean something else by their names.
    """
    vision: Any = getattr(config, "vision_config", None)
    if config.model_type not in _TWO_TOWERS:
        yield config.get_text_config(decoder=True)
    if isinstance(vision, PreTrainedConfig) and vision.model_type in _TOWERS:
        yield vision


def _number(part: Any, name: str) -> int | None:
    """Return a config's number; None where it has none, or a list of them."""
    value = getattr(part, name, None)
    return value if isinstance(value, int) else None
