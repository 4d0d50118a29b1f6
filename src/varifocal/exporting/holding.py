"""Hold a trained model in float32, so that the gate compares before anything is rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from varifocal.assemble import Assembly

_BYTES = 4
_MODELS = 2  # the trained one, and what was written
_ROOM = 1.1  # for activations, logits and the layer that is being merged


def in_float32(parts: Assembly) -> tuple[Assembly, bool]:
    """Hold a model in float32, on its device or else on the CPU, where two of it fit there.

    16-bit weights and adapters are held without loss. Images are prepared for the wider model.

    Args:
        parts: opened for this export alone; its model is changed.

    Returns:
        The parts, and whether all their numbers are float32 or wider.
    """
    model = cast(Any, parts.model)
    narrow = [p for p in model.parameters() if p.is_floating_point() and p.element_size() < _BYTES]
    if not narrow:
        return parts, True
    device = _device_with_room(model)
    if device is None:
        return parts, False
    model.to(device).float()
    return parts.with_model(model), True


def _device_with_room(model: nn.Module) -> torch.device | None:
    """Return the model's own device, or the CPU, or None where neither has the memory."""
    own = next(model.parameters()).device
    held = sum(p.numel() * p.element_size() for p in model.parameters())
    needed = int(_ROOM * _MODELS * _BYTES * sum(p.numel() for p in model.parameters()))
    for device in dict.fromkeys((own, torch.device("cpu"))):
        if free_bytes(device) + (held if device == own else 0) >= needed:
            return device
    return None


def free_bytes(device: torch.device) -> int:
    """Return how many bytes of memory can still be taken on a device, in a container too."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    import psutil  # which accelerate brings

    return min([psutil.virtual_memory().available, *_left_in_group()])


def _left_in_group(root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Return what a control group (v2, or v1) leaves of its memory; nothing where it sets none."""
    for folder, limit, used, cached in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (
            root / "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue  # no such group, or its limit is "max"
        return [max(most - now + int(stat.get(cached, 0)), 0)]
    return []
