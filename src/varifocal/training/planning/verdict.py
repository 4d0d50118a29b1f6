"""Whether a run can be had on a device, why not, and the mend: in one sentence."""

from __future__ import annotations

from varifocal.recipe import Recipe
from varifocal.training.planning.devices import Device
from varifocal.training.planning.lengths import Workload


def judge(
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
        f"{_mend(recipe, largest)}"
    )


def _mend(recipe: Recipe, largest: int | None) -> str:
    """Name what would help, the least painful first."""
    if largest:
        return f"set training.per_device_train_batch_size to {largest}"
    if not recipe.training.gradient_checkpointing:
        return "set training.gradient_checkpointing: true, or take a larger device"
    if recipe.model.quantization != "nf4" and recipe.tuner.type != "full":
        return "set model.quantization: nf4, or take a larger device"
    return "shorten data.max_length, or take a larger device"
