"""Where an arm waits between steps, and what is measured of each.

An arm calls `loaded` once, when everything stands ready for the first step, and `step` after every
optimiser step. From the answer to one call until the next is the step's time: it holds the making
of the batch, forward, backward and the optimiser. Peak memory is the process's (VmHWM of
/proc/self/status, set back at `loaded`); what it is above the weights is that peak less the
resident memory at `loaded`, when every weight has been read once and what loading freed is given
back.
"""

import ctypes
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn
from transformers import TrainerCallback

MIB = 1024


class Enough(Exception):  # noqa: N818
    """Ends an arm from inside its loop."""


class Gate:
    """Measures an arm in its own process; takes a fixed number of steps without waiting.

    Args:
        steps: after which the arm is ended.

    Attributes:
        lines: what was measured, one entry a call.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.lines: list[dict[str, Any]] = []
        self._started = (0.0, 0.0)
        self._level = 0.0

    def loaded(self, model: nn.Module, **more: Any) -> None:
        """Note the level before the first step."""
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                tensor.sum()  # weights may be files that nobody has read yet
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # give back what loading freed
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        self._level = _memory("VmRSS")
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        self._tell({"loaded_mib": self._level, "trained_parameters": trained, **more})

    def step(self, loss: float) -> None:
        """Note a step that has just ended."""
        seconds, cpu = (now - then for now, then in zip(_clocks(), self._started, strict=True))
        peak = _memory("VmHWM")
        measured = {"seconds": seconds, "cpu_seconds": cpu, "loss": loss}
        memory = {"peak_mib": peak, "above_weights_mib": peak - self._level}
        self._tell({**measured, **memory})

    def _tell(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        if len(self.lines) > self.steps:
            raise Enough
        self._started = _clocks()


class PipeGate(Gate):
    """A gate whose other end, in the process that started this one, says when to go on.

    Args:
        told: where lines of JSON go to.
        asked: where a line comes from for every step that is to be taken; its end is the end.
    """

    def __init__(self, told: TextIO, asked: TextIO = sys.stdin) -> None:
        super().__init__(sys.maxsize)
        self.told, self.asked = told, asked

    def _tell(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), file=self.told, flush=True)
        if not self.asked.readline():
            raise Enough
        self._started = _clocks()


class AtGate(TrainerCallback):
    """Lets a Trainer with `logging_steps: 1` wait at a gate after each step."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """A step has been logged."""
        if logs and "loss" in logs:
            self.gate.step(float(logs["loss"]))


def _clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _memory(name: str) -> float:
    """Resident memory of this process in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) / MIB
