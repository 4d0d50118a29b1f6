"""Keeping the processes of one training run in step when only some of them see a picture."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


def in_world() -> bool:
    """Tell whether this process trains with others."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def is_sharded(*modules: nn.Module) -> bool:
    """Tell whether running these modules takes a collective call, as under FSDP2 and ZeRO-3.

    Then every process must run them whenever one does, frozen or not, or the others wait forever.
    """
    if not in_world():
        return False
    return is_deepspeed_zero3_enabled() or any(
        isinstance(parameter, DTensor) for module in modules for parameter in module.parameters()
    )


def touch(*modules: nn.Module) -> Tensor | None:
    """Return a zero that depends on every trainable parameter, or None where nothing trains.

    DDP waits for a gradient of every trainable parameter; a batch without a picture gives the
    tower and the connector none. This gives them zeros.
    """
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not trainable or not torch.is_grad_enabled() or not in_world():
        return None
    return torch.stack([(parameter * 0).sum().float() for parameter in trainable]).sum()
