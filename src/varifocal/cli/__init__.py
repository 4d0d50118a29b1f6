"""The command line; the only package that prints.

`commands` registers the verbs and says how they end, `tables` has progress and results as they are
printed, `chat` the conversation; every other file is one verb.
"""

from varifocal.cli.commands import app, main

__all__ = ["app", "main"]
