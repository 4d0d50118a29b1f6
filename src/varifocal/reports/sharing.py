"""A run's folder on the hub: what others need of it, and no path of this machine."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from varifocal.errors import RunError
from varifocal.hub import upload
from varifocal.reports.card import CARD, write_card
from varifocal.run import RunDirectory
from varifocal.trained_weights import find_trained
from varifocal.writing import write_json, write_text

_PAGES = ("config.json", "cost.json", "data.json", "training.json")
_FOLDERS = ("adapter", "model", "processor", "plots")


def push_run(root: Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a finished run: card, recipe, trained weights, processor, losses and scores.

    Checkpoints stay here, and so do predictions, which hold the questions of the data. What is
    downloaded is a run again: `varifocal ask`, `eval` and the Auto classes open it where its
    language model is a packaged name or a hub id.

    Args:
        root: the run directory.
        repo_id: `owner/name`; created if it does not exist.
        private: of a repository that is created.

    Returns:
        The repository's address.

    Raises:
        RunError: there is no run here, or its training has not ended.
        ModelError: the hub refuses, or cannot be reached.
    """
    run = RunDirectory.open(root)
    if find_trained(run).step is not None:
        raise RunError(f"{root} has not reached its end; go on with: {run.resume_command}")
    write_card(root)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / root.resolve().name
        copy_shared(run, folder)
        return upload(folder, repo_id, message="varifocal report", private=private)


def copy_shared(run: RunDirectory, folder: Path) -> None:
    """Copy what `push_run` uploads into a new folder, paths cut to their last part."""
    folder.mkdir()
    for name in _FOLDERS:
        if (run.root / name).is_dir():
            shutil.copytree(run.root / name, folder / name)
    scores = [f"{run.evaluations.name}/{file.name}" for file in run.evaluations.glob("*.json")]
    for name in (*_PAGES, *scores):
        if (run.root / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            page = _without_paths(json.loads((run.root / name).read_text()))
            write_json(folder / name, page)
    recipe = yaml.safe_load(run.recipe.read_text())
    text = yaml.safe_dump(_without_paths(recipe), sort_keys=False, allow_unicode=True)
    write_text(folder / run.recipe.name, text)
    card = (run.root / CARD).read_text()
    for path in sorted({str(run.root), *_paths(recipe)}, key=len, reverse=True):
        card = card.replace(path, Path(path).name)
    write_text(folder / CARD, card)
    if run.metrics.is_file():
        shutil.copyfile(run.metrics, folder / run.metrics.name)


def _paths(value: Any) -> Iterator[str]:
    """Yield the absolute paths in a page, keys too."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for each in value:
            yield from _paths(each)
    elif isinstance(value, str) and "\n" not in value and Path(value).is_absolute():
        yield value


def _without_paths(value: Any) -> Any:
    """Cut each absolute path in a page, keys too, to its last part.

    >>> _without_paths({"/home/me/data": ["/home/me/a.png", "b/c", 1]})
    {'data': ['a.png', 'b/c', 1]}
    """
    if isinstance(value, dict):
        return {_without_paths(key): _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return Path(value).name if [*_paths(value)] == [value] else value
