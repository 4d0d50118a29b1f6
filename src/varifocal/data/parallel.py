"""Work over many records in several processes, its results in the order asked for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

from varifocal.errors import RunError

Result = TypeVar("Result")

CHUNK = 32
"""Items a process works on between two deliveries."""


class _Chunks(Dataset[Any], Generic[Result]):
    """The items in chunks, each worked on as a whole."""

    def __init__(
        self, function: Callable[[int], Result], items: Sequence[int], size: int = CHUNK
    ) -> None:
        self.function, self.items, self.size = function, items, size

    def __len__(self) -> int:
        """Count the chunks."""
        return -(-len(self.items) // self.size)

    def __getitem__(self, index: int) -> list[Result]:
        """Work on one chunk."""
        start = index * self.size
        return [self.function(int(item)) for item in self.items[start : start + self.size]]


@contextmanager
def lost_worker_is_an_error() -> Iterator[None]:
    """Turn torch's error about a loader's process that was killed into a sentence.

    Raises:
        RunError: a worker ended before its work did.
    """
    try:
        yield
    except RuntimeError as error:
        lost = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", str(error))
        if lost is None:
            raise
        how = re.search(r"killed by signal: ([^.]*)", lost[2])
        raise RunError(
            f"a process that prepares data (pid {lost[1]}) "
            f"{f'was killed ({how[1].strip()})' if how else 'ended too early'}, often for want of "
            "memory, or of room in /dev/shm; nothing that was saved is lost: free memory or lower "
            "data.num_workers (0 works without such processes), and repeat the command with "
            "--resume"
        ) from error


def map_in_order(
    function: Callable[[int], Result], items: Sequence[int], num_workers: int = 0
) -> Iterator[Result]:
    """Apply a function to numbers, in several processes, and yield its results in their order.

    Args:
        function: of one number; it should return what can go wrong instead of raising it, since an
            error in a worker ends everything. Its results must be picklable.
        items: the numbers, for example record indices; a list or an array.
        num_workers: processes; 0 works in this one. The results are the same for any number.
    """
    if num_workers == 0:
        yield from (function(int(item)) for item in items)
        return
    # Asked for before the fork, or the tokenizers library warns of it in each worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    chunks = _Chunks(function, items)
    loader = DataLoader(
        chunks, batch_size=None, num_workers=min(num_workers, len(chunks)), prefetch_factor=4
    )
    with lost_worker_is_an_error():
        for chunk in loader:
            yield from chunk
