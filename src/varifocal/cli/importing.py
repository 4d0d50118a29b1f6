"""`varifocal import`: runs made of checkpoints that other code has written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from varifocal.cli.options import ready, show_help

import_app = typer.Typer(
    help="Make a run of a checkpoint that the papers' own code has written.",
    callback=show_help,
    invoke_without_command=True,
)

LanguageModelOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="The language model that it was trained on: a packaged model, a directory in "
        "transformers' layout, or a hub id.",
    ),
]
VisionTowerOption = Annotated[
    str, typer.Option(metavar="NAME", help="The image encoder that it was trained on.")
]
NamedLanguageModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The language model; by default as the folder's config.json names it."
    ),
]
NamedVisionTowerOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The image encoder; by default as the folder's config.json names it."
    ),
]
OutOption = Annotated[Path, typer.Option(metavar="DIR", help="The run directory.")]
DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    typer.Option(help="Number format of the frozen weights."),
]


@import_app.command(
    epilog="Example: varifocal import lavin 15-eph.pth --language-model huggyllama/llama-7b "
    "--vision-tower openai/clip-vit-large-patch14 --out runs/lavin-7b"
)
def lavin(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CKPT", help="A .pth file of LaVIN's train.py.")
    ],
    language_model: LanguageModelOption,
    vision_tower: VisionTowerOption,
    out: OutOption,
    temperature: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Of the routers; by default the checkpoint's own, or 10 (7B; the 13B's is 5).",
        ),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Of the adapters; by default the checkpoint's own, or 1."),
    ] = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Make a run of LaVIN's adapters, with nothing left over on either side."""
    _check(out, language_model, vision_tower)
    ready()
    from varifocal.importing.lavin import import_lavin

    run = import_lavin(
        checkpoint,
        language_model,
        vision_tower,
        out,
        temperature=temperature,
        scale=scale,
        dtype=dtype,
    )
    _print_done(run)


@import_app.command(
    epilog="Example: varifocal import mixlora ft_vision-flan_mixlora_input_E-16_r-4 "
    "--out runs/mixlora"
)
def mixlora(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="With pytorch_model.bin, config.json and cmoa_args.bin."
        ),
    ],
    out: OutOption,
    language_model: NamedLanguageModelOption = None,
    vision_tower: NamedVisionTowerOption = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="r; by default the checkpoint's own.")
    ] = None,
    lora_alpha: Annotated[
        float | None,
        typer.Option(min=0.001, help="By default the checkpoint's own, or 2 E."),
    ] = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Make a run of a checkpoint of MixLoRA's code; its base must be that which is named."""
    _check(out, language_model, vision_tower)
    ready()
    from varifocal.importing.mixlora import import_mixlora

    run = import_mixlora(
        folder,
        out,
        language_model=language_model,
        vision_tower=vision_tower,
        rank=rank,
        lora_alpha=lora_alpha,
        dtype=dtype,
    )
    _print_done(run)


@import_app.command(
    epilog="Example: varifocal import llava llava-v1.5-7b-lora --language-model "
    "lmsys/vicuna-7b-v1.5 --out runs/llava"
)
def llava(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER",
            help="With config.json, and mm_projector.bin, a LoRA, or a model that was tuned whole.",
        ),
    ],
    out: OutOption,
    language_model: NamedLanguageModelOption = None,
    vision_tower: NamedVisionTowerOption = None,
    dtype: DtypeOption = "auto",
) -> None:
    """Make a run of a projector, a LoRA, or a whole model that LLaVA's code has trained."""
    _check(out, language_model, vision_tower)
    ready()
    from varifocal.importing.llava import import_llava

    names = {"language_model": language_model, "vision_tower": vision_tower}
    _print_done(import_llava(folder, out, **names, dtype=dtype))


def _check(out: Path, *names: str | None) -> None:
    """Refuse a folder or a model that cannot be used, before anything slow is imported."""
    from varifocal.models.names import check_model_name
    from varifocal.run import RunDirectory

    RunDirectory(out).check_free()
    for name in names:
        if name is not None:
            check_model_name(name)


def _print_done(run: Path) -> None:
    """Say what was read, and what a run may be used for."""
    import json

    origin = json.loads((run / "imported.json").read_text(encoding="utf-8"))
    print(f"{run}: all {origin['num_tensors']} tensors of {origin['file']}, each in its place")
    for note in origin["notes"]:
        print(f"  {note}")
    print(f'next: varifocal ask {run} "..." --image FILE')
