"""A run's adapters as LaVIN's own code reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from varifocal.errors import ModelError
from varifocal.exporting.folders import PARITY, check_replaceable
from varifocal.models.checkpoint_files import read_object
from varifocal.models.layouts.lavin import lavin_rules
from varifocal.models.layouts.rule import Rule, write_all
from varifocal.models.saved import WEIGHTS
from varifocal.recipe import Recipe, load_recipe
from varifocal.run import RunDirectory
from varifocal.trained_weights import find_trained
from varifocal.writing import atomic_directory, write_json

CHECKPOINT = "checkpoint.pth"
"""The exported file, as LaVIN's `--adapter_path` takes it."""


def check_lavin(recipe: Recipe) -> None:
    """Refuse a run that LaVIN's code could not compute.

    Raises:
        ModelError: its tuner or connector has no equal there.
    """
    tuner, connector = recipe.tuner, recipe.model.connector
    fits = tuner.type == "mma" and connector is not None and connector.type == "cls_pyramid"
    if not fits or not getattr(tuner, "train_connector", False):
        raise ModelError(
            "--to lavin writes MMA's adapters with the connector cls_pyramid, trained, as LaVIN's "
            "code has them; this run has other parts, so use --to merged"
        )
    if getattr(tuner, "router", True) != "token":
        raise ModelError(
            "LaVIN's code routes each patch of an image by itself, and this run's tower by each "
            "image's CLS state: train with tuner.router: token, or use --to merged"
        )
    if not getattr(tuner, "projection_bias", True):
        raise ModelError(
            "LaVIN's adapters have biases, and this run's have none (tuner.projection_bias: "
            "false); use --to merged"
        )
    if getattr(tuner, "text_route", "trained") != "trained":
        raise ModelError(
            "LaVIN's code has no text_route: base, so it would compute other answers to text; use "
            "--to merged"
        )


def export_lavin(root: Path, out: Path | None = None) -> Path:
    """Write a run's adapters into a checkpoint, and compare what was written.

    A run that was imported is written bit for bit as it was read: its number format, its names and
    their order.

    Args:
        root: the run directory.
        out: the folder; an export that stands there is replaced. By default `RUN/export/lavin`.

    Returns:
        The file, for LaVIN's `--adapter_path`.

    Raises:
        ModelError: the run is damaged, or LaVIN's code could not compute it.
        RunError: there is no run, or `out` holds other files.
    """
    run = RunDirectory.open(root)
    out = out or run.root / "export" / "lavin"
    check_replaceable(out)
    check_lavin(load_recipe(run.recipe, check_paths=False))
    trained = find_trained(run)
    run.check_weights(trained.place)
    ours = load_file(trained.place / WEIGHTS)
    rules = _rules(ours)
    origin: dict[str, Any] = read_object(run.imported) if run.imported.is_file() else {}
    written = write_all(rules, ours)
    dtype = getattr(torch, origin.get("dtype", "float32"))
    names = origin.get("names", list(written))
    tensors = {name: written[name.removeprefix("module.")].to(dtype) for name in names}
    with atomic_directory(out) as staging:
        torch.save({"model": tensors}, staging / CHECKPOINT)
        _compare(torch.load(staging / CHECKPOINT, weights_only=True)["model"], rules, ours)
        write_json(staging / PARITY, {"passed": True, "files": [CHECKPOINT, PARITY]})
    return out / CHECKPOINT


def _rules(ours: dict[str, Tensor]) -> list[Rule]:
    """Name a run's tensors, all of them."""
    layers = sum(".input_layernorm.mma_down.weight" in name for name in ours)
    blocks = sum(".layer_norm1.mma_down.weight" in name for name in ours)
    rules = lavin_rules(layers, blocks)
    odd = sorted({rule.ours for rule in rules} ^ ours.keys())
    if odd:
        raise ModelError(
            f"LaVIN's code has no place for {odd[0]}: its language model is a LLaMA and its image "
            "encoder a CLIP; use --to merged"
        )
    return rules


def _compare(written: dict[str, Tensor], rules: list[Rule], ours: dict[str, Tensor]) -> None:
    """Refuse a file that does not hold the run's numbers.

    Raises:
        ModelError: it does not.
    """
    plain = {name.removeprefix("module."): tensor.float() for name, tensor in written.items()}
    for rule in rules:
        actual = rule.read([plain[name] for name in rule.theirs])
        if not torch.equal(actual, ours[rule.ours].float()):
            raise ModelError(f"{rule.theirs[0]} was written otherwise than the run has it")
