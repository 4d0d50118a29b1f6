"""What this machine computes fast, found without torch: a recipe is read before it is loaded."""

import functools
from pathlib import Path

_X86 = {"avx512bw", "avx512vl", "avx512dq"}
"""What oneDNN needs for bfloat16 products on an x86 processor."""


def has_gpu() -> bool:
    """Whether the system has a GPU's driver; `train` finds out whether torch can use it."""
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg"))


def has_bfloat16() -> bool:
    """Whether this machine has bfloat16 products: its processor, or a GPU, which is assumed to.

    `train` refuses a GPU that has none.
    """
    return has_gpu() or processor_has_bfloat16()


def fastest_attention(dtype: str) -> str:
    """Name the attention code that trains packed rows fastest here, as docs/speed.md measured it.

    Args:
        dtype: number format of the frozen weights.
    """
    if has_gpu():
        return "sdpa"
    return "segments" if dtype == "float32" else "eager"


@functools.cache
def processor_has_bfloat16() -> bool:
    """Whether the processor has bfloat16 products; where its system does not say, it is assumed.

    Without them torch multiplies in plain loops, far slower than in float32.
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    return _listed(lines)


def _listed(lines: list[str]) -> bool:
    """Whether a Linux description of the processor lists what bfloat16 products need.

    >>> _listed(["flags : fpu avx avx2"]), _listed(["Features : fp asimd bf16"])
    (False, True)
    """
    features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    names = set(features.partition(":")[2].split())
    return not names or names >= _X86 or "bf16" in names
