"""Checks that need no torch, for a verb to make before it imports anything slow."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from varifocal.errors import RecipeError, VarifocalError, nearest

if TYPE_CHECKING:
    from varifocal.data.example import Image
    from varifocal.recipe import ModelSection, Recipe


def check_models(model: ModelSection, known: Collection[str] = ()) -> None:
    """Refuse a recipe's model section that names a checkpoint which cannot be had.

    Args:
        model: the section.
        known: names that need no checkpoint here.

    Raises:
        ModelError: as `varifocal.models.names.locate`.
    """
    from varifocal.models.names import check_model_name

    for name in (model.language_model, model.vision_tower):
        if name is not None and name not in known:
            check_model_name(name)


def check_training(recipe: Recipe, root: Path, *, resume: bool) -> None:
    """Refuse a training whose models, connector or run directory cannot be used.

    Args:
        recipe: what is to be trained.
        root: the run directory.
        resume: continue the run that is there.

    Raises:
        ModelError, RecipeError, RunError: names the key or the folder.
    """
    from varifocal.run import RunDirectory

    check_models(recipe.model)
    connector = recipe.model.connector
    weights = {
        "model.connector.weights": getattr(connector, "weights", None),
        "tuner.weights": getattr(recipe.tuner, "weights", None),
    }
    for key, run in weights.items():
        if run is not None:
            _check_former_run(key, Path(run))
    RunDirectory(root).check_free(resume=resume)


def _check_former_run(key: str, run: Path) -> None:
    if run.is_dir():
        return
    there = run.parent.iterdir() if run.parent.is_dir() else ()
    hint = nearest(run.name, [other.name for other in there])
    raise RecipeError(f"{key}: there is no run '{run}'{hint}")


def check_run(root: str | Path, checkpoint: int | None = None) -> None:
    """Refuse a folder that is no run, or a run without weights or without its base.

    Raises:
        RunError, ModelError, RecipeError: as `varifocal.assemble.open_run`.
    """
    from varifocal.recipe import load_recipe
    from varifocal.run import RunDirectory
    from varifocal.trained_weights import check_trained

    run = RunDirectory.open(Path(root).expanduser())
    recipe = load_recipe(run.recipe, check_paths=False)
    check_trained(run, checkpoint)
    if not (run.model / "config.json").is_file():
        check_models(recipe.model)


def check_run_or_model(name: str) -> None:
    """Refuse a name that is neither a run with weights nor a model.

    Raises:
        RunError, ModelError: as `varifocal.assemble.open_model`.
    """
    from varifocal.models.names import check_place

    path = Path(name).expanduser()
    if (path / "recipe.yaml").is_file():
        check_run(path)
    else:
        check_place(name, path)


def check_sampling(temperature: float, top_p: float, seed: int | None, stop: Iterable[str]) -> None:
    """Refuse options of sampling that cannot be, or would do nothing.

    Raises:
        VarifocalError: names the option.
    """
    if not 0 < top_p <= 1:
        raise VarifocalError(f"--top-p {top_p:g}: give a number above 0 and at most 1")
    if temperature == 0 and (seed is not None or top_p < 1):
        option = "--top-p" if seed is None else "--seed"
        raise VarifocalError(f"{option} does nothing without a --temperature above 0; add one")
    if not all(stop):
        raise VarifocalError("--stop: give the text before which an answer ends, not an empty one")


def check_port(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        VarifocalError: another process listens there, or the host is not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as server:
            # As uvicorn does: a port whose last server has just ended is free.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind(address)
    except OSError as error:
        raise taken(host, port) from error


def taken(host: str, port: int) -> VarifocalError:
    """Return the error that says that an address cannot be listened on."""
    return VarifocalError(
        f"cannot listen on {host}:{port}; is another server there? "
        "Choose another --port (0 takes a free one)"
    )


def readable_images(files: Iterable[Path]) -> list[Image]:
    """Return images that can be decoded.

    Raises:
        DataError: one cannot.
    """
    from varifocal.data.example import Image

    images = [Image(path=file.expanduser()) for file in files]
    for image in images:
        image.open()
    return images
