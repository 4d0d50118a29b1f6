"""A run directory as an object: its recipe, what it learned and what it scored."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from varifocal.errors import RunError
from varifocal.recipe import Recipe, load_recipe
from varifocal.reports.card_scores import ScoreLine, former_scores, read_scores
from varifocal.reports.notebook import run_html
from varifocal.run import RunDirectory
from varifocal.trained_weights import scores_folder

_LOGGER = logging.getLogger("varifocal")


class Run:
    """A run directory, finished or not; whatever takes a path takes it too.

    In a notebook it shows its loss curve, its scores and some of its answers.

    Args:
        root: the run directory, for example `runs/demo`.

    Raises:
        RunError: there is no run here.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = RunDirectory.open(Path(root).expanduser()).root

    @property
    def recipe(self) -> Recipe:
        """The recipe that was trained, with versions, seed and fingerprints."""
        return load_recipe(RunDirectory(self.root).recipe, check_paths=False)

    @property
    def result(self) -> dict[str, Any]:
        """What the training was, in numbers: steps, loss, trained parameters, tokens, minutes.

        Raises:
            RunError: it has not come to its end.
        """
        file = self.root / "training.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.root} has not come to its end; go on with resume=True, or: varifocal "
                f"train {self.root / 'recipe.yaml'} --out {self.root} --resume"
            ) from error

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The logged steps: step, loss, learning rate, tokens a second."""
        return RunDirectory(self.root).read_metrics()

    @property
    def scores(self) -> list[ScoreLine]:
        """Every measure of every suite that was scored.

        A score file that an older version wrote is left out, and a warning of the logger
        "varifocal" says how to make it anew.
        """
        folder = scores_folder(RunDirectory(self.root))
        for sentence in former_scores(folder):
            _LOGGER.warning(sentence)
        return read_scores(folder)

    def __fspath__(self) -> str:
        return str(self.root)

    def __str__(self) -> str:
        return str(self.root)

    def __repr__(self) -> str:
        return f"Run({str(self.root)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Run) and self.root == other.root

    def __hash__(self) -> int:
        return hash(self.root)

    def _repr_html_(self) -> str:
        return run_html(self.root)
