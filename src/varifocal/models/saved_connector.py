"""A connector that another run has trained, for a run to start from."""

from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from varifocal.errors import RecipeError, RunError
from varifocal.recipe import ConnectorSection
from varifocal.trained import TENSORS

CONNECTOR = "connector"
_ADAPTER = "adapter_model.safetensors"
_MARKER = f".{CONNECTOR}."


def start_connector(
    model: PreTrainedModel, section: ConnectorSection | None, checkpoint: Path | None
) -> None:
    """Start a model's connector from the run that the recipe names, unless a checkpoint has it.

    Args:
        model: a model without a tuner; changed in place.
        section: the recipe's.
        checkpoint: whose tensors are put into the model afterwards; None for a fresh run.

    Raises:
        RecipeError: as `load_connector`.
        RunError: the checkpoint lacks a connector that was aligned, so nothing can restore it.
    """
    if section is None or (checkpoint is not None and _holds_connector(checkpoint)):
        return
    if checkpoint is not None and section.alignment is not None:
        raise RunError(
            f"{checkpoint} is of an older version, which did not save an aligned connector that "
            "tuner.train_connector: false had frozen; train the run again"
        )
    if section.weights is not None:
        load_connector(model, Path(section.weights))


def _holds_connector(checkpoint: Path) -> bool:
    """Tell whether the tensors of a checkpoint include a connector's."""
    for file in (checkpoint / TENSORS, checkpoint / _ADAPTER):
        if file.is_file():
            with safe_open(file, framework="np") as tensors:
                return any(_MARKER in f".{name}" for name in tensors.keys())  # noqa: SIM118
    return False


def load_connector(model: PreTrainedModel, run: Path) -> None:
    """Start a model's connector from the one that another run trained.

    Args:
        model: a grafted model without a tuner; changed in place.
        run: a run directory with an adapter, or with a whole model.

    Raises:
        RecipeError: the run has no trained connector, or its connector does not fit.
    """
    where = f"model.connector.weights: '{run}'"
    adapter = run / "adapter" / _ADAPTER
    files = [adapter] if adapter.is_file() else sorted((run / "model").glob("*.safetensors"))
    if not files:
        raise RecipeError(f"{where} holds no trained adapter")
    tensors = {
        f".{name}".split(_MARKER, 1)[1]: tensor
        for file in files
        for name, tensor in _read(file, where).items()
        if _MARKER in f".{name}"
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
