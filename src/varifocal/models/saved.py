"""A saved adapter put around a model, with every tensor that either of them has."""

from pathlib import Path
from typing import Any, cast

from peft import MODEL_TYPE_TO_PEFT_MODEL_MAPPING, PeftConfig, PeftModel
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from varifocal.errors import ModelError, RecipeError, RunError
from varifocal.models.checkpoint_files import few, read_object
from varifocal.models.tied_embeddings import adapters_change_one
from varifocal.recipe import Recipe
from varifocal.run import RunDirectory
from varifocal.trained_weights import TENSORS, find_trained
from varifocal.writing import write_json, write_text


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


CONNECTOR = "connector"
_ADAPTER = "adapter_model.safetensors"
_MARKER = f".{CONNECTOR}."


def start_connector(model: PreTrainedModel, recipe: Recipe, checkpoint: Path | None) -> None:
    """Start a model's connector from the run that the recipe names, unless a checkpoint has it.

    Args:
        model: a model without a tuner; changed in place.
        recipe: the run's.
        checkpoint: whose tensors are put into the model afterwards; None for a fresh run.

    Raises:
        RecipeError: as `load_connector`.
        RunError: the checkpoint lacks a connector that was aligned, so nothing can restore it.
    """
    section = recipe.model.connector
    if section is None or (checkpoint is not None and _holds_connector(checkpoint)):
        return
    if checkpoint is not None and recipe.alignment is not None:
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


def start_adapter(model: PreTrainedModel | PeftModel, recipe: Recipe, digest: str | None) -> None:
    """Start a model's adapter from the run that the recipe names, if it names one.

    Args:
        model: with a fresh adapter; changed in place.
        recipe: its `tuner.weights` is read.
        digest: content hash of the frozen weights.

    Raises:
        RecipeError: the run has no adapter, another kind of one, or was trained on other weights.
        RunError, ModelError: there is no such run, or it is damaged.
    """
    weights = getattr(recipe.tuner, "weights", None)
    if weights is None:
        return
    where = f"tuner.weights: '{weights}'"
    run = RunDirectory.open(Path(weights))
    trained = find_trained(run)
    if not trained.is_adapter:
        raise RecipeError(f"{where} holds no trained adapter")
    run.check_weights(trained.place)
    trained_on = read_object(trained.place / "adapter_config.json").get("base_fingerprint")
    if None not in (trained_on, digest) and trained_on != digest:
        raise RecipeError(f"{where} was trained on other models than this recipe names")
    tensors = _read(trained.place / _ADAPTER, where)
    shapes = get_peft_model_state_dict(cast(PeftModel, model), save_embedding_layers=False)
    fresh = cast(dict[str, Tensor], shapes)
    odd = sorted(tensors.keys() ^ fresh.keys()) or [
        name for name, tensor in tensors.items() if tensor.shape != fresh[name].shape
    ]
    if odd:
        raise RecipeError(
            f"{where} was trained with another tuner or connector: {few(odd)}; take both from its "
            "recipe.yaml"
        )
    set_peft_model_state_dict(cast(PeftModel, model), tensors)


def _read(file: Path, where: str) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"{where}: {file} is damaged: {error}; train that run again") from error


WEIGHTS = "adapter_model.safetensors"
_NAME = "default"


