"""From a recipe's file to a recipe: found, overridden, validated, its paths made absolute."""

import glob
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from varifocal.errors import RecipeError, nearest
from varifocal.recipe.chat_templates import CHAT_TEMPLATES, is_jinja, is_template_file
from varifocal.recipe.data import SourceSection
from varifocal.recipe.model import ConnectorSection
from varifocal.recipe.optimizers import missing_package
from varifocal.recipe.sections import Recipe, read_former_keys, refuse_former_keys
from varifocal.recipe.services import missing_services
from varifocal.recipe.strict_yaml import as_overrides, put, read_page, validate
from varifocal.recipe.training import TrainingSection
from varifocal.recipe.tuners import TunerSection

SHIPPED = Path(__file__).parent / "shipped"

_SIDES = ("train", "captions", "evaluate")


def load_recipe(
    source: str | os.PathLike[str] | Mapping[str, Any] | Recipe,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    check_paths: bool = True,
) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        source: a YAML file, the bare name of a recipe that ships with Varifocal (`demo`), the
            sections as a mapping, whose relative paths start at the current directory, or a recipe.
        overrides: dotted keys and values, as a mapping or as texts `training.max_steps=100`; their
            relative paths start where the recipe's own do.
        check_paths: refuse data sources, files of engines and packages that are not there.

    Returns:
        The recipe, its paths absolute; one that was read from a file has a name.

    Raises:
        RecipeError: one sentence a line for each thing that is wrong.
    """
    file = None if isinstance(source, Mapping | Recipe) else find_recipe(source)
    page = _as_page(source) if file is None else read_page(file)
    # A run's own copy: what was trained is done, and has to open with any version's rules.
    context = {"is_trained": page.get("provenance") is not None}
    if context["is_trained"]:
        read_former_keys(page)
    for key, value in as_overrides(overrides).items():
        put(page, key, value)
    refuse_former_keys(page)
    start = _start_of(file)
    recipe = _absolute(validate(Recipe, page, context), start)
    if recipe.name is None and file is not None:
        recipe = recipe.model_copy(update={"name": file.stem})
    if check_paths:
        _check_sources(recipe, start)
        check_installed(recipe.training)
        check_engine_files(recipe.training)
    return recipe


def check_again(recipe: Recipe, num_processes: int) -> None:
    """Check what training needs, whoever made the recipe: a run's own copy is read leniently.

    Args:
        recipe: about to be trained.
        num_processes: that train it.

    Raises:
        RecipeError: one sentence a line for each thing that is wrong.
    """
    validate(Recipe, recipe.model_dump() | {"provenance": None})
    check_installed(recipe.training)
    check_engine_files(recipe.training, num_processes)


def check_installed(training: TrainingSection) -> None:
    """Refuse an optimiser or a service whose package is not installed.

    Raises:
        RecipeError: names the package.
    """
    package = missing_package(training.optimizer)
    if package is not None:
        raise RecipeError(
            f"training.optim: {training.optimizer} needs {package}; run: pip install {package}, or "
            "take adamw_torch"
        )
    lacking = missing_services(training.get("report_to"))
    if lacking is not None:
        raise RecipeError(f"training.report_to: {lacking} is not installed; run: pip install it")


def _start_of(file: Path | None) -> Path:
    """Return where relative paths of a recipe start: at its own file, or where the user stands."""
    if file is None or SHIPPED.resolve() in file.resolve().parents:
        return Path.cwd()
    return file.parent


def _as_page(value: Any) -> Any:
    """Return a mapping as YAML would give it: sections as dicts, sequences as lists, paths as text.

    Nothing of the result is shared with what was given, so that overrides do not reach it.
    """
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _as_page(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_as_page(inner) for inner in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def find_recipe(path: str | os.PathLike[str]) -> Path:
    """Find a recipe's file: as given, or by its bare name among the shipped ones."""
    file = Path(path).expanduser()
    if file.is_file():
        return file
    shipped = {each.stem: each for each in sorted(SHIPPED.glob("*.yaml"))}
    if file.parent == Path() and file.name.removesuffix(".yaml") in shipped:
        return shipped[file.name.removesuffix(".yaml")]
    if file.is_dir():
        raise RecipeError(f"'{path}' is a folder; give the recipe's .yaml file")
    there = [str(other) for other in file.parent.glob("*.yaml")]
    hint = nearest(str(file), there) or nearest(file.stem, shipped)
    raise RecipeError(f"no recipe '{path}'{hint or '; shipped: ' + ', '.join(shipped)}")


