"""Keeping the processes of one training run in step when only some of them see an image."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def own_device() -> torch.device:
    """The device of this process; a launched one takes the GPU of its local rank, and no other."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    return torch.device("cuda", torch.cuda.current_device())


def in_world() -> bool:
    """Tell whether this process trains with others."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def num_processes() -> int:
    """How many processes train together, also before they have met: what the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the process that prints and writes, also before the others are met."""
    return os.environ.get("RANK", "0") == "0"


def is_sharded(*modules: nn.Module) -> bool:
    """Tell whether running these modules takes a collective call, as under FSDP2 and ZeRO-3.

    Then every process must run them whenever one does, frozen or not, or the others wait forever.
    So under ZeRO-2, which reduces gradients in the order in which they come.
    """
    if not in_world():
        return False
    # Here, since importing transformers registers our models, which import this module.
    from transformers.integrations.deepspeed import deepspeed_config

    return deepspeed_config() is not None or any(
        isinstance(parameter, DTensor) for module in modules for parameter in module.parameters()
    )


def touch(*modules: nn.Module) -> Tensor | None:
    """Return a zero that depends on every trainable parameter, or None where nothing trains.

    DDP waits for a gradient of every trainable parameter; a batch without an image gives the
    tower and the connector none. This gives them zeros.
    """
    trainable = [p for module in modules for p in module.parameters() if p.requires_grad]
    if not trainable or not torch.is_grad_enabled() or not in_world():
        return None
    return torch.stack([(parameter * 0).sum().float() for parameter in trainable]).sum()


def is_spread(model: nn.Module) -> bool:
    """Tell whether a model's parameters lie in parts, under FSDP2 or ZeRO-3: in one process too."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in model.parameters())


def gather_tensors(
    model: nn.Module, only: Iterable[nn.Parameter] | None = None
) -> dict[str, Tensor]:
    """Put a model's tensors together from their parts; every process has to call this.

    Args:
        model: its parameters whole, or spread by FSDP2 or ZeRO-3.
        only: the parameters to put together; the others stay where they are. None means all.

    Returns:
        Parameters and buffers by name, on the CPU, one tensor for tied ones. Those of ZeRO-3 are
        in the precision that it computes in.
    """
    named = list(model.named_parameters(remove_duplicate=False))
    wanted = {id(each) for each in (model.parameters() if only is None else only)}
    chosen = [(name, each) for name, each in named if id(each) in wanted]
    tensors: dict[int, Tensor] = {}
    for _, each in chosen:
        if id(each) not in tensors:
            tensors[id(each)] = _whole(each)
    buffers = {name: each.detach().cpu() for name, each in model.named_buffers()}
    return {**buffers, **{name: tensors[id(each)] for name, each in chosen}}


def _whole(parameter: Any) -> Tensor:
    """Return a parameter that may lie in parts, whole and on the CPU."""
    if isinstance(parameter, DTensor):
        return parameter.full_tensor().detach().cpu()
    if not hasattr(parameter, "ds_id"):
        return parameter.detach().cpu()
    from deepspeed.runtime.zero import GatheredParameters  # pyright: ignore[reportMissingImports]

    with GatheredParameters([parameter]):
        return parameter.detach().cpu().clone()
