"""From a recipe, or a run directory, to a model with its encoder and its images' way in.

The layer between the parts (models, data, tuners) and what is done with them (training,
evaluation, serving): each of those is handed built parts and knows none of this.
"""

import hashlib
import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from varifocal.cache import file_digest
from varifocal.data.encoding.chat_template import with_system
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.rows.packing import ImageLoader
from varifocal.errors import ModelError, RunError
from varifocal.models import GraftedProcessor, distributed, load_model
from varifocal.models.decoding import add_stop_ids
from varifocal.models.families.base import family_of, family_with_side
from varifocal.models.features import FeatureStore
from varifocal.models.load import check_image_side, is_vision_language, load_processor
from varifocal.models.names import check_place
from varifocal.models.processor import with_image_parts
from varifocal.models.saved import (
    NO_STRENGTH,
    load_adapter,
    load_trained_tensors,
    start_connector,
)
from varifocal.models.sources import find_checkpoint
from varifocal.prompts import make_encoder
from varifocal.recipe import ModelSection, NoTunerSection, Recipe, load_recipe
from varifocal.run import RunDirectory
from varifocal.trained_weights import Trained, find_trained

_LOGGER = logging.getLogger("varifocal")


@dataclass(frozen=True)
class Assembly:
    """A model, ready to be trained, scored or asked.

    Attributes:
        model: the base model, or the PEFT model around it.
        processor: as `load_model` gives it.
        encoder: examples -> token ids, by the recipe's data section.
        fingerprint: SHA-256 over the frozen weights' files.
        features: the table of a frozen tower's features; None where the tower is adapted.
        load_images: images -> the model's image tensors; None for a model without a vision tower.
    """

    model: nn.Module
    processor: Any
    encoder: Encoder
    fingerprint: str | None
    features: FeatureStore | None
    load_images: ImageLoader | None

    @property
    def base(self) -> PreTrainedModel:
        """The model inside any PEFT wrapper."""
        if isinstance(self.model, PeftModel):
            return cast(PreTrainedModel, self.model.get_base_model())
        return cast(PreTrainedModel, self.model)

    def with_model(self, model: nn.Module) -> "Assembly":
        """Return the same parts around a model with a tuner, which may adapt the tower."""
        features, load_images = _image_loader(self.base, self.processor, self.fingerprint)
        return replace(self, model=model, features=features, load_images=load_images)


def assemble(recipe: Recipe, device: torch.device | None = None) -> Assembly:
    """Load a recipe's frozen parts.

    Args:
        recipe: its model and data sections say what.
        device: where the model goes; by default a GPU, where there is one.

    Raises:
        ModelError: a part cannot be had, or it is a vision-language model whose images take
            more or fewer tokens by their size.
    """
    check_image_side(recipe.model)
    device = device or distributed.own_device()  # bitsandbytes loads onto the process's current GPU
    loaded = load_model(recipe.model, seed=recipe.seed)
    cast(Any, loaded.model).to(device)
    encoder = make_encoder(loaded.processor, recipe)
    ends = cast(Any, encoder.tokenizer).eos_token_id, encoder.end_of_turn_id
    add_stop_ids(loaded.model, ends)  # for `generate`, and for what is saved whole or exported
    features, load_images = _image_loader(loaded.model, loaded.processor, loaded.fingerprint)
    return Assembly(
        loaded.model, loaded.processor, encoder, loaded.fingerprint, features, load_images
    )


def _image_loader(
    base: PreTrainedModel, processor: Any, fingerprint: str | None
) -> tuple[FeatureStore | None, ImageLoader | None]:
    """Return how images reach a model; None twice for one that takes none."""
    family = family_of(base.config)
    if family is None:
        return None, None
    return family.image_loader(base, processor, fingerprint)


