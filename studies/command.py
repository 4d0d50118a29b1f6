"""The command line of a study, alike in all of them: OUT [--quick] [--seeds 0,1,2] [--data DIR]."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from varifocal.errors import DataError, Stopped, VarifocalError
from varifocal.sigterm import sigterm_interrupts
from varifocal.writing import check_folder, claim_folder

SEEDS = (0, 1, 2)
"""Those that a study's sweeps name."""


def parser_of(doc: str | None, *, quick: str, data: str | None) -> argparse.ArgumentParser:
    """Make the parser of a study.

    Args:
        doc: the study's docstring; its first line is told.
        quick: what `--quick` runs.
        data: what the folder of `--data` holds; None for a study that has its own data and seeds.
    """
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="finished points are kept there")
    parser.add_argument("--quick", action="store_true", help=quick)
    if data is None:
        parser.set_defaults(seeds=None, data=None)
    else:
        parser.add_argument("--seeds", type=seeds_of, help="0,1,2 by default; 0 with --quick")
        parser.add_argument("--data", type=_folder, help=data)
    return parser


def read_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse a command line; a study writes over no folder of somebody's.

    Seeds that are not given are all, or the first with `--quick`.

    Raises:
        RunError: OUT holds other files than a study's.
    """
    options = parser.parse_args(arguments)
    check_folder(options.out, place="another OUT")
    if options.seeds is None:
        options.seeds = _seeds_by_default(options)
    return options


def take_out(out: Path) -> None:
    """Make a study's OUT and mark it, when what it is to be made from is known to be there.

    Raises:
        RunError: it holds other files than a study's, or cannot be written.
    """
    claim_folder(out, place="another OUT")


def _seeds_by_default(options: argparse.Namespace) -> tuple[int, ...]:
    return SEEDS[:1] if options.quick else SEEDS


def command_of(study: str, options: argparse.Namespace, *more: str) -> str:
    """Write how a study was called, for its figures; OUT and DIR stand for the two folders.

    Args:
        study: its module.
        options: from `read_options`.
        more: words of the study's own options.
    """
    words = [f"python -m studies.{study} OUT", *["--quick"] * options.quick, *more]
    if options.seeds != _seeds_by_default(options):
        words.append("--seeds " + ",".join(map(str, options.seeds)))
    return " ".join([*words, *["--data DIR"] * (options.data is not None)])


def check_data(folder: Path | None, *names: str) -> None:
    """Look at the start for what a study reads from the folder of `--data` hours later.

    Args:
        folder: as given; None has nothing to be looked for.
        names: files and folders in it.

    Raises:
        DataError: one of them is not there.
    """
    if folder is None:
        return
    for name in names:
        if not (folder / name).exists():
            raise DataError(
                f"--data {folder}: there is no '{folder / name}'; give a folder that holds "
                f"{' and '.join(names)}, or leave out --data"
            )


def seeds_of(text: str) -> tuple[int, ...]:
    """Read a list of seeds.

    >>> seeds_of("2,0")
    (2, 0)
    """
    words = text.split(",")
    allowed = [str(seed) for seed in SEEDS]
    if not set(words) <= set(allowed) or len(set(words)) < len(words):
        raise argparse.ArgumentTypeError(f"'{text}': give some of {','.join(allowed)}, each once")
    return tuple(int(word) for word in words)


def _folder(text: str) -> Path:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"no folder '{text}'")
    return Path(text)


def run_study(main: Callable[[], None]) -> None:
    """Run a study's `main`: a mistake, Ctrl-C or SIGTERM ends with a sentence, no traceback."""
    try:
        with sigterm_interrupts():
            main()
    except VarifocalError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:  # between two trainings, which end in Stopped themselves
        print("stopped; finished points are kept, the same command goes on", file=sys.stderr)
        sys.exit(Stopped.exit_code)
