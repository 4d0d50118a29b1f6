"""Where a process computes: its own GPU where there is one, the CPU elsewhere."""

import os

import torch


def own_device() -> torch.device:
    """The device of this process; a launched one takes the GPU of its local rank, and no other."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))
    return torch.device("cuda", torch.cuda.current_device())
