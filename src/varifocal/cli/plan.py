"""The verb `plan`: what a recipe will take, before anything is loaded."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from varifocal.cli.options import RecipeArgument, SetOption, ready

if TYPE_CHECKING:
    from varifocal.planning.estimate import Plan

DOES_NOT_FIT = 1

DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="cpu, a100-80g, a100-40g, h100, rtx4090, rtx3090, a6000, l40s, t4, v100 or v100-16g. "
        "By default this machine where it holds the run, else an a100-80g.",
    ),
]
NumDevicesOption = Annotated[
    int, typer.Option(min=1, help="Devices that share the rows of a step, as `launch` does.")
]
PriceOption = Annotated[
    float | None, typer.Option(min=0, metavar="USD", help="USD an hour of one device.")
]
CalibrateOption = Annotated[
    bool,
    typer.Option(
        "--calibrate",
        help="First train on this machine for at most 40 seconds next to loading; keep its rate.",
    ),
]


def add_plan_verb(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(epilog="Example: varifocal plan lavin-7b-scienceqa --device a100-80g --price 2")(
        plan
    )


def plan(
    recipe: RecipeArgument,
    device: DeviceOption = None,
    num_devices: NumDevicesOption = 1,
    price: PriceOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    calibrate: CalibrateOption = False,
    overrides: SetOption = None,
) -> None:
    """Say what a recipe will take: memory, tokens, hours, money; nothing is loaded.

    Ends with 0 if it fits, with 1 if it does not, or if `train` would refuse it.
    """
    from varifocal.cli.checks import check_models
    from varifocal.models.published_configs import PUBLISHED
    from varifocal.planning.devices import find_device
    from varifocal.recipe import load_recipe

    page = load_recipe(recipe, overrides or (), check_paths=False)
    if device not in (None, "cpu"):
        find_device(device)
    check_models(page.model, PUBLISHED)
    ready()
    from varifocal.planning.plan import plan_recipe

    planned = plan_recipe(page, device, num_devices=num_devices, price=price, calibrates=calibrate)
    if as_json:
        print(json.dumps(planned.page(), indent=2))
    else:
        for line in _lines(planned):
            print(line)
    if not planned.fits:
        raise typer.Exit(DOES_NOT_FIT)


def _lines(plan: Plan) -> Iterator[str]:
    """Write a plan as a page."""
    yield _row("trained parameters", f"{plan.trained_parameters:,}")
    for part, count in plan.trained_parameters_by_part.items():
        yield _row(f"  {part}", f"{count:,}")
    yield _row("frozen parameters", f"{plan.frozen_parameters:,}")
    yield ""
    yield _row("peak memory of a device", f"{plan.peak_memory_gib:.2f} GiB")
    for part, size in plan.memory_gib.items():
        if size >= _SHOWN_GIB:
            yield _row(f"  {part.replace('_', ' ')}", f"{size:.2f} GiB")
    for how, size in plan.activations_gib.items():
        yield _row(f"a step {how.replace('_', ' ')}", f"{size:.2f} GiB")
    yield _row("rows at once", f"{plan.micro_batch}")
    yield _row("most rows that fit", f"{plan.largest_micro_batch}")
    yield ""
    yield from _work(plan)
    if plan.paper is not None:
        yield ""
        yield from _paper(plan)
    yield ""
    yield "assumed:"
    for sentence in plan.assumptions:
        yield from _item(sentence)
    yield ""
    yield from _wrapped(plan.verdict)


_SHOWN_GIB = 0.005
_COLUMNS = 80


def _row(name: str, value: str) -> str:
    return f"{name:<36}{value:>22}"


def _item(sentence: str) -> list[str]:
    return _wrapped(f"- {sentence}", indent="  ")


def _wrapped(sentence: str, indent: str = "") -> list[str]:
    # a word too long for the line is an address or a path, which is not to be broken
    return textwrap.wrap(
        sentence,
        _COLUMNS,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _work(plan: Plan) -> Iterator[str]:
    """Say what is read and how long that takes."""
    if plan.tokens is None or plan.flops is None or plan.hours is None:
        yield _row("tokens, hours", "not known")
        return
    about = "" if plan.tokens_exact else "about "
    yield _row("examples an epoch", f"{plan.examples:,}")
    yield _row("steps", f"{plan.steps:,}")
    yield _row("tokens", f"{about}{plan.tokens:,}")
    yield _row("  trained", f"{plan.tokens_trained:,}")
    yield _row("  next to them padding", f"{plan.tokens_padding:,} ({plan.pad_share or 0:.1%})")
    yield _row("images through the tower", f"{plan.vision_passes:,}")
    yield _row("images looked up", f"{plan.vision_lookups:,}")
    if plan.num_dropped or plan.num_cut:
        over = f"{plan.num_dropped:,} out, {plan.num_cut:,} cut"
        yield _row("examples over the limit", over)
    if plan.num_evaluations:
        yield _row("evaluations", f"{plan.num_evaluations:,}")
        yield _row("  tokens of them, next to the above", f"about {plan.tokens_evaluated:,}")
    yield _row("operations", f"{plan.flops + (plan.flops_masked or 0):.3g}")
    yield _row("time", _time(plan.hours))
    if plan.usd is not None:
        yield _row("money", f"{plan.usd:,.2f} USD")


def _time(hours: float) -> str:
    return f"{hours:.2f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def _paper(plan: Plan) -> Iterator[str]:
    """Lay the paper's figures next to ours."""
    paper: dict[str, Any] = plan.paper or {}
    yield f"measured by the authors: {paper['source']}"
    yield _row("their memory of a GPU", f"{paper['measured_memory_gb']:.1f} GB")
    yield _row("ours, as planned above", f"{plan.peak_memory_gib * 2**30 / 1e9:.1f} GB")
    yield _row("their hours", f"{paper['measured_hours']:g} h on {paper['num_gpus']}")
    yield _row("their loop by our formula, A100s", f"{paper['hours_of_their_loop']:.2f} h")
    for reason in paper["reasons"]:
        yield from _item(reason)