def _absolute(recipe: Recipe, base: Path) -> Recipe:
    data, model = recipe.data, recipe.model
    start = Path(_join(base, data.root)) if data.root else base
    tower = model.vision_tower
    return recipe.model_copy(
        update={
            "data": data.model_copy(
                update={
                    "root": str(start) if data.root else None,
                    "chat_template": _template_text(base, data.chat_template),
                    **{
                        side: tuple(_source_at(start, source) for source in getattr(data, side))
                        for side in _SIDES
                    },
                }
            ),
            "model": model.model_copy(
                update={
                    "language_model": _model_name(base, model.language_model),
                    "vision_tower": _model_name(base, tower) if tower else None,
                    "connector": _connector_at(base, model.connector),
                }
            ),
            "tuner": _tuner_at(base, recipe.tuner),
            "training": _training_at(base, start, recipe.training),
        }
    )


def _template_text(base: Path, choice: str | None) -> str | None:
    """Read the file of a chat template, so that a run holds the text; names stay names.

    Raises:
        RecipeError: the file cannot be read, or holds no template.
    """
    if choice is None or not is_template_file(choice):
        return choice
    file = Path(_join(base, choice))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        near = [other.name for other in file.parent.glob("*") if other.is_file()]
        hint = nearest(file.name, near) or nearest(file.stem, CHAT_TEMPLATES)
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise RecipeError(f"data.chat_template: cannot read '{file}': {reason}{hint}") from None
    if not is_jinja(text):
        raise RecipeError(
            f"data.chat_template: '{file}' holds no Jinja, no {{{{ ... }}}} or {{% ... %}}; give a "
            "chat template"
        )
    return text


def _training_at(base: Path, start: Path, training: TrainingSection) -> TrainingSection:
    if training.keep is not None:
        sources = tuple(_source_at(start, source) for source in training.keep.instructions)
        keep = training.keep.model_copy(update={"instructions": sources})
        training = training.model_copy(update={"keep": keep})
    given = {key: training.get(key) for key in ENGINE_FILES if training.get(key) is not None}
    if not given:
        return training
    files = {key: _engine_file(base, value) for key, value in given.items()}
    # A copy's update would leave passed-through keys next to the others.
    return TrainingSection.model_construct(**{**dict(training), **files})


def _engine_file(base: Path, value: Any) -> Any:
    """Make the path of an engine's settings absolute; they may stand in the recipe itself."""
    is_path = isinstance(value, str) and not value.lstrip().startswith("{")
    return _join(base, value) if is_path else value


def _connector_at(base: Path, connector: ConnectorSection | None) -> ConnectorSection | None:
    if connector is None or connector.weights is None:
        return connector
    return connector.model_copy(update={"weights": _join(base, connector.weights)})


def _tuner_at(base: Path, tuner: TunerSection) -> TunerSection:
    weights = getattr(tuner, "weights", None)
    return tuner if weights is None else tuner.model_copy(update={"weights": _join(base, weights)})


def _source_at(start: Path, source: SourceSection) -> SourceSection:
    places: dict[str, Any] = {key: _join(start, value) for key, value in _places(source)}
    if source.join is not None:
        places["join"] = source.join.model_copy(update={"path": places.pop("join.path")})
    return source.model_copy(update=places)


def _places(source: SourceSection) -> Iterator[tuple[str, str]]:
    """Yield the keys of a source that name places, with these."""
    for key in ("path", "image_folder"):
        if (value := getattr(source, key, None)) is not None:
            yield key, value
    if source.join is not None:
        yield "join.path", source.join.path


def _join(base: Path, path: str) -> str:
    return os.path.abspath(base / Path(path).expanduser())


def _model_name(base: Path, name: str) -> str:
    """Make a model name absolute where it is a directory; leave packaged names and hub ids."""
    is_path = name.startswith((".", "~", "/")) or (base / name).is_dir()
    return _join(base, name) if is_path else name


def _check_sources(recipe: Recipe, start: Path) -> None:
    data, keep = recipe.data, recipe.training.keep
    starts = (Path(data.root), start) if data.root else (start,)
    lists = {f"data.{side}": getattr(data, side) for side in _SIDES}
    if keep is not None:
        lists["training.keep.instructions"] = keep.instructions
    findings = [
        _missing_path(f"{where}[{index}].{key}", Path(value), starts)
        for where, sources in lists.items()
        for index, source in enumerate(sources)
        for key, value in _places(source)
        if not glob.glob(value)
    ]
    if findings:
        raise RecipeError("\n".join(findings))


def _missing_path(where: str, path: Path, starts: Iterable[Path]) -> str:
    for base in starts:
        here = Path(os.path.abspath(os.path.relpath(path, base)))
        if here != path and here.exists():
            return (
                f"{where}: no file '{path}'; relative paths start at '{base}' here, and '{here}' "
                "is there: give the whole path"
            )
    if not path.parent.is_dir():
        return f"{where}: no file '{path}'; there is no folder '{path.parent}'"
    hint = nearest(path.name, (other.name for other in path.parent.iterdir()))
    return f"{where}: no file '{path.name}'{hint or f' in {path.parent}'}"


