"""Writing a run directory around tensors that were trained elsewhere."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from varifocal.cache import fingerprint
from varifocal.errors import ModelError
from varifocal.models import load_model
from varifocal.models.checkpoint_files import INDEX, few
from varifocal.models.load import find_config, load_processor
from varifocal.models.saved import WEIGHTS
from varifocal.models.sources import weight_files
from varifocal.prompts import make_encoder
from varifocal.recipe import Recipe
from varifocal.run import RunDirectory
from varifocal.training.result import TrainingResult
from varifocal.training.train import with_provenance
from varifocal.training.tuner import attach_tuner, count_trained
from varifocal.writing import atomic_directory, write_json

Fill = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def write_run(recipe: Recipe, fill: Fill, out: Path, origin: Mapping[str, Any]) -> Path:
    """Write a run whose adapter was trained elsewhere.

    No frozen weight is loaded: the adapter's names and shapes are those of a model of the recipe on
    the meta device.

    Args:
        recipe: models, connector and tuner as the adapter was trained with.
        fill: from our tensors by name, without values, to the same with their values.
        out: the run directory, empty or not there.
        origin: what `imported.json` says of the source.

    Returns:
        The run directory.

    Raises:
        ModelError: a model of the recipe cannot be had, or the tensors do not fit it.
        RunError: the directory holds a run already or other files, or cannot be written.
    """
    recipe = _absolute(recipe)
    names = [n for n in (recipe.model.language_model, recipe.model.vision_tower) if n is not None]
    digest = fingerprint([file for name in names for file in weight_files(name)])
    base = load_model(recipe.model, meta=True).model
    tuned = attach_tuner(base, recipe.tuner, base_fingerprint=digest)
    shapes = get_peft_model_state_dict(cast(PeftModel, tuned), save_embedding_layers=False)
    tensors = fill(cast(dict[str, Tensor], shapes))
    processor = load_processor(recipe.model)
    make_encoder(processor, recipe)  # the processor gets the recipe's chat template
    run = RunDirectory.create(out)
    with run.lock():
        with atomic_directory(run.adapter, noted="*.safetensors") as staging:
            _save_adapter(tuned, tensors, staging)
        with atomic_directory(run.processor) as staging:
            processor.save_pretrained(staging)
        write_json(run.root / "training.json", asdict(_untrained(tuned)))
        write_json(run.imported, dict(origin))
        run.write_recipe(with_provenance(recipe, digest).dump_yaml())
    return run.root


def write_base(
    config: PreTrainedConfig, files: Iterable[Mapping[str, Tensor]], out: Path, source: str
) -> dict[str, Tensor]:
    """Write the language model that a whole checkpoint holds, one of its files in memory at a time.

    Args:
        config: of the language model.
        files: the tensors of each file, by the names of the language model.
        out: an empty directory.
        source: the checkpoint, for error messages.

    Returns:
        The tensors that are not the language model's.

    Raises:
        ModelError: a tensor is missing, is there twice, or has another shape than the config says.
    """
    with torch.device("meta"):
        shapes = AutoModelForCausalLM.from_config(config).state_dict()
    places: dict[str, str] = {}
    others: dict[str, Tensor] = {}
    for number, tensors in enumerate(files, start=1):
        if twice := sorted(tensors.keys() & (places.keys() | others.keys())):
            raise ModelError(f"{source} holds {len(twice)} tensors twice ({few(twice)})")
        own = {name: tensor for name, tensor in tensors.items() if name in shapes}
        for name, tensor in own.items():
            if tensor.shape != shapes[name].shape:
                raise ModelError(
                    f"{source}: {name} has the shape {list(tensor.shape)}, and its config.json "
                    f"says {list(shapes[name].shape)}"
                )
        if own:
            file = f"model-{number:05d}.safetensors"
            copies = {name: tensor.contiguous().clone() for name, tensor in own.items()}
            save_file(copies, out / file, metadata={"format": "pt"})
            places |= dict.fromkeys(own, file)
        others |= {name: tensor for name, tensor in tensors.items() if name not in own}
    tied = {"lm_head.weight"} if getattr(config, "tie_word_embeddings", False) else set()
    if missing := sorted(shapes.keys() - places.keys() - tied):
        raise ModelError(
            f"{source} lacks {len(missing)} tensors of its language model ({few(missing)})"
        )
    config.save_pretrained(out)
    write_json(out / INDEX, {"metadata": {}, "weight_map": places})
    return others


def _absolute(recipe: Recipe) -> Recipe:
    """Make the names of models that are directories here absolute, as a run's recipe has them."""
    names = {}
    for key in ("language_model", "vision_tower"):
        name = getattr(recipe.model, key)
        path = Path(name).expanduser()
        names[key] = os.path.abspath(path) if path.is_dir() else name
    return recipe.model_copy(update={"model": recipe.model.model_copy(update=names)})


def _save_adapter(
    tuned: PeftModel | PreTrainedModel, tensors: Mapping[str, Tensor], directory: Path
) -> None:
    """Write PEFT's two files, as `save_pretrained` of a model with these values would."""
    config = cast(PeftModel, tuned).peft_config["default"]
    config.inference_mode = True
    config.save_pretrained(str(directory))
    held = {name: tensor.float().contiguous().clone() for name, tensor in tensors.items()}
    save_file(held, directory / WEIGHTS, metadata={"format": "pt"})


def _untrained(tuned: PeftModel | PreTrainedModel) -> TrainingResult:
    """Describe a training of no step."""
    return TrainingResult(
        steps=0,
        loss=None,
        trained_parameters=count_trained(tuned),
        tokens=0,
        supervised_tokens=0,
        vision_passes=0,
        minutes=0.0,
        peak_memory_gib=0.0,
        packing_efficiency=0.0,
    )


def check_width(recipe: Recipe, num_layers: int, width: int, source: str) -> None:
    """Refuse a language model that has another shape than the checkpoint's.

    Raises:
        ModelError: it has, or its config cannot be had.
    """
    config = find_config(recipe.model.language_model).config.get_text_config(decoder=True)
    actual = (config.num_hidden_layers, config.hidden_size)
    if actual != (num_layers, width):
        raise ModelError(
            f"{source} was trained on a language model of {num_layers} layers of width {width}, "
            f"and {recipe.model.language_model} has {actual[0]} of width {actual[1]}"
        )
