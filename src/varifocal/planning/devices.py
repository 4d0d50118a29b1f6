"""The devices a run can be planned for: what their makers' data sheets say.

Rates are the makers' nominal dense peaks with float32 accumulation, as training needs them; none
was measured here. Those of A100, H100, RTX 4090, RTX A6000, T4 and L40S (float32) were compared
with published tables; those of RTX 3090, V100 and L40S (16 bits) were not looked up again.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from varifocal.errors import RecipeError, nearest
from varifocal.recipe.processor import processor_has_bfloat16

if TYPE_CHECKING:
    from varifocal.planning.lengths import Workload
    from varifocal.recipe import Recipe

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """What a plan needs to know of a device.

    Attributes:
        name: what `--device` calls it.
        memory_gib: its memory.
        teraflops: number format -> peak dense rate in 1e12 operations a second; a format that is
            missing has no units of its own and runs at float32's rate.
        utilisation: assumed share of the peak rate that a training reaches.
        overhead_gib: memory that is neither weights nor activations: the process, the libraries.
        source: where the figures stand.
        waste: what the allocator holds beyond a step's living tensors, as a share of them.
    """

    name: str
    memory_gib: float
    teraflops: dict[str, float]
    utilisation: float
    overhead_gib: float
    source: str
    waste: float = 0.0

    @property
    def is_cpu(self) -> bool:
        """Whether this is the machine's own processor."""
        return self.name == "cpu"

    def flops_per_second(self, dtype: str) -> float:
        """The rate a training is assumed to reach in a number format."""
        peak = self.teraflops.get(dtype, self.teraflops["float32"])
        return peak * 1e12 * self.utilisation


_CUDA_GIB = 0.75
"""CUDA context and libraries' workspaces; an assumption, no GPU was at hand."""
_SHARE = 0.4
"""Share of the peak that a training is assumed to reach on a GPU."""


def _gpu(name: str, memory: float, half: float, single: float, source: str, *only: str) -> Device:
    formats = only or ("bfloat16", "float16")
    rates = {**dict.fromkeys(formats, half), "float32": single}
    return Device(name, memory, rates, _SHARE, _CUDA_GIB, source)


_NVIDIA = "https://www.nvidia.com/en-us/data-center/"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_A6000 = "https://www.nvidia.com/en-us/design-visualization/rtx-a6000/"
_AMPERE = (
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)

GPUS: dict[str, Device] = {
    device.name: device
    for device in (
        _gpu("a100-80g", 80, 312, 19.5, f"{_NVIDIA}a100/"),
        _gpu("a100-40g", 40, 312, 19.5, f"{_NVIDIA}a100/"),
        _gpu("h100", 80, 989.4, 67, f"{_NVIDIA}h100/"),
        _gpu("rtx4090", 24, 165.2, 82.6, _ADA),
        _gpu("rtx3090", 24, 71, 35.6, _AMPERE),
        _gpu("a6000", 48, 154.8, 38.7, _A6000),
        _gpu("l40s", 48, 362, 91.6, f"{_NVIDIA}l40s/"),
        _gpu("t4", 16, 65, 8.1, f"{_NVIDIA}tesla-t4/", "float16"),
        _gpu("v100", 32, 125, 15.7, f"{_NVIDIA}v100/", "float16"),
        _gpu("v100-16g", 16, 125, 15.7, f"{_NVIDIA}v100/", "float16"),
    )
}

CPU_OVERHEAD_GIB = 0.5
"""Resident memory of Python, torch, transformers and peft without a model (docs/plan.md);
`--calibrate` measures it again."""
CPU_FIRST_STEP_GIB = 0.12
"""What the process gains with the Trainer and its first step, next to tensors (docs/plan.md)."""
CPU_WASTE = 0.4
"""What glibc's allocator holds beyond a step's tensors, as a share of them (docs/plan.md)."""

