"""How a command that was interrupted ends; imports nothing slow, for it may not have begun."""

import shlex
from collections.abc import Sequence

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C or SIGTERM ended."""


def how_to_go_on(arguments: Sequence[str]) -> str:
    """Say that a command was stopped, and the command that goes on where there is one.

    Args:
        arguments: what was given after `varifocal`.
    """
    verb = arguments[0] if arguments else ""
    if verb in ("eval", "benchmark"):
        return f"stopped; the answers are kept; to go on: varifocal {shlex.join(arguments)}"
    if verb not in ("train", "launch", "demo", "sweep"):
        return "stopped"
    # A demo and a sweep go on by themselves, and know no --resume.
    asks = verb in ("train", "launch") and "--resume" not in arguments
    again = [*arguments, "--resume"] if asks else arguments
    return f"stopped; to go on: varifocal {shlex.join(again)}"
