"""Where a run's trained weights are: those of its end, or of its newest checkpoint if it stopped.

A run that Ctrl-C has stopped has no `adapter/` yet, but a checkpoint that holds what it had
learned; and one that was finished, then continued with `--resume` and stopped again, has an
`adapter/` that is older than its newest checkpoint. Whatever opens a run asks here.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from varifocal.errors import RunError
from varifocal.run import CHECKPOINT_PREFIX, RunDirectory, checkpoint_step

TENSORS = "model.safetensors"
"""The trained tensors in a checkpoint of full tuning."""


@dataclass(frozen=True)
class Trained:
    """A run's weights.

    Attributes:
        place: the folder that holds them: an adapter, a whole model, or a checkpoint.
        step: of the checkpoint; None for the end of the training.
        note: what to tell whoever opens it; "" for the end.
    """

    place: Path
    step: int | None = None
    note: str = ""

    @property
    def is_adapter(self) -> bool:
        """Whether the folder holds PEFT's files."""
        return (self.place / "adapter_config.json").is_file()

    @property
    def is_model(self) -> bool:
        """Whether the folder holds a whole model."""
        return (self.place / "config.json").is_file()


def find_trained(run: RunDirectory, checkpoint: int | None = None) -> Trained:
    """Find the weights of a run.

    Args:
        run: finished or stopped.
        checkpoint: of this step; by default those of the end, or else of the newest checkpoint
            whose files hold what was written.

    Raises:
        RunError: there are none, there is no checkpoint of that step, or all are damaged.
    """
    if checkpoint is not None:
        return Trained(run.checkpoint(checkpoint), checkpoint)
    if (end := _end(run)) is not None:
        return end
    newest, passed_over = run.newest_valid_checkpoint()
    if newest is None:
        raise _without_weights(run)
    step = checkpoint_step(newest)
    damaged = "".join(f"; {path.name} is damaged: {wrong}" for path, wrong in passed_over.items())
    note = (
        f"{run.root} has not reached its end: this is the run as of step {step} "
        f"({newest.name}){damaged}; go on with: "
        f"{run.resume_command}"
    )
    return Trained(newest, step, note)


def check_trained(run: RunDirectory, checkpoint: int | None = None) -> None:
    """Refuse a run without weights; none are read.

    Args:
        run: finished or stopped.
        checkpoint: of this step; by default any.

    Raises:
        RunError: there are none, or there is no checkpoint of that step.
    """
    if checkpoint is not None:
        run.checkpoint(checkpoint)
    elif _end(run) is None and run.newest_checkpoint() is None:
        raise _without_weights(run)


def _without_weights(run: RunDirectory) -> RunError:
    return RunError(f"{run.root} has no adapter yet; finish it with: {run.resume_command}")


def is_finished(run: RunDirectory) -> bool:
    """Tell whether a run's end was saved, and no step was taken after it."""
    return _end(run) is not None


def scores_folder(run: RunDirectory) -> Path:
    """Return where the scores of a run stand as it is now.

    Those of a stopped run stand by the step, so that they are not taken for those of its end.
    """
    if is_finished(run):
        return run.evaluations
    scored = [
        folder
        for folder in run.evaluations.glob(f"{CHECKPOINT_PREFIX}*")
        if folder.name.removeprefix(CHECKPOINT_PREFIX).isdigit() and any(folder.glob("*.json*"))
    ]
    return max(scored, key=checkpoint_step, default=run.evaluations)


def command_for(file: Path) -> str:
    """Return the command that makes a file of a run's predictions or scores anew."""
    folder, words = file.parent, ["varifocal", "eval"]
    if folder.name == "retention":
        folder, words = folder.parent, ["varifocal", "retention"]
    step = checkpoint_step(folder) if folder.name.startswith("checkpoint-") else None
    words.append(str((folder if step is None else folder.parent).parent))
    words += [] if step is None else ["--checkpoint", str(step)]
    words += ["--score", "generate"] if "-generate" in file.name else []
    words += ["--blind"] if "-blind" in file.name else []
    if scaled := re.search(r"-strength-([\d.e+-]*\d)\.", file.name):
        words += ["--strength", scaled[1]]
    return shlex.join(words)


def _end(run: RunDirectory) -> Trained | None:
    """Return the weights of the training's end; None where a checkpoint has more steps."""
    newest = run.newest_checkpoint()
    steps = _steps(run)
    if newest is not None and steps is not None and checkpoint_step(newest) > steps:
        return None
    for end in (Trained(run.model), Trained(run.adapter)):
        if end.is_model or end.is_adapter:
            return end
    return None


def _steps(run: RunDirectory) -> int | None:
    """Return how many steps the training had taken when it was finished, as it has noted it."""
    try:
        page = json.loads((run.root / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    steps = page.get("steps") if isinstance(page, dict) else None
    return steps if isinstance(steps, int) else None