_EMULATED = 0.01
"""Rate of bfloat16 products next to float32's where they are emulated, rounded: it was 1.3 GFLOP/s
next to 86, and next to 134, on an AMD EPYC with AVX2 (docs/speed.md)."""


def this_cpu() -> Device:
    """Describe this machine's processor; its rates are guesses that `--calibrate` replaces."""
    import torch

    threads = torch.get_num_threads()
    # 16 float32 multiply-adds a cycle at 2.5 GHz: AVX2, the commonest
    single = threads * 16 * 2 * 2.5e9 / 1e12
    half = single if processor_has_bfloat16() else single * _EMULATED
    rates = {"float32": single, "bfloat16": half, "float16": half}
    return Device(
        "cpu",
        memory_limit() / GIB,
        rates,
        0.5,
        CPU_OVERHEAD_GIB + CPU_FIRST_STEP_GIB,
        f"{processor_name()}, {threads} threads; memory by the operating system",
        CPU_WASTE,
    )


def slow_format(recipe: Recipe) -> str | None:
    """Return a sentence on the number format of a recipe that this machine is slow in, or None."""
    import torch

    settings = ["training.bf16=false"] if recipe.training.bf16 else []
    if recipe.model.dtype != "float32":
        settings.append("model.dtype=float32")
    if not settings or torch.cuda.is_available() or processor_has_bfloat16():
        return None
    return (
        "this processor has no products of 16-bit numbers, and torch's own for them are about "
        f"{1 / _EMULATED:.0f} times slower than float32's; "
        + " ".join(f"--set {setting}" for setting in settings)
    )


def processor_name() -> str:
    """Name the processor, as the operating system does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def memory_limit() -> int:
    """Count the bytes a process may take: the machine's, or its container's if that is less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        file = Path("/sys/fs/cgroup") / name
        if file.is_file() and (text := file.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


def find_device(name: str) -> Device:
    """Look a device up.

    Raises:
        RecipeError: there is none of that name.
    """
    if name == "cpu":
        return this_cpu()
    if name in GPUS:
        return GPUS[name]
    known = ["cpu", *GPUS]
    raise RecipeError(
        f"--device {name}: unknown; one of {', '.join(known)}{nearest(name.lower(), known)}"
    )


def judge_memory(
    recipe: Recipe,
    device: Device,
    num_devices: int,
    peak: float,
    holds: bool,
    work: Workload,
    largest: int | None,
) -> tuple[bool, str]:
    """Say whether a run would get through.

    Args:
        recipe: the plan's.
        device: the plan's.
        num_devices: of them.
        peak: memory of one device at its fullest, in GiB.
        holds: whether the device has that.
        work: what the run reads.
        largest: the most rows that fit; None if that was not asked.

    Returns:
        whether it fits, and the sentence.
    """
    if work.num_dropped and recipe.data.overflow == "error":
        return False, (
            f"does not fit: {work.num_dropped:,} examples take more than data.max_length "
            f"{recipe.data.max_length} tokens, and data.overflow: error stops at the first; raise "
            "data.max_length, or set data.overflow to drop or truncate_prompt"
        )
    where = f"{num_devices} x {device.name}" if num_devices > 1 else device.name
    if holds:
        most = f"; micro-batches of up to {largest} rows would" if largest else ""
        return True, f"fits: {peak:.1f} of {device.memory_gib:.0f} GiB on {where}{most}"
    return False, (
        f"does not fit: {peak:.1f} GiB, and {where} has {device.memory_gib:.0f}; "
        f"{_fix(recipe, largest)}"
    )


def _fix(recipe: Recipe, largest: int | None) -> str:
    """Name what would help, the least painful first."""
    if largest:
        return f"set training.per_device_train_batch_size to {largest}"
    if not recipe.training.gradient_checkpointing:
        return "set training.gradient_checkpointing: true, or take a larger device"
    if recipe.model.quantization != "nf4" and recipe.tuner.type != "full":
        return "set model.quantization: nf4, or take a larger device"
    return "shorten data.max_length, or take a larger device"
