"""The verbs `eval` and `benchmark`: score a run on its own sources, any model on benchmarks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from varifocal.cli.options import StrengthOption, ready

if TYPE_CHECKING:
    from varifocal.evaluation.evaluate import Named
    from varifocal.evaluation.runner import AskOptions


ScoreBy = Literal["options", "generate", "both"]
OnBadRecord = Literal["fail", "skip"]
ProtocolName = Literal["mlan", "lavin", "mixlora"]

_SplitOption = Annotated[str | None, typer.Option(help="Another split than the usual one.")]
_ScoreOption = Annotated[
    ScoreBy | None,
    typer.Option(help="By likelihood, by what is written, or both; the usual way by default."),
]
_ProtocolOption = Annotated[
    ProtocolName | None,
    typer.Option(
        help="Ask and read as a paper's code does: mlan for its suite, lavin or mixlora for mme."
    ),
]
_BlindOption = Annotated[bool, typer.Option("--blind", help="Leave the images out.")]
_OnBadOption = Annotated[
    OnBadRecord | None,
    typer.Option(
        "--on-bad-record",
        help="A question that cannot be asked, its image missing or damaged: stop, or leave it "
        "out and count it; by default as the run's data.on_bad_record says, and fail for a model.",
    ),
]


def add_eval_verbs(app: typer.Typer) -> None:
    """Give an app the verbs of this file."""
    app.command("eval", epilog="Example: varifocal eval runs/demo --score both")(evaluate)
    app.command(epilog="Example: varifocal benchmark runs/demo sciencebook")(benchmark)


def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run directory.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Score on this instead of the recipe's data.evaluate."),
    ] = None,
    split: _SplitOption = None,
    score: _ScoreOption = None,
    blind: _BlindOption = False,
    checkpoint: Annotated[
        int | None, typer.Option(metavar="STEP", help="The run as it was at that checkpoint.")
    ] = None,
    on_bad_record: _OnBadOption = None,
    strength: StrengthOption = 1.0,
) -> None:
    """Score a run on its recipe's data.evaluate; a stopped call goes on when repeated."""
    from varifocal.cli.checks import check_run

    check_run(run, checkpoint)
    ready()
    _score_sources(run, data, split, score, blind, checkpoint, on_bad_record, strength)


def benchmark(
    model: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_MODEL",
            help="A run directory, or a model: packaged, a directory, or a hub id.",
        ),
    ],
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Suites or benchmarks, such as nlvr.")
    ],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Holds one folder a benchmark; by default the run's data.root, or 'data'.",
        ),
    ] = None,
    split: _SplitOption = None,
    score: _ScoreOption = None,
    protocol: _ProtocolOption = None,
    blind: _BlindOption = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many items of each.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions of a forward pass.")] = 8,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="PEFT's files for a model.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(
            help="Number format of the frozen weights; in float32 scores do not depend on the "
            "batch size."
        ),
    ] = "float32",
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where scores go; RUN/eval or runs/MODEL/eval."),
    ] = None,
    on_bad_record: _OnBadOption = None,
    strength: StrengthOption = 1.0,
) -> None:
    """Score a run or a model on named benchmarks; a stopped call goes on when repeated."""
    from varifocal.cli.checks import check_run_or_model

    check_run_or_model(model)
    ready()
    from varifocal.evaluation.evaluate import Named
    from varifocal.evaluation.runner import AskOptions

    options = AskOptions(None, blind, split, limit, batch_size)
    named = Named(model, adapter, dtype, strength)
    place = ",".join(names), data, options
    _score_benchmarks(named, *place, score, protocol, out, on_bad_record)


def _score_sources(
    model: str,
    data: Path | None,
    split: str | None,
    score: ScoreBy | None,
    blind: bool,
    checkpoint: int | None,
    on_bad_record: OnBadRecord | None,
    strength: float,
) -> None:
    """Score a run on its recipe's sources."""
    from varifocal.cli.tables import print_result, stage_bars
    from varifocal.evaluation.evaluate import evaluate_sources
    from varifocal.reports.card import renew_card

    with stage_bars() as progress:
        results = list(
            evaluate_sources(
                model,
                data=data,
                split=split,
                score=score,
                blind=blind,
                checkpoint=checkpoint,
                on_bad_record=on_bad_record,
                strength=strength,
                command=shlex.join(["varifocal", *sys.argv[1:]]),
                progress=progress,
            )
        )
    renew_card(Path(model))
    for result in results:
        print_result(result)


def _score_benchmarks(
    named: Named,
    names: str,
    data: Path | None,
    options: AskOptions,
    score: ScoreBy | None,
    protocol: ProtocolName | None,
    out: Path | None,
    on_bad_record: OnBadRecord | None,
) -> None:
    """Score a run or a model on benchmarks."""
    from varifocal.cli.tables import print_result, stage_bars
    from varifocal.evaluation.evaluate import evaluate_benchmarks
    from varifocal.reports.card import renew_card

    with stage_bars() as progress:
        for result in evaluate_benchmarks(
            named,
            names,
            options,
            data=data,
            score=score,
            protocol=protocol,
            out=out,
            on_bad_record=on_bad_record,
            command=shlex.join(["varifocal", *sys.argv[1:]]),
            progress=progress,
        ):
            print_result(result)
    if out is None:
        renew_card(Path(named.model).expanduser())
