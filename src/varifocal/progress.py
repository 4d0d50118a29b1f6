"""How long work is told of."""

from typing import Protocol


class Progress(Protocol):
    """How long work is told of."""

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Say that `done` of `total` of a stage are done.

        Args:
            stage: its name.
            done: 0 where it only begins.
            total: how many there are.
            note: a word on how it goes, such as the loss; without one the last still holds.
        """
        ...