def open_run(
    root: str | Path,
    *,
    dtype: str | None = None,
    checkpoint: int | None = None,
    strength: float = 1.0,
) -> tuple[Recipe, Assembly]:
    """Read a trained run back.

    A run that was stopped is read from its newest checkpoint, and a warning of the logger
    "varifocal" says so.

    Args:
        root: the run directory.
        dtype: another number format of the frozen weights than the recipe's.
        checkpoint: as of this step's checkpoint; by default as of the end.
        strength: factor on what the adapter changes, as `load_adapter` has it.

    Raises:
        RunError: there is no run here, or it has neither weights nor a checkpoint yet.
        ModelError: its adapter was trained on other weights than the recipe names now, or a
            strength was given and it has no adapter.
    """
    run = RunDirectory.open(root)
    recipe = load_recipe(run.recipe, check_paths=False)  # its data may have moved since
    if dtype is not None:
        model = ModelSection.model_validate({**recipe.model.model_dump(), "dtype": dtype})
        recipe = recipe.model_copy(update={"model": model})
    trained = find_trained(run, checkpoint)
    if trained.note:
        _LOGGER.warning(trained.note)
    if strength != 1 and not trained.is_adapter:
        raise ModelError(NO_STRENGTH)
    run.check_weights(trained.place)
    if trained.is_model:
        return recipe, assemble(_with_whole_model(recipe, trained.place))
    base = assemble(recipe)
    if trained.is_adapter:
        check_base(trained.place, recipe, base.fingerprint)
        return recipe, base.with_model(load_adapter(base.base, trained.place, strength))
    return recipe, _with_trained_tensors(recipe, base, trained)


def open_processor(root: str | Path) -> Any:
    """Read a run's processor, or its tokenizer; no weights are loaded.

    Its chat template writes a prompt as the run was trained, the recipe's system prompt included.

    Raises:
        RunError: there is no run here, or it has neither weights nor a checkpoint yet.
        ModelError: a part of its base models cannot be had.
    """
    run = RunDirectory.open(root)
    recipe = load_recipe(run.recipe, check_paths=False)
    trained = find_trained(run)
    if trained.is_model:
        recipe = _with_whole_model(recipe, trained.place)
    check_image_side(recipe.model)
    processor = load_processor(recipe.model)
    encoder = make_encoder(processor, recipe)
    template = with_system(encoder.template.jinja, encoder.system)
    if isinstance(processor, GraftedProcessor):
        template = with_image_parts(template, processor.image_token)
    processor.chat_template = template
    return processor


def _with_trained_tensors(recipe: Recipe, base: Assembly, trained: Trained) -> Assembly:
    """Put a full tuning's checkpoint into its base.

    Raises:
        ModelError: the base or the tensors are others than were trained.
    """
    recorded = recipe.provenance.base_fingerprint if recipe.provenance else None
    _check_same_base(trained.place, recipe, recorded, base.fingerprint)
    start_connector(base.base, recipe, trained.place)
    load_trained_tensors(base.base, trained.place)
    return base


def open_model(
    name: str | Path,
    adapter: str | Path | None = None,
    *,
    dtype: str | None = None,
    strength: float = 1.0,
) -> tuple[Recipe, Assembly]:
    """Open a run, or any language model or vision-language model, for use.

    Args:
        name: a run directory, a packaged model, a local directory, or a hub id.
        adapter: a directory of PEFT's files to put around a model; a run has its own.
        dtype: number format of the frozen weights; by default a run's own, and float32 for a model.
        strength: factor on what the adapter changes, as `load_adapter` has it.

    Returns:
        The run's recipe, or one with the model's name and defaults, and the parts. The prompts of
        both may be as long as the model's window; longer ones lose text from their middle.

    Raises:
        RunError: there is nothing of that name, or the run has neither weights nor a checkpoint.
        ModelError: the model or its adapter cannot be had, they do not fit, or a strength was given
            and there is no adapter.
    """
    path = Path(name).expanduser()
    if (path / "recipe.yaml").is_file():
        if adapter is not None:
            raise RunError(
                f"{path} is a run and has its own adapter; give --adapter with a model's name"
            )
        recipe, parts = open_run(path, dtype=dtype, strength=strength)
        return _with_window(recipe, parts)
    check_place(str(name), path)
    if strength != 1 and adapter is None:
        raise ModelError(NO_STRENGTH)
    model = ModelSection.model_validate({"language_model": str(name), "dtype": dtype or "float32"})
    recipe = Recipe(model=model, tuner=NoTunerSection(train_connector=False))
    recipe, parts = _with_window(recipe, assemble(recipe))
    if adapter is None:
        return recipe, parts
    return recipe, parts.with_model(_with_adapter(parts.base, Path(adapter), strength))


@dataclass(frozen=True)
class OpenedVlm:
    """A vision-language model of transformers that is asked as it is.

    Attributes:
        model: the model, or the PEFT model around it.
        processor: its own.
        fingerprint: SHA-256 over its weights' files.
    """

    model: nn.Module
    processor: Any
    fingerprint: str | None


