"""The run directory: what a run writes, and how it is read back.

    runs/NAME/  recipe.yaml   metrics.jsonl   adapter/   processor/   checkpoints/   eval/   plots/
    analysis/   model/ (in place of adapter/ after full tuning)

Every file is written whole or not at all: to a temporary name beside it, then renamed. This file
knows paths and bytes only; models, adapters and scores are written by those who make them.
"""

import errno
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varifocal.cache import cache_root
from varifocal.errors import ModelError, RunError
from varifocal.manifest import MANIFEST, damage, unlisted_damage, write_manifest

CHECKPOINT_PREFIX = "checkpoint-"
UNLOGGED = "unlogged.json"
"""A checkpoint's file for what transformers forgets: losses since the last line, and the cost."""


_STAGED = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `tempfile` names what is not whole yet


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
            RunError: it holds a run already and `resume` is false, or it is no directory.
        """
        run = cls(Path(root))
        run.check_free(resume=resume)
        run.root.mkdir(parents=True, exist_ok=True)
        return run

    def check_free(self, *, resume: bool = False) -> None:
        """Refuse what `create` refuses, and make nothing."""
        if self.root.exists() and not self.root.is_dir():
            raise RunError(f"{self.root} is a file, a run needs a directory; choose another --out")
        if self.recipe.exists() and not resume:
            raise RunError(
                f"{self.root} holds a run already; add --resume to go on with it, "
                "or choose another --out"
            )

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
    def recipe(self) -> Path:
        """The resolved recipe, with versions, seed and fingerprints."""
        return self.root / "recipe.yaml"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step."""
        return self.root / "metrics.jsonl"

    @property
    def cost(self) -> Path:
        """What the training took: tokens, pictures, operations, seconds; there once it is done."""
        return self.root / "cost.json"

    @property
    def plan(self) -> Path:
        """What was predicted; beside it, once the training is done, what was measured."""
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

    def evaluations_at(self, step: int | None) -> Path:
        """Where the scores of a step's checkpoint go; None means the end."""
        return self.evaluations if step is None else self.evaluations / f"{CHECKPOINT_PREFIX}{step}"

    @property
    def plots(self) -> Path:
        """Pictures."""
        return self.root / "plots"

    @property
    def analysis(self) -> Path:
        """What looking into the trained parameters found: JSON and pictures."""
        return self.root / "analysis"

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint with the most steps, or None; one that is being written is not there."""
        return next(iter(self._checkpoints()), None)

    def newest_whole_checkpoint(self) -> tuple[Path | None, dict[Path, str]]:
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
        found = [
            path
            for path in self.checkpoints.glob(f"{CHECKPOINT_PREFIX}*")
            if path.name[len(CHECKPOINT_PREFIX) :].isdigit()
        ]
        return sorted(found, key=checkpoint_step, reverse=True)

    def keep_newest(self, number: int | None) -> None:
        """Delete all checkpoints but the newest; None keeps all.

        Each loses its name first: one that a kill leaves half deleted is no checkpoint any more.
        """
        for path in self._checkpoints()[number:] if number else []:
            shutil.rmtree(_put_away(path), ignore_errors=True)

    def sweep(self) -> None:
        """Delete what a killed process left half written; nothing else may be writing here."""
        staged = [path for path in self.root.glob(".*.*") if _STAGED.fullmatch(path.name)]
        for left in [*staged, *self.checkpoints.glob(f".{CHECKPOINT_PREFIX}*")]:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)

    def set_aside(self, checkpoint: Path) -> Path:
        """Rename a damaged checkpoint, so that it is neither resumed nor counted."""
        target = checkpoint.with_name(f"damaged-{checkpoint.name}")
        shutil.rmtree(target, ignore_errors=True)
        os.replace(checkpoint, target)
        return target

    def check_whole(self, weights: Path) -> None:
        """Refuse the run's adapter or model if its weights are not what the training wrote.

        Raises:
            ModelError: a file is cut short, missing, or holds other bytes.
        """
        # One from Varifocal 0.1 has no manifest.
        wrong = damage(weights) if (weights / MANIFEST).exists() else None
        if wrong is not None:
            raise ModelError(
                f"{weights} is damaged: {wrong}; bring it back from a copy, or write it anew with: "
                f"varifocal train {self.recipe} --out {self.root} --resume"
            )

    def read_metrics(self) -> list[dict[str, Any]]:
        """The logged steps; a last line that a kill cut short is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().splitlines()
        return [record for record in map(_json_or_none, lines) if record]

    def cut_metrics(self, step: int) -> None:
        """Forget what was logged after `step`: a resumed run logs it again."""
        kept = [record for record in self.read_metrics() if record.get("step", 0) <= step]
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Log one step.

        Raises:
            RunError: the disk is full.
        """
        with disk_full_is_an_error(self.metrics), self.metrics.open("a") as file:
            file.write(json.dumps(record) + "\n")


def checkpoint_step(path: Path) -> int:
    """The step in a checkpoint's name.

    >>> checkpoint_step(Path("runs/demo/checkpoints/checkpoint-120"))
    120
    """
    return int(path.name[len(CHECKPOINT_PREFIX) :])


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, making its directory.

    Raises:
        RunError: the disk is full.
    """
    with disk_full_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                file.write(text)
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def write_json(path: Path, value: object) -> None:
    """Write indented JSON whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def whole_directory(target: Path, noted: str | None = None) -> Iterator[Path]:
    """Yield a directory to fill; it takes the place of `target` only when the block ends well.

    Args:
        target: what it will be called.
        noted: the pattern of the files whose checksums are kept in a manifest; None keeps none.

    Raises:
        RunError: the disk is full; what stood at `target` is still there.
    """
    with disk_full_is_an_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            yield staging
            if noted is not None:
                write_manifest(staging, noted)
            staging.chmod(0o755)
            _swap(staging, target)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, target: Path) -> None:
    """Put `staging` where `target` stands; the old one and what kills left are deleted last."""
    if target.exists():
        _put_away(target)
    os.replace(staging, target)
    for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
        shutil.rmtree(left, ignore_errors=True)


def _put_away(directory: Path) -> Path:
    """Rename a directory to a hidden name, under which nobody looks for it."""
    away = Path(tempfile.mkdtemp(dir=directory.parent, prefix=f".{directory.name}."))
    os.replace(directory, away)
    return away


@contextmanager
def disk_full_is_an_error(path: Path) -> Iterator[None]:
    """Turn 'no space left' (OSError, safetensors' own error, torch's) into a sentence.

    Of blocks inside one another the outermost names its path: a user knows the checkpoint, and not
    the folder beside it in which it is prepared.

    Raises:
        RunError: the disk is full.
    """
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        if not isinstance(cause, Exception) or not _is_full(cause):
            raise
        mend = "free some space"
        if path.is_relative_to(cache_root()):
            mend += " or set VARIFOCAL_CACHE to a folder on another disk,"
        raise RunError(
            f"the disk is full: {path} was not written, and what was saved before is untouched; "
            f"{mend} and repeat the command with --resume"
        ) from cause


def _is_full(error: Exception) -> bool:
    """Whether an error is a full disk's, a used-up quota's or a file size limit's."""
    number = getattr(error, "errno", None)
    if number is not None:
        return number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    # torch.save counts the bytes that went out, and says no more than that they are too few.
    return any(text in str(error) for text in ("No space left", "unexpected pos"))


def fingerprint_files(paths: list[Path]) -> str:
    """A sha256 over the content of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _json_or_none(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
