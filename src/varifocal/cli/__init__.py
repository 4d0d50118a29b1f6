"""The command line; the only package that prints.

`commands` registers the verbs and says how they end, `tables` has progress and results as they are
printed, `chat` the conversation, `interrupted` what an interrupted command says; every other file
is one verb.
"""

import sys

from varifocal.cli.interrupted import INTERRUPTED, how_to_go_on
from varifocal.sigterm import sigterm_interrupts


def main() -> None:
    """Run a command line; an interruption ends it with a sentence in its first imports, too."""
    with sigterm_interrupts():
        try:
            from varifocal.cli import commands
        except KeyboardInterrupt:
            print(how_to_go_on(sys.argv[1:]), file=sys.stderr)
            sys.exit(INTERRUPTED)
        commands.main()


__all__ = ["main"]
