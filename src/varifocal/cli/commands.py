"""The verbs of the command line, and how they end.

Torch and transformers cost seconds, so a verb imports what it needs when it runs, and
`varifocal --help` stays quick.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
import typer.core

from varifocal import __version__
from varifocal.cli.analyze import add_words_verb, analyze_app
from varifocal.cli.cache import add_cache_verb
from varifocal.cli.compare import add_compare_verb
from varifocal.cli.data import data_app
from varifocal.cli.evaluate import add_eval_verbs
from varifocal.cli.export import add_export_verb
from varifocal.cli.importing import import_app
from varifocal.cli.init import add_init_verb
from varifocal.cli.interrupted import INTERRUPTED, how_to_go_on
from varifocal.cli.launch import add_launch_verb
from varifocal.cli.options import RecipeArgument, SetOption, StrengthOption, ready, show_help
from varifocal.cli.plan import add_plan_verb
from varifocal.cli.recipes import add_recipes_verb
from varifocal.cli.report import add_run_verbs
from varifocal.cli.retention import add_retention_verb
from varifocal.cli.serve import add_serve_verb
from varifocal.cli.watch import add_watch_verb
from varifocal.errors import Stopped, VarifocalError, nearest
from varifocal.sigterm import Terminated, sigterm_interrupts

if TYPE_CHECKING:
    from varifocal.cli.chat import Conversation
    from varifocal.recipe import Recipe

MISTAKE = 2
RUNS = Path("runs")

# Of what it raises for a wrong option or verb, typer makes only a subclass public.
_UsageError = cast(type[Exception], typer.BadParameter.__mro__[1])

_PANELS = {
    "Prepare": ("init", "recipes", "data", "plan"),
    "Train": ("train", "launch", "watch", "sweep", "demo"),
    "Measure": ("eval", "benchmark", "retention", "compare", "report"),
    "Use": ("ask", "chat", "serve", "export", "import"),
    "Study": ("analyze",),
    "Disk": ("cache",),
}
"""The verbs in the order of the work, by their group in `varifocal --help`."""


class _InWorkflowOrder(typer.core.TyperGroup):
    """Lists the verbs in the order of `_PANELS`, where typer puts groups last."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the verbs' names; a verb that no panel names would not be listed."""
        return [name for names in _PANELS.values() for name in names]


app = typer.Typer(
    cls=_InWorkflowOrder,
    help="Give a frozen language model eyes: train a few parameters, measure, talk to the result.",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(data_app, name="data")
add_words_verb(analyze_app)
app.add_typer(analyze_app, name="analyze")
app.add_typer(import_app, name="import")
add_init_verb(app)
add_eval_verbs(app)
add_retention_verb(app)
add_compare_verb(app)
add_recipes_verb(app)
add_plan_verb(app)
add_run_verbs(app)
add_export_verb(app)
add_cache_verb(app)
add_serve_verb(app)
add_launch_verb(app)
add_watch_verb(app)

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/demo.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with an interrupted run as if it had not stopped.")
]
ImageOption = Annotated[
    list[Path] | None,
    typer.Option("--image", metavar="FILE", help="An image; may be given several times."),
]
TemperatureOption = Annotated[
    float,
    typer.Option(
        min=0, max=100, help="0 takes the likeliest token; above 0, chance grows with it."
    ),
]
TopPOption = Annotated[
    float,
    typer.Option(
        help="With a temperature: sample from the likeliest tokens that hold this probability."
    ),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, max=2**63 - 1, help="With a temperature: same seed, same answer."),
]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
StopOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TEXT", help="End an answer before this text; may be given several times."
    ),
]


