"""A repository at a commit: its files unpacked, and what they import from elsewhere replaced."""

import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varifocal.models.layouts.rule import Rule, write_all


def unpack(repository: Path, commit: str, folder: Path) -> Path:
    """Write a commit's files into a folder, which is made, and let Python import from there.

    Images of its README are left out: partial copies of a repository lack such large files.
    """
    folder.mkdir()
    code = ("git", "-C", repository, "archive", commit, "--", ".", ":!assets", ":!images")
    archive = subprocess.run(code, check=True, capture_output=True)
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


def gradient_gap(
    theirs: Mapping[str, nn.Parameter],
    ours: nn.Module,
    logits: tuple[Tensor, Tensor],
    rules: Sequence[Rule],
) -> tuple[float, int]:
    """Compare what the same weighted sum of both sides' logits gives trained tensors.

    Args:
        theirs: their trained parameters, by the names of their checkpoints.
        ours: a PEFT model with the adapter `default`.
        logits: theirs and ours, with graphs.
        rules: of all tensors of a checkpoint.

    Returns:
        The largest gap by the largest gradient, and how many tensors have one on both sides.
    """
    torch.manual_seed(7)
    weights = torch.randn_like(logits[0])
    for each in logits:
        (each * weights).sum().backward()
    named = {
        name.replace(".modules_to_save.default", "").replace(".default", ""): tensor
        for name, tensor in (*ours.named_parameters(), *ours.named_buffers())
    }
    own = [named[rule.ours] for rule in rules]
    found = write_all(rules, {rule.ours: _gradient(t) for rule, t in zip(rules, own, strict=True)})
    expected = {name: _gradient(theirs[name]) for name in found}
    largest = max(tensor.abs().max() for tensor in expected.values())
    gap = max((found[name] - expected[name]).abs().max() for name in found) / largest
    both = sum(bool(found[name].any() and expected[name].any()) for name in found)
    for tensor in (*theirs.values(), *own):
        tensor.grad = None
    return float(gap), both


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _rms_norm(self: Any, x: Tensor) -> Tensor:
    mean = x.pow(2).mean(dim=-1, keepdim=True)
    return self.weight * (x * torch.rsqrt(mean + self.variance_epsilon))


def _rotary(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    width = self.config.head_dim
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = position_ids[..., None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()
