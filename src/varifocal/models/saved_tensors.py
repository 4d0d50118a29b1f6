"""The trained tensors of a checkpoint of full tuning, put back into their model."""

from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from varifocal.errors import ModelError, RunError
from varifocal.trained import TENSORS


def load_trained_tensors(model: PreTrainedModel, checkpoint: Path) -> None:
    """Put a checkpoint's trained tensors into a model, in the model's own number format.

    Args:
        model: as it was before the training; changed in place.
        checkpoint: of full tuning.

    Raises:
        RunError: the checkpoint has no such tensors.
        ModelError: they are another model's.
    """
    file = checkpoint / TENSORS
    if not file.is_file():
        raise RunError(f"{checkpoint} holds neither an adapter nor trained tensors ({TENSORS})")
    try:
        unknown = cast(Any, model).load_state_dict(load_file(file), strict=False).unexpected_keys
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(f"{file} does not fit this model: {error}") from error
    if unknown:
        raise ModelError(f"{file} holds tensors that this model has not: {', '.join(unknown)}")
