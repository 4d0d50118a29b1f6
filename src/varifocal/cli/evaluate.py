"""The verb `eval`: score a run on its own sources, or any model on named benchmarks."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from varifocal.cli.compare import add_compare_verbs, refuse_beside_retention, show_retention
from varifocal.cli.options import ready
from varifocal.errors import VarifocalError

if TYPE_CHECKING:
    from varifocal.evaluation.runner import Way

_ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_MODEL",
        help="A run directory; with --suite also a model: packaged, a directory, or a hub id.",
    ),
]
_SuiteOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...", help="Suites or benchmarks; without it, the recipe's data.evaluate."
    ),
]
_DataOption = Annotated[
    Path | None,
    typer.Option(
        metavar="PATH",
        help="With --suite the folder that holds one folder a benchmark (default: the run's "
        "data, or 'data'); without it, score on this instead of data.evaluate.",
    ),
]
_SplitOption = Annotated[str | None, typer.Option(help="Another split than the usual one.")]
_ScoreOption = Annotated[
    Literal["options", "generate", "both"] | None,
    typer.Option(help="By likelihood, by what is written, or both; the usual way by default."),
]
_BlindOption = Annotated[bool, typer.Option("--blind", help="Leave the pictures out.")]
_OnBadOption = Annotated[
    Literal["fail", "skip"] | None,
    typer.Option(
        "--on-bad-record",
        help="A question that cannot be asked, its picture missing or damaged: stop, or leave it "
        "out and count it; by default as the run's data.on_bad_record says, and fail for a model.",
    ),
]
_LimitOption = Annotated[
    int | None,
    typer.Option(min=1, help="With --suite or --retention: only the first so many items."),
]
_BatchOption = Annotated[
    int | None, typer.Option(min=1, help="With --suite: questions of a forward pass (8).")
]
_AdapterOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="With --suite: PEFT's files for a model.")
]
_DtypeOption = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(
        help="With --suite: number format of the frozen weights; float32 by default, in which "
        "scores do not depend on the batch size."
    ),
]
_CheckpointOption = Annotated[
    int | None,
    typer.Option(metavar="STEP", help="Without --suite: the run as it was at that checkpoint."),
]
_OutOption = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="With --suite: where scores go; RUN/eval or runs/MODEL/eval."),
]
_RetentionOption = Annotated[
    bool,
    typer.Option(
        "--retention",
        help="Text skills instead: the base, the adapter off, the adapter on; --data holds "
        "scienceqa-text and alpaca, without it the run's own questions are asked.",
    ),
]
_TextOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="With --retention: held-out text.")
]


def add_eval_verb(app: typer.Typer) -> None:
    """Give an app the verb of this file, and `compare`, which reads what it writes."""
    app.command("eval", epilog="Example: varifocal eval runs/demo --suite sciencebook")(evaluate)
    add_compare_verbs(app)


def evaluate(
    model: _ModelArgument,
    suite: _SuiteOption = None,
    data: _DataOption = None,
    split: _SplitOption = None,
    score: _ScoreOption = None,
    blind: _BlindOption = False,
    limit: _LimitOption = None,
    batch_size: _BatchOption = None,
    adapter: _AdapterOption = None,
    dtype: _DtypeOption = None,
    checkpoint: _CheckpointOption = None,
    out: _OutOption = None,
    retention: _RetentionOption = False,
    text: _TextOption = None,
    on_bad_record: _OnBadOption = None,
) -> None:
    """Score a run or a model; scores and predictions stay on disk, and a stopped call goes on."""
    ready()
    if retention:
        refuse_beside_retention(
            {
                "--suite": suite,
                "--split": split,
                "--score": score,
                "--blind": blind or None,
                "--batch-size": batch_size,
                "--adapter": adapter,
                "--dtype": dtype,
                "--checkpoint": checkpoint,
                "--out": out,
            }
        )
        show_retention(Path(model), data, text, limit, on_bad_record)
        return
    if text is not None:
        raise VarifocalError("--text belongs to --retention; add it")
    if suite is None:
        _refuse_without_suite(limit, batch_size, adapter, dtype, out)
        _score_sources(model, data, split, score, blind, checkpoint, on_bad_record)
        return
    if checkpoint is not None:
        raise VarifocalError("--checkpoint scores a run's own sources; leave out --suite")
    from varifocal.evaluation.runner import Way

    way = Way(None, blind, split, limit, batch_size or 8)
    _score_suite(model, suite, data, way, score, adapter, dtype or "float32", out, on_bad_record)


def _refuse_without_suite(
    limit: int | None,
    batch_size: int | None,
    adapter: Path | None,
    dtype: str | None,
    out: Path | None,
) -> None:
    """Refuse what a run's own sources are not scored by."""
    given = {"limit": limit, "batch-size": batch_size, "adapter": adapter, "dtype": dtype}
    for option, value in {**given, "out": out}.items():
        if value is not None:
            raise VarifocalError(f"--{option} belongs to --suite; name one")


def _score_sources(
    model: str,
    data: Path | None,
    split: str | None,
    score: Literal["options", "generate", "both"] | None,
    blind: bool,
    checkpoint: int | None,
    on_bad_record: Literal["fail", "skip"] | None,
) -> None:
    """Score a run on its recipe's sources."""
    from varifocal.cli.tables import print_left_out, print_result, print_scores, stage_bars
    from varifocal.evaluation.evaluate import evaluate_sources
    from varifocal.evaluation.runner import Result
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
                progress=progress,
            )
        )
    renew_card(Path(model))
    for result in results:
        if isinstance(result.report, Result):
            print_result(result.report)
            continue
        print_scores(result.report)
        print_left_out(result.skipped)
        print(result.file)


def _score_suite(
    model: str,
    suite: str,
    data: Path | None,
    way: Way,
    score: Literal["options", "generate", "both"] | None,
    adapter: Path | None,
    dtype: str,
    out: Path | None,
    on_bad_record: Literal["fail", "skip"] | None,
) -> None:
    """Score a run or a model on benchmarks."""
    from varifocal.cli.tables import print_result, stage_bars
    from varifocal.evaluation.evaluate import Named, evaluate_benchmarks
    from varifocal.reports.card import renew_card

    with stage_bars() as progress:
        for result in evaluate_benchmarks(
            Named(model, adapter, dtype),
            suite,
            way,
            data=data,
            score=score,
            out=out,
            on_bad_record=on_bad_record,
            command=shlex.join(["varifocal", *sys.argv[1:]]),
            progress=progress,
        ):
            print_result(result)
    if out is None:
        renew_card(Path(model).expanduser())
