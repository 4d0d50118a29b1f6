"""SIGTERM as Ctrl-C: whoever asks a process to end gets the same clean end."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM was received: what ends at Ctrl-C ends; what Ctrl-C only cuts short ends too."""


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM raise Terminated in this process while the block runs.

    A process forked meanwhile (a worker that prepares data) ends at once, as it would have. Where
    somebody else handles SIGTERM, or outside the main thread, nothing is changed.
    """
    ours = os.getpid()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if os.getpid() != ours:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Terminated

    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
