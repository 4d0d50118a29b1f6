"""The run directory: what a run writes, and how it is read back.

    runs/NAME/  recipe.yaml   metrics.jsonl   adapter/   processor/   checkpoints/   eval/   plots/
    analysis/   model/ (in place of adapter/ after full tuning)   config.json (for Auto classes)

Every file is written whole or not at all (`varifocal.writing`). This file knows paths and bytes
only; models, adapters and scores are written by those who make them.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varifocal.errors import ModelError, RunError
from varifocal.locking import alone, check_unoccupied
from varifocal.manifest import MANIFEST, damage, unlisted_damage
from varifocal.staging import delete, is_abandoned, staged
from varifocal.writing import (
    MARK,
    check_folder,
    put_away,
    unwritable_is_an_error,
    write_text,
)

CHECKPOINT_PREFIX = "checkpoint-"
MODEL_TYPE = "varifocal_run"
"""What `config.json` of a run says, so that transformers' Auto classes open it (`auto.py`)."""
UNLOGGED = "unlogged.json"
"""A checkpoint's file for what transformers forgets: losses since the last line, and the cost."""


_RESOLVED = re.compile(r"^provenance:", re.MULTILINE)


@dataclass(frozen=True)
class RunDirectory:
    """The files of one run, by name.

    Args:
        root: the run's directory, for example `runs/demo`.
    """

    root: Path

    @classmethod
    def create(cls, root: str | Path, *, resume: bool = False) -> "RunDirectory":
        """Make a run directory, or open the one that is to be continued.

        Raises:
            RunError: it holds a run already and `resume` is false, it holds files of somebody
                else, it is no directory, or it cannot be written.
        """
        run = cls(Path(root))
        run.check_free(resume=resume)
        with unwritable_is_an_error(run.root):
            run.root.mkdir(parents=True, exist_ok=True)
            (run.root / MARK).touch()
        return run

    def check_free(self, *, resume: bool = False) -> None:
        """Refuse what `create` refuses, and make nothing."""
        if not self.recipe.exists():
            check_folder(self.root)
            return
        if not self._is_ours():
            raise RunError(
                f"{self.root} holds a recipe.yaml that no training wrote, and a run would be "
                "written over it; choose another --out"
            )
        if not resume:
            raise RunError(
                f"{self.root} holds a run already; add --resume to go on with it, "
                "or choose another --out"
            )

    def _is_ours(self) -> bool:
        """Whether a training made this folder; runs of Varifocal 0.1 have no mark."""
        if (self.root / MARK).exists():
            return True
        return _RESOLVED.search(self.recipe.read_text(errors="replace")) is not None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from training here for the while.

        The operating system lets go of the lock when the process ends, however it ends. Of the
        processes of one launch only the first takes it. A process that has it may take it again.

        Raises:
            RunError: another process has it; the text names it.
        """
        if os.environ.get("RANK", "0") != "0":
            yield
            return
        with alone(self.root, nested=True):
            yield

    def check_unoccupied(self) -> None:
        """Refuse a run that another process is writing.

        Raises:
            RunError: one is.
        """
        check_unoccupied(self.root)

    @classmethod
    def open(cls, root: str | Path) -> "RunDirectory":
        """Open a finished or interrupted run.

        Raises:
            RunError: there is no run here, or it has no adapter yet.
        """
        run = cls(Path(root))
        if not run.recipe.is_file():
            raise RunError(f"{run.root} is no run directory: it has no recipe.yaml")
        return run

    @property
    def keep(self) -> Path:
        """What the base said to the instructions of `training.keep`, in numbers."""
        return self.root / "keep.json"

    @property
    def recipe(self) -> Path:
        """The resolved recipe, with versions, seed and fingerprints."""
        return self.root / "recipe.yaml"

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe, and what makes the run known to transformers.

        Raises:
            RunError: the disk is full.
        """
        write_text(self.recipe, text)
        write_text(self.root / "config.json", json.dumps({"model_type": MODEL_TYPE}) + "\n")

    @property
    def imported(self) -> Path:
        """Which checkpoint of other code the adapter was read from; there after an import alone."""
        return self.root / "imported.json"

    @property
    def base(self) -> Path:
        """The language model, where an imported checkpoint brought its own."""
        return self.root / "base"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step."""
        return self.root / "metrics.jsonl"

    @property
    def cost(self) -> Path:
        """What the training took: tokens, images, operations, seconds; there once it is done."""
        return self.root / "cost.json"

    @property
    def plan(self) -> Path:
        """What was predicted; next to it, once the training is done, what was measured."""
        return self.root / "plan.json"

    @property
    def data(self) -> Path:
        """What was asked of the mixture, what it held, and what was left out."""
        return self.root / "data.json"

    @property
    def adapter(self) -> Path:
        """PEFT's own files: every trained tensor and nothing else."""
        return self.root / "adapter"

    @property
    def model(self) -> Path:
        """After full tuning, in place of an adapter: the whole model with its processor."""
        return self.root / "model"

    @property
    def processor(self) -> Path:
        """Tokenizer and image processor."""
        return self.root / "processor"

    @property
    def checkpoints(self) -> Path:
        """Whole checkpoints, newest last."""
        return self.root / "checkpoints"

    @property
    def evaluations(self) -> Path:
        """Scores and predictions, one pair of files per suite."""
        return self.root / "eval"

    @property
    def best(self) -> Path:
        """Which evaluation of `training.eval_steps` was the best, whose checkpoint is kept."""
        return self.root / "best.json"

    @property
    def validation(self) -> Path:
        """Sample answers of `training.eval_steps`, one folder a step, and their images."""
        return self.root / "validation"

    def validation_at(self, step: int) -> Path:
        """Where the sample answers of a step go."""
        return self.validation / f"step-{step}"

    def evaluations_at(self, step: int | None) -> Path:
        """Where the scores of a step's checkpoint go; None means the end."""
        return self.evaluations if step is None else self.evaluations / f"{CHECKPOINT_PREFIX}{step}"

    @property
    def plots(self) -> Path:
        """Figures."""
        return self.root / "plots"

    @property
    def analysis(self) -> Path:
        """What looking into the trained parameters found: JSON and images."""
        return self.root / "analysis"

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint with the most steps, or None; one that is being written is not there."""
        return next(iter(self._checkpoints()), None)

    def newest_valid_checkpoint(self) -> tuple[Path | None, dict[Path, str]]:
        """Find the newest checkpoint whose files hold what was written, by its manifest.

        One without a manifest, which an older version wrote, is whole if its files open.

        Returns:
            it, or None where there are no checkpoints; and what is wrong with each newer one.

        Raises:
            RunError: there are checkpoints, and all are damaged.
        """
        passed_over: dict[Path, str] = {}
        for path in self._checkpoints():
            wrong = damage(path) if (path / MANIFEST).exists() else unlisted_damage(path)
            if wrong is None:
                return path, passed_over
            passed_over[path] = wrong
        if not passed_over:
            return None, passed_over
        each = "; ".join(f"{path.name}: {wrong}" for path, wrong in passed_over.items())
        raise RunError(
            f"every checkpoint in {self.checkpoints} is damaged ({each}); bring one back from a "
            "copy, or delete that folder to start from the beginning with --resume"
        )

    def steps(self) -> list[int]:
        """The steps of its checkpoints, in the order in which they were written."""
        return [checkpoint_step(path) for path in reversed(self._checkpoints())]

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of a step.

        Raises:
            RunError: there is none.
        """
        steps = self.steps()
        if step not in steps:
            those = f"those of steps {', '.join(map(str, steps))}" if steps else "none"
            raise RunError(
                f"{self.root} has no checkpoint of step {step} but {those}; "
                "training.save_steps says when one is written, save_total_limit how many stay"
            )
        return self.checkpoints / f"{CHECKPOINT_PREFIX}{step}"

    def _checkpoints(self) -> list[Path]:
        """All checkpoints, newest first; a partial one has another name."""
        checkpoints = [
            path
            for path in self.checkpoints.glob(f"{CHECKPOINT_PREFIX}*")
            if path.name[len(CHECKPOINT_PREFIX) :].isdigit()
        ]
        return sorted(checkpoints, key=checkpoint_step, reverse=True)

    def keep_newest(self, number: int | None, spared: Path | None = None) -> None:
        """Delete all checkpoints but the newest, and one that is spared; None keeps all.

        Each loses its name first: one that a kill leaves half deleted is no checkpoint any more.
        """
        for path in self._checkpoints()[number:] if number else []:
            if path == spared:
                continue
            if away := put_away(path):
                delete(away)

    def sweep(self) -> None:
        """Delete what a killed training left half written; it needs the run's lock."""
        for path in [*staged(self.root), *staged(self.checkpoints)]:
            if path.is_dir() or is_abandoned(path):  # an evaluation may be writing the card
                delete(path)

    def set_aside(self, checkpoint: Path) -> Path:
        """Rename a damaged checkpoint, so that it is neither resumed nor counted."""
        target = checkpoint.with_name(f"damaged-{checkpoint.name}")
        delete(target)
        os.replace(checkpoint, target)
        return target

    @property
    def resume_command(self) -> str:
        """The command line that goes on with the run, as a shell takes it."""
        words = ["varifocal", "train", str(self.recipe), "--out", str(self.root), "--resume"]
        return shlex.join(words)

    def check_weights(self, weights: Path) -> None:
        """Refuse the run's adapter or model if its weights are not what the training wrote.

        Raises:
            ModelError: a file is cut short, missing, or holds other bytes.
        """
        # One from Varifocal 0.1 has no manifest.
        wrong = damage(weights) if (weights / MANIFEST).exists() else None
        if wrong is not None:
            raise ModelError(
                f"{weights} is damaged: {wrong}; bring it back from a copy, or write it anew with: "
                f"{self.resume_command}"
            )

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged steps; a last line that a kill cut short is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().splitlines()
        return [record for record in map(_json_or_none, lines) if record]

    def cut_metrics(self, step: int) -> None:
        """Forget what was logged after `step`: a resumed run logs it again."""
        records = [record for record in self.read_metrics() if record.get("step", 0) <= step]
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in records))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Log one step.

        Raises:
            RunError: the disk is full.
        """
        with unwritable_is_an_error(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's name.

    >>> checkpoint_step(Path("runs/demo/checkpoints/checkpoint-120"))
    120
    """
    return int(path.name[len(CHECKPOINT_PREFIX) :])


def _json_or_none(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
