"""Checkpoints of the papers' own code, in and out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from varifocal.api.jobs import Place
from varifocal.api.run import Run
from varifocal.errors import ModelError
from varifocal.exporting.lavin import export_lavin
from varifocal.importing.lavin import import_lavin
from varifocal.importing.llava import import_llava
from varifocal.importing.mixlora import import_mixlora

Layout = Literal["lavin", "mixlora", "llava"]


def import_checkpoint(
    checkpoint: Place,
    layout: Layout,
    out: Place,
    *,
    language_model: str | None = None,
    vision_tower: str | None = None,
    dtype: str = "auto",
    temperature: float | None = None,
    scale: float | None = None,
    rank: int | None = None,
    lora_alpha: float | None = None,
) -> Run:
    """Make a run of a checkpoint of the papers' code, as `varifocal import` does.

    Its files are read without running anything they name, and each of their tensors has a place in
    the run.

    Args:
        checkpoint: of `lavin` a `.pth` file of its `train.py`; of `mixlora` a folder with
            `pytorch_model.bin`, `config.json` and `cmoa_args.bin`; of `llava` a folder with
            `config.json` and `mm_projector.bin`, or with a LoRA and `non_lora_trainables.bin`.
        layout: `lavin`, `mixlora` or `llava`.
        out: the run directory.
        language_model: the one that it was trained on: a packaged model, a directory in
            transformers' layout, or a hub id; by default as the folder's `config.json` names it.
        vision_tower: likewise. LaVIN's file names neither.
        dtype: number format of the frozen weights.
        temperature: of LaVIN's routers; by default the checkpoint's own, or 10.
        scale: of LaVIN's adapters; by default the checkpoint's own, or 1.
        rank: r of MixLoRA; by default the checkpoint's own.
        lora_alpha: of MixLoRA; by default the checkpoint's own, or 2 E.

    Returns:
        The run, of no training step.

    Raises:
        ModelError: the checkpoint cannot be read, or does not fit these models.
        RunError: the directory holds a run already or other files.
    """
    source, target = Path(checkpoint).expanduser(), Path(out).expanduser()
    given = {"temperature": temperature, "scale": scale, "rank": rank, "lora_alpha": lora_alpha}
    _check_given(layout, given)
    if layout == "lavin":
        if language_model is None or vision_tower is None:
            raise ModelError("LaVIN's file does not name its models: give both names")
        names = language_model, vision_tower
        return Run(
            import_lavin(source, *names, target, temperature=temperature, scale=scale, dtype=dtype)
        )
    models = {"language_model": language_model, "vision_tower": vision_tower}
    if layout == "llava":
        return Run(import_llava(source, target, **models, dtype=dtype))
    return Run(
        import_mixlora(source, target, **models, rank=rank, lora_alpha=lora_alpha, dtype=dtype)
    )


def _check_given(layout: str, given: Mapping[str, float | None]) -> None:
    """Refuse a layout that is not read, and settings that belong to another one."""
    own = {"lavin": ("temperature", "scale"), "mixlora": ("rank", "lora_alpha"), "llava": ()}
    if layout not in own:
        raise ModelError(f"layout is {layout!r}; it is one of {', '.join(own)}")
    for key, value in given.items():
        if value is not None and key not in own[layout]:
            raise ModelError(f"{key} belongs to another layout than {layout}; leave it out")


def export_checkpoint(run: Place, layout: Literal["lavin"], out: Place | None = None) -> Path:
    """Write a run's adapters as LaVIN's code reads them, as `varifocal export --to lavin` does.

    Args:
        run: the run directory: imported from LaVIN, or trained with `tuner.router: token` and the
            connector `cls_pyramid`.
        layout: `lavin`.
        out: the folder; by default `RUN/export/lavin`.

    Returns:
        The file, for LaVIN's `--adapter_path`.

    Raises:
        ModelError: LaVIN's code could not compute this run, or it is damaged.
        RunError: there is no run, or `out` holds other files.
    """
    if layout != "lavin":
        raise ModelError(f"layout is {layout!r}; only lavin is written")
    return export_lavin(Path(run).expanduser(), None if out is None else Path(out).expanduser())