ENGINE_FILES = ("deepspeed", "fsdp_config")
"""Keys of `training` that name a file."""

_FSDP_KEYS = (
    "version",
    "auto_wrap_policy",
    "transformer_layer_cls_to_wrap",
    "min_num_params",
    "reshard_after_forward",
    "state_dict_type",
    "cpu_offload",
    "cpu_ram_efficient_loading",
    "activation_checkpointing",
)
"""What transformers reads of a file for FSDP2, each with or without `fsdp_` before it."""


def check_engine_files(training: TrainingSection, num_processes: int | None = None) -> None:
    """Refuse settings of FSDP or DeepSpeed that cannot be read, or contradict the recipe.

    Args:
        training: the recipe's section.
        num_processes: that train; None leaves the batch sizes unchecked, as a launch shares them.

    Raises:
        RecipeError: no file, no JSON, an unknown key, or a number that the recipe has otherwise.
    """
    if (fsdp := training.get("fsdp_config")) is not None:
        _check_fsdp(_read("fsdp_config", fsdp), training)
    if (deepspeed := training.get("deepspeed")) is not None:
        config = _read("deepspeed", deepspeed)
        if importlib.util.find_spec("deepspeed") is None:
            raise RecipeError(
                "training.deepspeed: deepspeed is not installed; run: pip install deepspeed, or "
                "take another engine (`varifocal launch --engine fsdp2`)"
            )
        _check_deepspeed(config, training, num_processes)


def _read(key: str, value: str | dict[str, Any]) -> dict[str, Any]:
    """Return settings that are written in the recipe, as JSON or in a file of JSON."""
    if isinstance(value, dict):
        return value
    text, where = value, "the text"
    if not value.lstrip().startswith("{"):
        where = value
        try:
            text = Path(value).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise RecipeError(f"training.{key}: cannot read '{value}': {reason}") from None
    try:
        config = json.loads(text)
    except ValueError as error:
        raise RecipeError(f"training.{key}: {where} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise RecipeError(f"training.{key}: {where} should hold an object, {{...}}")
    return config


def _check_fsdp(config: dict[str, Any], training: TrainingSection) -> None:
    for key in config:
        if key.removeprefix("fsdp_") not in _FSDP_KEYS:
            hint = nearest(key, _FSDP_KEYS) or f"; known: {', '.join(_FSDP_KEYS)}"
            raise RecipeError(f"training.fsdp_config: {key} would do nothing under FSDP2{hint}")
    given = {key.removeprefix("fsdp_"): value for key, value in config.items()}
    if given.get("version", 2) != 2:
        raise RecipeError(
            f"training.fsdp_config: version {given['version']} was given; Varifocal trains under 2"
        )
    if given.get("activation_checkpointing") and training.gradient_checkpointing:
        raise RecipeError(
            "training.fsdp_config: activation_checkpointing and training.gradient_checkpointing "
            "recompute the same layers; set one of them"
        )


def _check_deepspeed(
    config: dict[str, Any], training: TrainingSection, num_processes: int | None
) -> None:
    for key, ours in (("optimizer", "optim"), ("scheduler", "lr_scheduler_type")):
        if key in config:
            raise RecipeError(
                f"training.deepspeed: take {key} out; training.{ours} decides it, with the "
                "connector's learning rate and what decays"
            )
    for key in ("gradient_clipping", "gradient_accumulation_steps"):
        if key not in config:
            raise RecipeError(
                f'training.deepspeed: without {key} the recipe\'s would do nothing; add "{key}": '
                '"auto"'
            )
    wanted: dict[str, tuple[Any, str]] = {
        "gradient_clipping": (training.max_grad_norm, "max_grad_norm"),
        "fp16.enabled": (training.fp16, "fp16"),
        "bf16.enabled": (training.bf16, "bf16"),
    }
    if num_processes is not None:
        each, steps = training.per_device_train_batch_size, training.gradient_accumulation_steps
        wanted |= {
            "train_micro_batch_size_per_gpu": (each, "per_device_train_batch_size"),
            "gradient_accumulation_steps": (steps, "gradient_accumulation_steps"),
            "train_batch_size": (each * steps * num_processes, "the rows of a step"),
        }
    for key, (ours, name) in wanted.items():
        value = _value(config, key)
        if value not in (None, "auto", ours):
            raise RecipeError(
                f"training.deepspeed: {key} is {value!r}, and the recipe has {name} {ours!r}; "
                'write "auto" in the file'
            )


def _value(config: dict[str, Any], key: str) -> Any:
    """Return what stands under a dotted key, None where nothing does."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value
