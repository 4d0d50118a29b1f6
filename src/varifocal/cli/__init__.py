"""The command line; the only room that prints.

`verbs` has the verbs and how they end, `screen` what long work and results look like, `talk` the
conversation.
"""

from varifocal.cli.main import app, main

__all__ = ["app", "main"]
