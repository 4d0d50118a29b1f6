"""The command line's page, from the typer app: every verb with its arguments and options."""

import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from tables import table_row
from typer.main import get_command

_INTRODUCTION = """# Command line

Made from the program itself; `varifocal VERB --help` says the same. A mistake ends with exit code 2
and one sentence that begins with `error:`, Ctrl-C with 130: `train`, `launch`, `demo`,
`sweep`, `eval` and `benchmark` then name the command that goes on.
"""

_KINDS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def cli_page(app: typer.Typer) -> str:
    """Write the page.

    Args:
        app: the program; its verbs may be groups of verbs.

    Returns:
        Markdown, a heading for each verb.
    """
    verbs = [_verb(name, verb) for name, verb in _verbs(get_command(app), "varifocal")]
    return "\n".join([_INTRODUCTION, *verbs])


def _verbs(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name in sorted(group.commands):
        verb = group.commands[name]
        if getattr(verb, "commands", None):
            yield from _verbs(verb, f"{path} {name}")
        else:
            yield f"{path} {name}", verb


def _verb(path: str, verb: Any) -> str:
    arguments = [each for each in verb.params if each.param_type_name == "argument"]
    options = [each for each in verb.params if each.param_type_name == "option"]
    usage = " ".join([path, "[OPTIONS]", *(_metavar(each) for each in arguments)])
    example = re.sub(r"^Example: ", "", verb.epilog or "")
    return "\n".join(
        [
            f"## {path}",
            "",
            _plain(verb.help or ""),
            "",
            f"```text\n{usage}\n```",
            "",
            "| | value | default | meaning |",
            "|---|---|---|---|",
            *(_row(f"`{_metavar(each)}`", each) for each in arguments),
            *(_row(_names(each), each) for each in options if each.name != "help"),
            *(["", f"Example: `{example}`"] if example else []),
            "",
        ]
    )


def _row(name: str, each: Any) -> str:
    kind = "" if each.param_type_name == "argument" or each.is_flag else f"`{_metavar(each)}`"
    default = "" if each.default in (None, False, (), []) else f"`{each.default}`"
    if each.required:
        default = "required"
    return table_row((name, kind, default, _plain(each.help or "")))


def _names(option: Any) -> str:
    return ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])


def _metavar(each: Any) -> str:
    if each.metavar:
        return each.metavar
    if each.param_type_name == "argument":
        return each.name.upper()
    annotation = each.type_descriptor.annotation
    if typing.get_origin(annotation) is typing.Literal:
        return "|".join(map(str, typing.get_args(annotation)))
    return _KINDS.get(annotation, "TEXT")


def _plain(help_text: str) -> str:
    """Unwrap the lines of each paragraph; typer's markup for brackets is not needed here."""
    paragraphs = help_text.replace("\\[", "[").split("\n\n")
    return "\n\n".join(" ".join(one.split()) for one in paragraphs)
