"""Ctrl-C, or a scheduler's SIGTERM, as a wish to stop: the step in hand is finished and saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from varifocal.models.sharding import in_world


class StopWish:
    """Whether somebody asked the training to stop."""

    def __init__(self) -> None:
        self.given = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Note the first signal; let the second one interrupt at once."""
        if self.given:
            raise KeyboardInterrupt
        self.given = True


@contextmanager
def stop_wish() -> Iterator[StopWish]:
    """Listen for SIGINT and SIGTERM while the block runs, if it runs in the main thread."""
    wish = StopWish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before: dict[int, Any] = {
        number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def anyone(wish: bool, device: torch.device) -> bool:
    """Tell whether any process wishes to stop; all of them must call it.

    Signals reach processes at different steps. If each one obeyed its own, one would save while
    the others wait for its gradient.
    """
    if not in_world():
        return wish
    flag = torch.tensor(float(wish), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
