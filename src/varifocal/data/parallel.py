"""Work over many records in several processes, its results in the order asked for."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from traceback import extract_tb
from typing import Any, Generic, ParamSpec, TypeVar

from varifocal.errors import RunError

Result = TypeVar("Result")
Given = ParamSpec("Given")

CHUNK = 32
"""Items a process works on between two deliveries."""


class _Chunks(Generic[Result]):
    """The items in chunks, each worked on as a whole; a map-style dataset by its two methods."""

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


def lost_worker_is_an_error(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Turn what comes of a loader's process that was killed into a sentence.

    Raises:
        RunError: a worker ended before its work did.
    """

    @wraps(function)
    def guarded(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            try:
                return function(*args, **kwargs)
            except (ConnectionError, EOFError) as error:
                # A batch cannot be fetched any more; torch may learn the reason in this moment.
                lost = _lost(error)
                if lost is None:
                    raise
                raise lost from error
        except RuntimeError as error:
            lost = _lost(error)
            if lost is None:
                raise
            raise lost from error

    return guarded


def _lost(error: BaseException) -> RunError | None:
    """Make the sentence of a lost worker; None where an error has another cause."""
    how = "ended too early"
    if isinstance(error, RuntimeError):
        lost = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)(.*)", str(error))
        if lost is None:
            return None
        signalled = re.search(r"killed by signal: ([^.]*)", lost[2])
        how = f"was killed ({signalled[1].strip()})" if signalled else how
        how = f"(pid {lost[1]}) {how}"
    elif not any(frame.name == "_try_get_data" for frame in extract_tb(error.__traceback__)):
        return None
    _ask_no_more()
    return RunError(
        f"a process that prepares data {how}, often for want of "
        "memory, or of room in /dev/shm; nothing that was saved is lost: free memory or lower "
        "data.num_workers (0 works without such processes), and repeat the command with "
        "--resume"
    )


def _ask_no_more() -> None:
    """Take torch's handler away, which would raise the same error anew as other children end.

    As long as anybody holds the error, the loader stands, and the lost worker is one of its own.
    Loaders that follow look for lost workers every five seconds, which needs no handler.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    of_torch = getattr(handler, "__module__", "") == "torch.utils.data._utils.signal_handling"
    if of_torch and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


@lost_worker_is_an_error
def _following(deliveries: Iterator[list[Result]]) -> list[Result] | None:
    return next(deliveries, None)


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
    from torch.utils.data import DataLoader  # slow, and one process does without

    # Asked for before the fork, or the tokenizers library warns of it in each worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    chunks: Any = _Chunks(function, items)  # a map-style dataset in all but name
    loader = DataLoader(
        chunks, batch_size=None, num_workers=min(num_workers, len(chunks)), prefetch_factor=4
    )
    deliveries = iter(loader)
    while (chunk := _following(deliveries)) is not None:
        yield from chunk
