"""A connector that another run has trained, for a run to start from."""

from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from varifocal.errors import RecipeError

CONNECTOR = "connector"


def load_connector(model: PreTrainedModel, run: Path) -> None:
    """Start a model's connector from the one that another run trained.

    Args:
        model: a grafted model without a tuner; changed in place.
        run: a run directory with an adapter, or with a whole model.

    Raises:
        RecipeError: the run has no trained connector, or its connector does not fit.
    """
    where = f"model.connector.weights: '{run}'"
    adapter = run / "adapter" / "adapter_model.safetensors"
    files = [adapter] if adapter.is_file() else sorted((run / "model").glob("*.safetensors"))
    if not files:
        raise RecipeError(f"{where} holds no trained adapter")
    marker = f".{CONNECTOR}."
    tensors = {
        f".{name}".split(marker, 1)[1]: tensor
        for file in files
        for name, tensor in _read(file, where).items()
        if marker in f".{name}"
    }
    try:
        cast(Any, model).connector.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{where} was trained with another connector: {reason}") from error


def _read(file: Path, where: str) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{where}: {file} is damaged: {error}; train that run again") from error
