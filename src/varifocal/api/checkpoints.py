"""Checkpoints of the papers' own code, in and out."""

from __future__ import annotations

from pathlib import Path

from varifocal.api.jobs import Place
from varifocal.api.run import Run
from varifocal.exporting.lavin import export_lavin as write_lavin
from varifocal.importing.lavin import import_lavin as read_lavin


def import_lavin(
    checkpoint: Place,
    language_model: str,
    vision_tower: str,
    out: Place,
    *,
    temperature: float | None = None,
    scale: float | None = None,
    dtype: str = "auto",
) -> Run:
    """Make a run of a checkpoint of LaVIN, as `varifocal import lavin` does.

    The file is read without running anything it names, and each of its tensors has a place in the
    run.

    Args:
        checkpoint: a `.pth` file of LaVIN's `train.py`.
        language_model: the LLaMA or Vicuna that it was trained on: a packaged model, a directory
            in transformers' layout, or a hub id.
        vision_tower: the CLIP that it was trained on.
        out: the run directory.
        temperature: of the routers; by default the checkpoint's own, or 10.
        scale: of the adapters; by default the checkpoint's own, or 1.
        dtype: number format of the frozen weights.

    Returns:
        The run, of no training step.

    Raises:
        ModelError: the checkpoint cannot be read, or does not fit these models.
        RunError: the directory holds a run already or other files.
    """
    root = read_lavin(
        Path(checkpoint).expanduser(),
        language_model,
        vision_tower,
        Path(out).expanduser(),
        temperature=temperature,
        scale=scale,
        dtype=dtype,
    )
    return Run(root)


def export_lavin(run: Place, out: Place | None = None) -> Path:
    """Write a run's adapters as LaVIN's code reads them, as `varifocal export --to lavin` does.

    Args:
        run: the run directory: imported from LaVIN, or trained with `tuner.router: token` and the
            connector `cls_pyramid`.
        out: the folder; by default `RUN/export/lavin`.

    Returns:
        The file, for LaVIN's `--adapter_path`.

    Raises:
        ModelError: LaVIN's code could not compute this run, or it is damaged.
        RunError: there is no run, or `out` holds other files.
    """
    return write_lavin(Path(run).expanduser(), None if out is None else Path(out).expanduser())
