"""How far long work has come, in one form for every part of the package."""

from collections.abc import Callable
from typing import Protocol

StepProgress = Callable[[int, int], None]
"""Called with (done, total) of a single stage."""


class Progress(Protocol):
    """Called while the stages of work go on; `partial(progress, stage)` is a `StepProgress`."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` of a stage are done.

        Args:
            stage: its name.
            done: 0 where it only begins.
            total: how many there are.
            note: a word on how it goes, such as the loss; without one the last still holds.
        """
        ...


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    """Show nothing."""