@app.callback(invoke_without_command=True)
def varifocal(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Give a frozen language model eyes: train a few parameters, measure, talk to the result."""
    if version:
        print(__version__)
        raise typer.Exit
    show_help(context)


@app.command(epilog="Example: varifocal demo --quick")
def demo(
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps on a little data: does it all work?")
    ] = False,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The run directory.")] = RUNS / "demo",
) -> None:
    """Teach a real 135M language model to answer science questions about images.

    An interrupted demo goes on where it stopped; a finished one is only shown again.
    """
    from varifocal.cli.checks import check_training
    from varifocal.recipe import load_recipe

    check_training(load_recipe("demo", check_paths=False), out, resume=True)
    ready()
    from varifocal.cli.tables import print_demo, stage_bars
    from varifocal.demo import run_demo
    from varifocal.reports.card import renew_card

    with stage_bars() as progress:
        result = run_demo(out, quick=quick, progress=progress)
    renew_card(out)
    print_demo(result, out)


@app.command(epilog="Example: varifocal train lavin-7b-scienceqa --set data.root=data/scienceqa")
def train(
    recipe: RecipeArgument,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run directory; runs/NAME by default.")
    ] = None,
    resume: ResumeOption = False,
    overrides: SetOption = None,
) -> None:
    """Train a recipe into a run directory; Ctrl-C saves what there is."""
    from varifocal.cli.checks import check_training
    from varifocal.recipe import load_recipe

    page = load_recipe(recipe, overrides or ())
    root = out or RUNS / str(page.name)
    check_training(page, root, resume=resume)
    ready()
    from varifocal.cli.tables import print_left_out, stage_bars
    from varifocal.models.distributed import is_main_process
    from varifocal.planning.devices import slow_format
    from varifocal.planning.plan import foresee
    from varifocal.reports.card import renew_card
    from varifocal.training.train import run_training as run_training

    if (slow := slow_format(page)) and is_main_process():
        print(slow, file=sys.stderr)
    with stage_bars() as progress:
        result = run_training(page, root, resume=resume, progress=progress, predict=foresee)
    if not is_main_process():
        return
    renew_card(root)
    print_left_out([*result.skipped, *result.dropped])
    for note in (*result.data_notes, *result.passed_over):
        print(note, file=sys.stderr)
    loss = "" if result.loss is None else f"loss {result.loss:.3f}, "
    print(
        f"{root}: {result.steps} steps, {sum(result.trained_parameters.values()):,} trained "
        f"parameters, {loss}{result.minutes:.1f} min, peak memory {result.peak_memory_gib:.1f} GiB"
    )
    print(f"next: {_after_training(page, root)}")


def _after_training(page: Recipe, root: Path) -> str:
    """Return the command that works on a trained run: its score, or a talk where it has none."""
    from varifocal.evaluation.sources import can_be_scored, shows_images_to_none

    if not can_be_scored(page):
        return shlex.join(["varifocal", "chat", str(root)])
    blind = ["--blind"] if shows_images_to_none(page) else []
    return shlex.join(["varifocal", "eval", str(root), *blind])


@app.command(epilog='Example: varifocal ask runs/demo "Will they attract?" --image magnets.png')
def ask(
    run: RunArgument,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="What to ask.")],
    image: ImageOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    max_new_tokens: MaxTokensOption = 256,
    stop: StopOption = None,
    strength: StrengthOption = 1.0,
) -> None:
    """Ask a trained run one question, about images or not."""
    sampled = (temperature, top_p, seed, max_new_tokens, stop or ())
    conversation = _open_conversation(run, image or (), *sampled, strength)
    conversation.say(question)


@app.command(epilog="Example: varifocal chat runs/demo --image magnets.png")
def chat(
    run: RunArgument,
    image: ImageOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    max_new_tokens: MaxTokensOption = 256,
    stop: StopOption = None,
    strength: StrengthOption = 1.0,
) -> None:
    """Talk with a trained run, about images or not, over several turns."""
    sampled = (temperature, top_p, seed, max_new_tokens, stop or ())
    conversation = _open_conversation(run, image or (), *sampled, strength)
    from varifocal.cli.chat import typed_lines

    print("/help lists the commands.")
    for line in typed_lines():
        try:
            if not conversation.obey(line):
                break
        except Terminated:
            raise
        except KeyboardInterrupt:
            continue  # it cut the answer short, not the conversation
        except VarifocalError as error:
            _complain(str(error))


def _open_conversation(
    run: Path,
    files: Sequence[Path],
    temperature: float,
    top_p: float,
    seed: int | None,
    max_new_tokens: int,
    stop: Sequence[str],
    strength: float,
) -> Conversation:
    """Open a run for questions, its first images read."""
    from varifocal.cli.checks import check_run, check_sampling, readable_images

    check_sampling(temperature, top_p, seed, stop)
    images = readable_images(files)
    check_run(run)
    ready()
    from varifocal.cli.chat import Conversation
    from varifocal.serving.request import Sampling

    sampling = Sampling(max_new_tokens, temperature, top_p, seed, tuple(stop))
    conversation = Conversation(run, sampling, strength)
    conversation.show(images)
    return conversation


for _verb in (*app.registered_commands, *app.registered_groups):
    _name = _verb.name or cast(Any, _verb).callback.__name__
    _verb.rich_help_panel = next(panel for panel, names in _PANELS.items() if _name in names)


def main() -> None:
    """Run a command line: a user's mistake is one sentence and exit code 2, never a traceback.

    SIGTERM, which schedulers and containers send, ends every stage as Ctrl-C does.
    """
    try:
        with sigterm_interrupts():
            code = app(prog_name="varifocal", standalone_mode=False)
    except Stopped as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    except VarifocalError as error:
        code = _complain(str(error), error.exit_code)
    except KeyboardInterrupt:  # before typer has begun, or after
        code = INTERRUPTED
    except _UsageError as error:
        code = _complain(_usage(error))
    except OSError as error:
        from varifocal.writing import unusable

        message = unusable(error)
        if message is None:
            raise
        code = _complain(message)
    if code == INTERRUPTED:
        print(how_to_go_on(sys.argv[1:]), file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(text: str, code: int = MISTAKE) -> int:
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code


_FORMER = {
    "--suite": "varifocal benchmark RUN_OR_MODEL NAME...",
    "--retention": "varifocal retention RUN",
}
"""What `eval` did before, by the option that asked for it."""


def _usage(error: Any) -> str:
    """Say a wrong option or verb in one sentence, with the nearest right one."""
    given = str(getattr(error, "option_name", "")).partition("=")[0]
    if sys.argv[1:2] == ["eval"] and given in _FORMER:
        return f"'eval {given}' is a verb of its own: {_FORMER[given]}"
    text = error.format_message().rstrip(".")
    if possible := getattr(error, "possibilities", None):
        text = f"{error.message}{nearest(error.option_name, possible).rstrip('?')}"
    command = error.ctx.command_path if error.ctx else "varifocal"
    return f"{text} (see: {command} --help)"
