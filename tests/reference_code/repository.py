"""A repository at a commit: its files unpacked, and what they import from elsewhere replaced."""

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def unpack(repository: Path, commit: str, folder: Path) -> Path:
    """Write a commit's files into a folder, which is made, and let Python import from there."""
    folder.mkdir()
    archive = subprocess.run(
        ["git", "-C", repository, "archive", commit], check=True, capture_output=True
    )
    subprocess.run(["tar", "-x", "-C", folder], check=True, input=archive.stdout)
    sys.path.insert(0, str(folder))
    return folder


def stand_in(name: str, **attributes: Any) -> types.ModuleType:
    """Put a module with these attributes in the place of one that is not installed."""
    module = types.ModuleType(name)
    module.__dict__.update(attributes)
    sys.modules[name] = module
    return module


def compute_in_float64(model: nn.Module) -> None:
    """Hold a LLaMA of transformers in float64, its norms and rotations too."""
    model.double()
    for module in model.modules():
        if type(module).__name__ == "LlamaRMSNorm":
            module.forward = _rms_norm.__get__(module)
        elif type(module).__name__ == "LlamaRotaryEmbedding":
            module.forward = _rotary.__get__(module)


def _rms_norm(self: Any, x: Tensor) -> Tensor:
    mean = x.pow(2).mean(dim=-1, keepdim=True)
    return self.weight * (x * torch.rsqrt(mean + self.variance_epsilon))


def _rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    width = self.config.head_dim
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = position_ids[..., None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()
