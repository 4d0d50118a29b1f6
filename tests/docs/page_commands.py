"""Holds a command against what there is, without running it: verbs, options, recipes, files."""

import ast
import re
import shlex
from pathlib import Path

import typer
from typer.main import get_command

from varifocal.cli.commands import app
from varifocal.recipe import find_recipe, load_recipe

ROOT = Path(__file__).parents[2]

_UsageError = typer.BadParameter.__mro__[1]
_PLACEHOLDER = re.compile(r"[A-Z_]{3,}|…|\.\.\.")


class WrongCommandError(Exception):
    """A command that a reader could not type."""


def commands(text):
    """Return the simple commands of a shell block, as lists of words.

    Variables and the first turn of loops are put in; here-documents are left out.

    >>> commands('C="--set a=1"\\nfor r in x y; do varifocal eval runs/$r $C; done # each')
    [['varifocal', 'eval', 'runs/x', '--set', 'a=1']]
    """
    found, variables = [], {}
    text = re.sub(r"(?ms)<<-?\s*'?(\w+)'?(.*?)\n.*?^\1$", r"\2", text).replace("\\\n", " ")
    for line in text.splitlines():
        for words in _simple(line):
            words = [word for each in words for word in _put_in(each, variables)]
            while words and words[0] in ("do", "then"):
                words = words[1:]
            if words[:1] == ["for"]:
                variables[words[1]] = words[3]
                continue
            while words and (given := re.fullmatch(r"(?s)(\w+)=(.*)", words[0])):
                variables[given[1]] = given[2]
                words = words[1:]
            if words and words[0] != "done":
                found.append(words)
    return found


def _simple(line):
    """Cut a line at what joins commands."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    words = []
    for word in lexer:
        if set(word) <= set(";|&"):
            yield words
            words = []
        else:
            words.append(word)
    yield words


def _put_in(word, variables):
    put = re.sub(r"\$\{?(\w+)\}?", lambda name: variables.get(name[1], name[0]), word)
    return shlex.split(put) if re.fullmatch(r"\$\{?\w+\}?", word) else [put]


def check(words, *, mention=False):
    """Hold one command against the tree; what is none of ours passes.

    Args:
        words: the command.
        mention: it stands in a sentence, so values may be missing.

    Raises:
        WrongCommandError: with the reason.
    """
    if "--" in words:  # a wrapper's
        words = words[words.index("--") + 1 :]
    name, rest = words[0], words[1:]
    if name == "varifocal":
        _check_verb(rest, mention)
    elif name == "make":
        _check_make(rest)
    elif name == "pytest":
        _check_pytest(rest)
    elif name in ("python", "python3") and rest and rest[0] != "-c":
        _check_script(rest)
    elif words[:2] == ["pip", "install"]:
        _check_extras(rest[1:])


def _check_verb(words, mention):
    if not words or _PLACEHOLDER.fullmatch(words[0]):
        return
    try:
        parameters = parse(words)
    except _UsageError as error:
        text = error.format_message()
        if mention and not text.startswith(("No such", "Got unexpected")):
            return  # a sentence may leave values out, or write N for a number
        raise WrongCommandError(text) from None
    recipe = parameters.get("recipe")
    if recipe and not _PLACEHOLDER.search(recipe) and Path(recipe).suffix != ".yaml":
        find_recipe(recipe)
        overrides = parameters.get("overrides") or ()
        load_recipe(recipe, overrides, check_paths=False)
    if sweep := parameters.get("page") or parameters.get("sweep"):
        _check_exists(str(sweep))


def parse(words):
    """Parse a command line as the program does.

    Returns:
        The verb's parameters by name; none where help or a version was asked for.
    """
    command, context, name, rest = get_command(app), None, "varifocal", list(words)
    while True:
        try:
            context = command.make_context(name, rest, parent=context)
        except typer.Exit:
            return {}
        if not getattr(command, "commands", None):
            return context.params
        left = [*getattr(context, "_protected_args", []), *context.args]
        name, command, rest = command.resolve_command(context, left)


def _check_exists(path):
    if not _PLACEHOLDER.search(path) and not (ROOT / path).exists():
        raise WrongCommandError(f"no file {path}")


def _check_make(words):
    targets = re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text())
    for word in words:
        if "=" not in word and word not in targets:
            raise WrongCommandError(f"no target {word}; there are {', '.join(targets)}")


def _check_pytest(words):
    for word in words:
        if word.startswith("tests/"):
            check_test(word)


def check_test(node):
    """See that a test exists: `tests/FILE.py`, a folder, or `tests/FILE.py::test_name`."""
    path, _, name = node.partition("::")
    _check_exists(path)
    if name:
        tree = ast.parse((ROOT / path).read_text())
        names = {each.name for each in ast.walk(tree) if isinstance(each, ast.FunctionDef)}
        if name.rpartition("::")[2].partition("[")[0] not in names:
            raise WrongCommandError(f"no test {name} in {path}")


def _check_script(words):
    """A benchmark or study exists, and its source, or its package's, has the options."""
    if words[0] == "-m":
        name, rest = words[1].replace(".", "/"), words[2:]
        files = sorted((ROOT / name).glob("*.py")) or [ROOT / f"{name}.py"]
    else:
        name, rest, files = words[0], words[1:], [ROOT / words[0]]
    if name.partition("/")[0] not in ("benchmarks", "studies"):
        return
    for file in files:
        _check_exists(str(file.relative_to(ROOT)))
    source = "".join(file.read_text() for file in (*files, *(ROOT / "studies").glob("*.py")))
    for option in (word.partition("=")[0] for word in rest if word.startswith("--")):
        parameter = option.removeprefix("--").replace("-", "_")
        if f'"{option}"' not in source and f"{parameter}:" not in source:
            raise WrongCommandError(f"{files[0].relative_to(ROOT)} has no {option}")


def _check_extras(words):
    """Extras are ours, and come from the repository's folder: Varifocal is not on PyPI."""
    known = re.findall(r"(?m)^(\w+) = \[", (ROOT / "pyproject.toml").read_text())
    if any(re.match(r"varifocal\b", word) for word in words):
        raise WrongCommandError("varifocal is not on PyPI: pip install -e '.[EXTRA]'")
    for extra in re.findall(r"(?m)^\.\[([\w,-]+)\]$", "\n".join(words)):
        for one in extra.split(","):
            if one not in known:
                raise WrongCommandError(f"no extra {one}")
