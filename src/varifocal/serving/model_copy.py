"""A copy of a model that has modules of its own and the original's weights."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def copy_sharing_weights(model: Model) -> Model:
    """Copy a model's modules, hooks and settings, and share its tensors.

    What is done to the copy's modules (other forwards, adapters switched off, evaluation mode)
    does not reach the original, and the copy takes no memory for weights. A weight that is changed
    in place changes in both.

    Args:
        model: any model of transformers, bare, grafted or wrapped by PEFT.
    """
    memo: dict[int, Any] = {}
    for part in model.modules():
        own = [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]
        memo |= {id(value): value for value in own if _is_shared(value)}
    return copy.deepcopy(model, memo)


def _is_shared(value: Any) -> bool:
    """Whether a module's attribute is a tensor, or bitsandbytes' record of a quantised one."""
    return isinstance(value, Tensor) or type(value).__module__.startswith("bitsandbytes.")