def load_adapter(model: PreTrainedModel, directory: Path, strength: float = 1.0) -> PeftModel:
    """Put a saved adapter around a model, for use.

    As `PeftModel.from_pretrained`, which only warns of tensors that the file lacks, and is silent
    about those that the model has no place for.

    Args:
        model: the base model; changed in place.
        directory: of PEFT's files.
        strength: factor on what the adapter changes (wise-ft, arXiv 2109.01903, in the space of the
            adapter's output): 0 is the base bit for bit on rows without an image, 1 the trained
            model. Modules that were trained whole, such as a connector, stay as they are.

    Raises:
        ModelError: the adapter's tensors do not fit the model, a file is missing or damaged, or
            this adapter has no strength.
    """
    if not (directory / WEIGHTS).is_file():
        raise ModelError(
            f"'{directory}' holds no {WEIGHTS}, the only adapter weights that are read"
        )
    read_object(directory / "adapter_config.json")
    try:
        config = PeftConfig.from_pretrained(str(directory))
        config.inference_mode = True
        if strength != 1:
            _scale(config, strength)
        kind = MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(str(config.task_type), PeftModel)
        with adapters_change_one():
            wrapped = kind(cast(Any, model), config, _NAME)
        result = wrapped.load_adapter(str(directory), _NAME)
    except KeyError as error:  # of a module that was trained whole
        raise _misfit(directory, f"1 tensor is missing in {WEIGHTS} ({error.args[0]})") from error
    except (RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise _misfit(directory, f"{' '.join(str(error).split()):.300}") from error
    faults = [
        f"{len(names)} {'tensor is' if len(names) == 1 else 'tensors are'} {what} ({few(names)})"
        for names, what in (
            (sorted(result.missing_keys), f"missing in {WEIGHTS}"),
            (sorted(result.unexpected_keys), "left over"),
        )
        if names
    ]
    if faults:
        raise _misfit(directory, "; ".join(faults) + ".")
    return wrapped


def _scale(config: Any, strength: float) -> None:
    """Multiply the factor that a method has on its output; what is saved then has it, too."""
    if not 0 <= strength < float("inf"):
        raise ModelError(f"strength is {strength}; give 0 (the base), 1 (as trained) or between")
    kind = getattr(config.peft_type, "value", config.peft_type)
    if kind == "MMA":
        config.scale *= strength
    elif kind == "MIXLORA":
        config.lora_alpha = config.scaling * config.rank * strength
    elif kind == "LORA_EXPERTS":
        config.lora_alpha *= strength
    elif (
        kind in ("LORA", "IMAGE_LORA")
        and config.target_modules != DUMMY_TARGET_MODULES
        and not config.use_dora  # the change of a direction is no multiple of anything
    ):
        config.lora_alpha *= strength
        config.alpha_pattern = {name: a * strength for name, a in config.alpha_pattern.items()}
    else:
        raise ModelError(NO_STRENGTH)


NO_STRENGTH = (
    "strength scales what an adapter changes, and this model has none that could be scaled: leave "
    "it out, or train with tuner.type mma, mixlora, lora_experts or lora"
)


def _misfit(directory: Path, reason: str) -> ModelError:
    return ModelError(
        f"the adapter in '{directory}' does not fit this model: {reason} "
        "Load it on the base model that it was trained on"
    )


_CARD = """---
base_model: {base}
library_name: peft
tags:
- varifocal
---

# {title}, adapter

{kind} for {base}, trained with Varifocal. The licence of the base model holds for it, too.

```python
import varifocal as vf

model = vf.load("RUN")  # the run's folder, in which this one lies as `adapter`
```

{alone} What was measured stands in the README of the run.
"""
_KINDS = {
    "mma": "An MMA adapter",
    "mixlora": "A MixLoRA adapter",
    "lora_experts": "An adapter of LoRA experts",
    "lora": "A LoRA",
    "peft": "An adapter of PEFT",
    "none": "A connector",
}
_OURS = (
    "PEFT alone does not know this kind of adapter and refuses it by name; `import varifocal` "
    "registers it."
)
_THEIRS = "PEFT alone loads it around the model that the run trained, with its connector."


def shared_name(name: str) -> str:
    """Return a checkpoint's name as others may read it: of a folder of this machine its own alone.

    >>> shared_name("meta-llama/Llama-2-7b-hf")
    'meta-llama/Llama-2-7b-hf'
    """
    place = Path(name).expanduser()
    return place.resolve().name if place.is_dir() else name


def describe_adapter(directory: Path, recipe: Recipe) -> None:
    """Write an adapter's own card in the place of PEFT's empty one, and name no path of here.

    Args:
        directory: as PEFT has saved it.
        recipe: the run's.

    Raises:
        RunError: the disk is full.
    """
    page = read_object(directory / "adapter_config.json")
    base = shared_name(recipe.model.language_model)
    page["base_model_name_or_path"] = base
    kind = _KINDS[recipe.tuner.type]
    card = _CARD.format(
        base=base,
        title=recipe.name or base.rpartition("/")[2],
        kind=kind,
        alone=_OURS if recipe.tuner.type in ("mma", "mixlora", "lora_experts") else _THEIRS,
    )
    write_json(directory / "adapter_config.json", page)
    write_text(directory / "README.md", card)
