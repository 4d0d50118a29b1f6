"""A run's folder on the hub: what others need of it, and no path of this machine."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from varifocal.errors import RunError
from varifocal.hub import cut_paths, upload
from varifocal.reports.card import CARD, write_card
from varifocal.run import RunDirectory
from varifocal.trained_weights import find_trained
from varifocal.writing import write_json, write_text

_PAGES = ("config.json", "cost.json", "data.json", "training.json")
_FOLDERS = ("adapter", "model", "processor", "plots")


def push_run(root: Path, repo_id: str, *, private: bool = True) -> str:
    """Upload a finished run: card, recipe, trained weights, processor, losses and scores.

    Checkpoints stay here, and so do the data and the predictions, but for the few sample answers
    that the card shows, with small images. What is downloaded is a run again: `varifocal ask`,
    `eval` and the Auto classes open it where its language model is a packaged name or a hub id.

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
    recipe = yaml.safe_load(run.recipe.read_text())
    known = {run.root, run.root.resolve(), Path.cwd(), *_paths(recipe)}
    scores = [f"{run.evaluations.name}/{file.name}" for file in run.evaluations.glob("*.json")]
    for name in (*_PAGES, *scores):
        if (run.root / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            write_json(folder / name, _cut(json.loads((run.root / name).read_text()), known))
    text = yaml.safe_dump(_cut(recipe, known), sort_keys=False, allow_unicode=True)
    write_text(folder / run.recipe.name, text)
    for name in (CARD, run.metrics.name):
        if (run.root / name).is_file():
            write_text(folder / name, cut_paths((run.root / name).read_text(), known))


def _paths(value: Any) -> Iterator[str]:
    """Yield the absolute paths among the texts of a page, keys too."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for each in value:
            yield from _paths(each)
    elif isinstance(value, str) and "\n" not in value and Path(value).is_absolute():
        yield value


def _cut(value: Any, known: Iterable[str | Path]) -> Any:
    """Cut the paths in all texts of a page, keys too.

    >>> _cut({"/home/me/data": ["/home/me/a.png", "b/c", 1]}, ["/home/me"])
    {'data': ['a.png', 'b/c', 1]}
    """
    if isinstance(value, dict):
        return {_cut(key, known): _cut(each, known) for key, each in value.items()}
    if isinstance(value, list):
        return [_cut(each, known) for each in value]
    if not isinstance(value, str):
        return value
    return cut_paths(value, [*known, *_paths(value)])
