"""From a recipe's file to a recipe: found, overridden, validated, its paths made absolute."""

import glob
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from varifocal.errors import RecipeError, nearest
from varifocal.recipe.data import DataSection, SourceSection
from varifocal.recipe.model import ConnectorSection
from varifocal.recipe.page import as_overrides, put, read_page, validate
from varifocal.recipe.sections import Recipe

SHIPPED = Path(__file__).parent / "shipped"

_SIDES = ("train", "captions", "evaluate")


def load_recipe(
    path: str | Path,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    check_paths: bool = True,
) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        path: a YAML file, or the bare name of a recipe that ships with Varifocal (`demo`).
        overrides: dotted keys and values, as a mapping or as texts `training.max_steps=100`.
        check_paths: refuse data sources that are not there.

    Returns:
        The recipe, named, its paths absolute.

    Raises:
        RecipeError: one sentence a line for each thing that is wrong.
    """
    file = find_recipe(path)
    page = read_page(file)
    for key, value in as_overrides(overrides).items():
        put(page, key, _from_here(key, value))
    shipped = SHIPPED.resolve() in file.resolve().parents
    recipe = _absolute(validate(Recipe, page), Path.cwd() if shipped else file.parent)
    if recipe.name is None:
        recipe = recipe.model_copy(update={"name": file.stem})
    if check_paths:
        _check_sources(recipe.data)
    return recipe


def find_recipe(path: str | Path) -> Path:
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


def _from_here(key: str, value: Any) -> Any:
    """Let a path on the command line start where the user stands, not at the recipe."""
    name = key.rpartition(".")[2]
    names = ("path", "image_folder", "root", "weights", "language_model", "vision_tower")
    if not isinstance(value, str) or name not in names:
        return value
    return _join(Path.cwd(), value) if name in names[:4] else _model_name(Path.cwd(), value)


def _absolute(recipe: Recipe, base: Path) -> Recipe:
    data, model = recipe.data, recipe.model
    start = Path(_join(base, data.root)) if data.root else base
    tower = model.vision_tower
    return recipe.model_copy(
        update={
            "data": data.model_copy(
                update={
                    "root": str(start) if data.root else None,
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
        }
    )


def _connector_at(base: Path, connector: ConnectorSection | None) -> ConnectorSection | None:
    if connector is None or connector.weights is None:
        return connector
    return connector.model_copy(update={"weights": _join(base, connector.weights)})


def _source_at(start: Path, source: SourceSection) -> SourceSection:
    places = {
        key: _join(start, value)
        for key in ("path", "image_folder")
        if (value := getattr(source, key)) is not None
    }
    return source.model_copy(update=places)


def _join(base: Path, path: str) -> str:
    return os.path.abspath(base / Path(path).expanduser())


def _model_name(base: Path, name: str) -> str:
    """Make a model name absolute where it is a directory; leave packaged names and hub ids."""
    is_path = name.startswith((".", "~", "/")) or (base / name).is_dir()
    return _join(base, name) if is_path else name


def _check_sources(data: DataSection) -> None:
    findings = [
        _missing_path(f"data.{side}[{index}].{key}", Path(value))
        for side in _SIDES
        for index, source in enumerate(getattr(data, side))
        for key in ("path", "image_folder")
        if (value := getattr(source, key)) is not None and not glob.glob(value)
    ]
    if findings:
        raise RecipeError("\n".join(findings))


def _missing_path(where: str, path: Path) -> str:
    if not path.parent.is_dir():
        return f"{where}: no file '{path}'; there is no folder '{path.parent}'"
    hint = nearest(path.name, (other.name for other in path.parent.iterdir()))
    return f"{where}: no file '{path.name}'{hint or f' in {path.parent}'}"
