"""The verb that lets a run leave the house."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from varifocal.cli.options import PublicOption, PushOption, StrengthOption, ready
from varifocal.errors import VarifocalError

if TYPE_CHECKING:
    from varifocal.exporting.export import Exported
    from varifocal.exporting.parity import Parity, Rounding


RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory; for --verify an export.")
]
ToOption = Annotated[
    Literal["merged", "lora", "route", "llava", "gguf", "llamacpp", "model", "lavin"] | None,
    typer.Option(
        help="merged: plain transformers checkpoints; lora: PEFT LoRAs; route: the LoRA that "
        "one prompt chooses (MixLoRA, LoRA experts); llava: transformers' LLaVA, for a graft whose "
        "connector is plain; gguf: the language model for llama.cpp; llamacpp: that and its tower "
        "and projector (mmproj), for a graft with a SigLIP tower whose connector is plain; model: "
        "the whole graft in one folder, for transformers with Varifocal; lavin: the adapters as "
        "LaVIN's own code reads them."
    ),
]
OutOption = Annotated[Path | None, typer.Option(metavar="DIR", help="By default RUN/export/KIND.")]
DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16", "q8_0"] | None,
    typer.Option(
        help="Number format of the weights; by default the run's. q8_0 (8 bits) is for gguf and "
        "llamacpp."
    ),
]
PromptOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="For --to route: the prompt.")
]
ImageOption = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="For --to route: its images.")
]
PromptsOption = Annotated[
    int, typer.Option(min=1, help="Prompts that both models answer before it leaves.")
]
MaxGapOption = Annotated[
    float | None,
    typer.Option(min=0, help="Largest difference of two logits before rounding, in float32."),
]
ShardOption = Annotated[float, typer.Option(min=0.001, help="Most GiB a safetensors file.")]
VerifyOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Instead of --to: RUN is an export, and the server at URL (OpenAI's API, with "
        "log-probabilities) is asked whether its adapter acts.",
    ),
]
ServedOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="For --verify: the server's name for it; else its first."),
]

ForOption = Annotated[
    Literal["vllm"] | None,
    typer.Option(
        "--for",
        help="Hold a LoRA or a LLaVA against this server's rules; with --to llava and "
        "text_route: base it is the base and the image route's LoRA, which one vLLM serves.",
    ),
]


def add_export_verb(app: typer.Typer) -> None:
    """Give an app the verb of this file."""
    app.command(epilog="Example: varifocal export runs/demo --to merged --dtype float32")(export)


def export(
    run: RunArgument,
    to: ToOption = None,
    out: OutOption = None,
    dtype: DtypeOption = None,
    prompt: PromptOption = None,
    image: ImageOption = None,
    prompts: PromptsOption = 16,
    max_gap: MaxGapOption = None,
    shard_gib: ShardOption = 4.0,
    strength: StrengthOption = 1.0,
    push_to_hub: PushOption = None,
    public: PublicOption = False,
    verify: VerifyOption = None,
    served_as: ServedOption = None,
    serves: ForOption = None,
) -> None:
    """Write a run as what others load, each artifact held against the trained model."""
    if to is None or verify is not None:
        _verify(run, verify if to is None else None, served_as)
        return
    if image and prompt is None:
        raise VarifocalError("--image belongs to --prompt: give the prompt that shows the image")
    from varifocal.cli.checks import check_run, readable_images
    from varifocal.exporting.folders import check_replaceable, routes_of
    from varifocal.run import RunDirectory

    readable_images(image or ())
    check_run(run)
    if to == "lavin":
        _write_lavin(run, out)
        return
    target = out or run / "export" / to
    for name, _ in routes_of(to, RunDirectory(run)):
        check_replaceable(target / name)
    ready()
    from varifocal.cli.tables import stage_bars
    from varifocal.exporting.adapters import prompt_example
    from varifocal.exporting.export import export_run as run_export
    from varifocal.exporting.export import push
    from varifocal.exporting.request import Order

    order = Order(
        RunDirectory.open(run),
        to,
        dtype,
        prompts,
        max_gap,
        shard_gib,
        None if prompt is None else prompt_example(prompt, image or ()),
        f"varifocal {shlex.join(sys.argv[1:])}",
        strength,
        serves,
    )
    with stage_bars() as progress:
        exported = run_export(order, target, progress)
    for done in exported:
        _report(done)
    if push_to_hub is not None:
        print(push(target, push_to_hub, private=not public))


def _report(done: Exported) -> None:
    print(f"{done.directory}: passed; {_sentence(done.parity)}")
    if done.rounding is not None:
        print(f"  {_lost(done.rounding)}")
    for note in done.notes:
        print(f"  {note}")


def _write_lavin(run: Path, out: Path | None) -> None:
    ready()
    from varifocal.exporting.lavin import export_lavin

    file = export_lavin(run, out)
    print(f"{file}: every tensor was read back and compared, bit for bit")
    print("  LaVIN's code takes it as --adapter_path, with --visual_adapter_type router")


def _verify(directory: Path, url: str | None, served_as: str | None) -> None:
    """Ask a server; what is not the trained adapter's answer is an error."""
    if url is None:
        raise VarifocalError(
            "give --to KIND to write an export, or --verify URL to ask a server that serves one"
        )
    from varifocal.exporting.liveness import verify

    verdict = verify(directory, url, served_as)
    if verdict.verdict != "acts":
        raise VarifocalError(f"{url}: {verdict.sentence()}")
    print(f"{url}: {verdict.sentence()}")


def _sentence(parity: Parity) -> str:
    return (
        f"{parity.prompts} prompts, largest gap {parity.largest_gap:.2g} (allowed "
        f"{parity.bound:.2g}), in the mean {parity.relative_gap:.2g} of the logits, "
        f"{parity.agreement:.1%} of {parity.tokens} tokens agree, compared in {parity.dtype}"
    )


def _lost(rounding: Rounding) -> str:
    return (
        f"Rounding to {rounding.dtype} comes on top: logits move by up to "
        f"{rounding.largest_gap:.2g}, in the mean {rounding.relative_gap:.2g} of the logits, and "
        f"{1 - rounding.agreement:.1%} of the tokens change."
    )
