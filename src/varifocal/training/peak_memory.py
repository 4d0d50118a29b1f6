"""How much memory a process has held at the most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


def peak_memory_gib() -> float:
    """The most memory this process has held, in GiB: on the GPU where there is one, else resident.

    On Linux the resident peak is `VmHWM`: `ru_maxrss` begins at what the parent process held when
    it started this one.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    own = _high_water_mark()
    return _of_rusage() if own is None else own


def _high_water_mark() -> float | None:
    """Read `VmHWM` (kB) in GiB; None where the system keeps no such file or line."""
    try:
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if found is None else int(found.split()[1]) / 2**20


def _of_rusage() -> float:
    """`ru_maxrss` in GiB, which macOS counts in bytes and other systems in KiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
