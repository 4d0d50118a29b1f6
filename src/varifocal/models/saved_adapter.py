"""A saved adapter put around a model, with every tensor that either of them has."""

from pathlib import Path
from typing import Any, cast

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel

from varifocal.errors import ModelError
from varifocal.models.checkpoint_files import few, read_object
from varifocal.models.shared_table import adapters_change_one

WEIGHTS = "adapter_model.safetensors"
_NAME = "default"


def load_adapter(model: PreTrainedModel, directory: Path) -> PeftModel:
    """Put a saved adapter around a model, for use.

    As `PeftModel.from_pretrained`, which only warns of tensors that the file lacks, and is silent
    about those that the model has no place for.

    Args:
        model: the base model; changed in place.
        directory: of PEFT's files.

    Raises:
        ModelError: the adapter's tensors do not fit the model, or a file is missing or damaged.
    """
    if not (directory / WEIGHTS).is_file():
        raise ModelError(
            f"'{directory}' holds no {WEIGHTS}, the only adapter weights that are read"
        )
    read_object(directory / "adapter_config.json")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        config.inference_mode = True
        kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
        with adapters_change_one():
            wrapped = kind(cast(Any, model), config, _NAME)
        found = wrapped.load_adapter(str(directory), _NAME)
    except KeyError as error:  # of a module that was trained whole
        raise _misfit(directory, f"1 tensor is missing in {WEIGHTS} ({error.args[0]})") from error
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise _misfit(directory, f"{' '.join(str(error).split()):.300}") from error
    faults = [
        f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {what} ({few(names)})"
        for names, what in (
            (sorted(found.missing_keys), f"missing in {WEIGHTS}"),
            (sorted(found.unexpected_keys), "left over"),
        )
        if names
    ]
    if faults:
        raise _misfit(directory, "; ".join(faults) + ".")
    return wrapped


def _misfit(directory: Path, reason: str) -> ModelError:
    return ModelError(
        f"the adapter in '{directory}' does not fit this model: {reason} "
        "Load it on the base model that it was trained on"
    )
