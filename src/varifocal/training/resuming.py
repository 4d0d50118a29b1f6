"""From which checkpoint a run goes on, and whether it may."""

from dataclasses import dataclass, field
from pathlib import Path

from varifocal.errors import ModelError, RunError
from varifocal.recipe import Recipe, load_recipe
from varifocal.run import RunDirectory, checkpoint_step


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        checkpoint: the newest whole one; None begins with the first step.
        passed_over: what is wrong with each newer one.
    """

    checkpoint: Path | None = None
    passed_over: dict[Path, str] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Steps that are done already."""
        return checkpoint_step(self.checkpoint) if self.checkpoint else 0

    def notes(self) -> list[str]:
        """One sentence for each checkpoint that is damaged."""
        return [
            f"{path} is damaged: {wrong}; going on from step {self.step} instead"
            for path, wrong in self.passed_over.items()
        ]


def find_start(run: RunDirectory, resume: bool) -> Start:
    """Choose the checkpoint to go on from.

    Raises:
        RunError: there are checkpoints, and all are damaged.
    """
    return Start(*run.newest_whole_checkpoint()) if resume else Start()


def clear_the_way(run: RunDirectory, start: Start) -> None:
    """Take away what would stand in a resumed run's way; of several processes, one calls it.

    Damaged checkpoints are renamed: a count of checkpoints to keep must not keep them.
    """
    run.sweep()
    for path in start.passed_over:
        run.set_aside(path)
    run.cut_metrics(start.step)


def check_same(run: RunDirectory, recipe: Recipe, base_fingerprint: str | None) -> None:
    """Refuse to resume with other parts than the checkpoint was made with."""
    before = load_recipe(run.recipe, check_paths=False)
    trained_on = before.provenance.base_fingerprint if before.provenance else None
    if trained_on and base_fingerprint and trained_on != base_fingerprint:
        raise ModelError(
            f"{run.root} was started on a base with content hash {trained_on[:12]}, and now it "
            f"has {base_fingerprint[:12]}: give back the former files, or choose another --out"
        )
    pairs = {
        "seed": (before.seed, recipe.seed),
        "tuner": (before.tuner, recipe.tuner),
        "model.connector": (before.model.connector, recipe.model.connector),
    }
    for key, (was, now) in pairs.items():
        if was != now:
            raise RunError(
                f"{run.root} was started with another {key}; resume it with the recipe it keeps "
                f"({run.recipe}), or choose another --out"
            )