def is_vlm(name: str | Path) -> bool:
    """Tell whether a name is a vision-language model that `open_model` has no encoder for.

    Raises:
        RunError, ModelError: as `open_model`.
    """
    path = Path(name).expanduser()
    if (path / "recipe.yaml").is_file():
        return False
    check_place(str(name), path)
    checkpoint = find_checkpoint(str(name))
    return is_vision_language(checkpoint) and family_with_side(checkpoint.config, None) is None


def open_vlm(
    name: str | Path,
    adapter: str | Path | None = None,
    *,
    dtype: str = "float32",
    strength: float = 1.0,
) -> OpenedVlm:
    """Open a vision-language model for use; see `open_model`.

    Raises:
        ModelError: the model or its adapter cannot be had, they do not fit, or a strength was given
            and there is no adapter.
    """
    if strength != 1 and adapter is None:
        raise ModelError(NO_STRENGTH)
    section = {"language_model": str(name), "dtype": dtype}
    loaded = load_model(ModelSection.model_validate(section))
    cast(Any, loaded.model).to(distributed.own_device())
    if adapter is None:
        return OpenedVlm(loaded.model, loaded.processor, loaded.fingerprint)
    model = _with_adapter(loaded.model, Path(adapter), strength)
    return OpenedVlm(model, loaded.processor, loaded.fingerprint)


def _with_adapter(model: PreTrainedModel, adapter: Path, strength: float = 1.0) -> nn.Module:
    place = adapter.expanduser()
    if not (place / "adapter_config.json").is_file():
        raise ModelError(f"'{place}' is no adapter: it has no adapter_config.json")
    return load_adapter(model, place, strength).eval()


def weights_fingerprint(
    name: str | Path,
    parts: Assembly | OpenedVlm,
    adapter: Path | None,
    checkpoint: int | None = None,
) -> str | None:
    """Return a SHA-256, in hex, over all weights after a name of `open_model`.

    Args:
        name: as `open_model` was given it.
        parts: what it, or `open_vlm`, returned.
        adapter: as it was given; a run's own is found.
        checkpoint: the step that a run was opened as of; None for the newest.
    """
    run = RunDirectory(Path(name).expanduser())
    if parts.fingerprint is None:
        return None
    trained = find_trained(run, checkpoint) if run.recipe.is_file() else None
    place = adapter if trained is None or trained.is_model else trained.place
    identity = [parts.fingerprint]
    if place is not None:
        files = sorted(file for file in Path(place).expanduser().rglob("*") if file.is_file())
        identity += [
            file_digest(file) for file in files if file.suffix in (".json", ".safetensors")
        ]
    return hashlib.sha256("\0".join(identity).encode()).hexdigest()


def _with_window(recipe: Recipe, parts: Assembly) -> tuple[Recipe, Assembly]:
    """Let prompts be as long as the model can read."""
    text = parts.base.config.get_text_config(decoder=True)
    window = getattr(text, "max_position_embeddings", None) or recipe.data.max_length
    wider = {"max_length": window, "row_length": None, "overflow": "truncate_prompt"}
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update=wider)})
    return recipe, replace(parts, encoder=make_encoder(parts.processor, recipe))


def _with_whole_model(recipe: Recipe, directory: Path) -> Recipe:
    """The recipe around the model that its full tuning has saved, tower and connector inside."""
    whole = {"language_model": str(directory), "vision_tower": None, "connector": None}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=whole)})


def check_base(adapter: Path, recipe: Recipe, fingerprint: str | None) -> None:
    """Refuse an adapter, in its directory, on another base than it was trained on.

    Raises:
        ModelError: the weights have another content hash than when the run was trained.
    """
    _check_same_base(adapter, recipe, _trained_on(adapter, recipe), fingerprint)


def _check_same_base(
    place: Path, recipe: Recipe, trained_on: str | None, fingerprint: str | None
) -> None:
    if trained_on is None or fingerprint is None or trained_on == fingerprint:
        return
    parts = ", ".join(filter(None, (recipe.model.language_model, recipe.model.vision_tower)))
    raise ModelError(
        f"the adapter in '{place}' was trained on a base with content hash "
        f"{trained_on[:12]}, but {parts} now has {fingerprint[:12]}: "
        "name the base it was trained on in the run's recipe.yaml, or train again"
    )


def _trained_on(adapter: Path, recipe: Recipe) -> str | None:
    """The base's content hash: an MMA adapter's config has it, and the recipe's provenance."""
    file = adapter / "adapter_config.json"
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ModelError(f"'{file}' is damaged: {error}; bring it back from a copy") from error
    recorded = recipe.provenance.base_fingerprint if recipe.provenance else None
    return config.get("base_fingerprint") or recorded
