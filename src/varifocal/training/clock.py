"""Seconds of a training's stages, by the wall and of the processor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

STAGES = ("loading", "keep", "encoding", "vision_features", "alignment", "training", "evaluation")


@dataclass
class Clock:
    """Seconds by stage, those before a resumption too.

    `cpu_NAME` is the time of this process on all its cores during stage NAME: unlike the wall's,
    it does not grow when others use the machine.

    Attributes:
        before: seconds of the processes that this one goes on from.
    """

    before: dict[str, float] = field(default_factory=dict)
    _done: dict[str, float] = field(default_factory=dict)
    _running: dict[str, tuple[float, float]] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _cpu_started: float = field(default_factory=time.process_time)

    @contextmanager
    def stage(self, name: str, inside: str | None = None) -> Iterator[None]:
        """Count the block's time to a stage, and not to the one that it is inside of."""
        self._running[name] = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            since = self._running.pop(name)
            signs = {name: 1} if inside is None else {name: 1, inside: -1}
            for stage, sign in signs.items():
                for key, spent in self._since(stage, *since).items():
                    self._done[key] = self._done.get(key, 0.0) + sign * spent

    @staticmethod
    def _since(name: str, wall: float, cpu: float) -> dict[str, float]:
        """What has gone by of both clocks, under the names that a stage has for them."""
        return {name: time.monotonic() - wall, f"cpu_{name}": time.process_time() - cpu}

    def own_seconds(self) -> float:
        """Seconds since this process started, those before a resumption left out."""
        return time.monotonic() - self._started

    def own_stage_seconds(self, name: str) -> float:
        """Seconds of a finished stage since this process started."""
        return self._done.get(name, 0.0)

    def seconds(self) -> dict[str, float]:
        """Seconds of every stage so far and in `total`, by the wall and of the processor."""
        running: dict[str, float] = {}
        for name, since in self._running.items():
            running |= self._since(name, *since)
        own = {"total": self.own_seconds(), "cpu_total": time.process_time() - self._cpu_started}
        stages = (*STAGES, "total")
        names = dict.fromkeys((*stages, *(f"cpu_{name}" for name in stages), *self.before))
        parts = (self.before, self._done, running, own)
        return {name: sum(part.get(name, 0.0) for part in parts) for name in names}
