"""What is said when a loss or a gradient is no number: nothing is learned from it."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from varifocal.errors import RunError

SCALE_AT_LEAST = 1e-4
"""Below it, fp16's loss scale has been halved too often for its overflows to be chance."""
_NAMED = 8  # records that a sentence names


def is_finite(loss: torch.Tensor, norm: torch.Tensor | float, scaler: Any = None) -> bool:
    """Tell whether a step may be taken; one synchronisation with the device.

    Args:
        loss: a scalar, summed over the step's micro-batches, or over more.
        norm: of the gradient, as the clipping found it.
        scaler: fp16's. It looks for overflows by itself, skips their steps and lowers its scale;
            so with one, only a loss that is no number stops, or a scale that has run out.
    """
    if scaler is not None and scaler.is_enabled():
        return math.isfinite(loss.item()) and scaler.get_scale() >= SCALE_AT_LEAST
    if not isinstance(norm, torch.Tensor):
        return math.isfinite(norm) and math.isfinite(loss.item())
    whole: torch.Tensor = getattr(norm, "full_tensor", lambda: norm)()
    return bool(torch.isfinite(whole) & torch.isfinite(loss).to(whole.device))


def not_finite(
    what: str, where: str, mends: Sequence[str], names: Sequence[str] = (), kept: str = ""
) -> RunError:
    """Make the error of a step that is not taken.

    Args:
        what: the step and what of it is no number.
        where: in the data it stands.
        mends: what a user can change.
        names: of the records it was made from.
        kept: what is saved, and how to go on.
    """
    listed = ", ".join(names[:_NAMED])
    if len(names) > _NAMED:
        listed += f" and {len(names) - _NAMED} more"
    of = f" ({listed})" if listed else ""
    end = f"; {kept}" if kept else ""
    return RunError(f"{what}, on {where}{of}; it was not learned from. {'; or '.join(mends)}{end}")
