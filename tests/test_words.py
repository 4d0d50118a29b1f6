"""Names are made of the field's words: a newcomer who knows transformers can guess them."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "varifocal"

# What one word replaces is in docs/contributing.md.
BANNED = {
    *("picture", "pictures", "eyes", "sees", "house", "way", "talk", "look", "made"),
    *("kept", "told", "tell", "mend", "beside", "behind", "room"),
}
BANNED_LOCALS = {"one", "found", "told"}  # they say nothing of the value
ALLOWED = {
    "sciencebook/life.py: eyes",  # those of an animal
    "serving/connection.py: connection_made",  # asyncio's name
}

WRITTEN = {"seconds_per_picture", "tokens_with_picture"}  # keys of files that runs hold

SHARED = {
    *("benchmark", "compare", "evaluate", "export", "plan", "retention", "train"),  # verb and API
    "main",  # of a command
}


def public_names(file: Path):
    """Yield the names of a file, its functions, classes and methods that begin with no underscore.

    What is inside a function is nobody else's.
    """
    yield file.stem

    def of(node: ast.AST):
        for child in ast.iter_child_nodes(node):
            named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
            if named and not child.name.startswith("_"):
                yield child.name
                if isinstance(child, ast.ClassDef):
                    yield from of(child)

    yield from of(ast.parse(file.read_text()))


def definitions(file: Path):
    """Yield the public functions and classes of a module."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from () if node.name.startswith("_") else (node.name,)


def constants(file: Path):
    """Yield the names that a module binds by assignment."""
    for statement in ast.parse(file.read_text()).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            yield from variables(statement)


def variables(tree: ast.AST):
    """Yield what is bound below a node: variables, parameters, errors that are caught."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name


def parameters_and_fields(tree: ast.AST):
    """Yield the parameters of functions, and the fields of classes with their types."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            args = node.args
            yield from (each.arg for each in [*args.posonlyargs, *args.args, *args.kwonlyargs])
        elif isinstance(node, ast.ClassDef):
            fields = (each for each in node.body if isinstance(each, ast.AnnAssign))
            yield from (each.target.id for each in fields if isinstance(each.target, ast.Name))


def words_of(name: str) -> set[str]:
    """Part a name at its underscores and capitals.

    >>> sorted(words_of("ImageFlops_of"))
    ['flops', 'image', 'of']
    """
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


@pytest.mark.parametrize(
    "file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE))
)
def test_public_names_use_the_fields_words(file):
    place = file.relative_to(SOURCE).as_posix()
    names = {*public_names(file), *constants(file)}
    assert not {f"{place}: {name}" for name in names if words_of(name) & BANNED} - ALLOWED
    tree = ast.parse(file.read_text())
    assert not BANNED_LOCALS.intersection(variables(tree))
    assert not {name for name in parameters_and_fields(tree) if words_of(name) & BANNED} - WRITTEN


def test_a_public_name_means_one_thing():
    """The API's schema has the names of OpenAI's API."""
    files = sorted({*SOURCE.rglob("*.py")} - {SOURCE / "serving" / "schema.py"})
    names = Counter(name for file in files for name in definitions(file))
    assert {name for name, count in names.items() if count > 1} == SHARED


def test_a_banned_word_is_found():
    assert words_of("find_picture") & BANNED
    assert words_of("PictureError") & BANNED
    assert not words_of("lookup_table") & BANNED
    assert words_of("_LEAST_KEPT") & BANNED
    tree = ast.parse("class Row:\n    kept: int\n\n    def read(self, *, way): ...")
    assert set(parameters_and_fields(tree)) == {"kept", "self", "way"}


@pytest.mark.parametrize(
    "text",
    [
        "def f(one): pass",
        "f = lambda *, one: 1",
        "[0 for _, one in pairs]",
        "with f() as one: pass",
        "one: int = 0",
        "if (one := f()): pass",
        "try: f()\nexcept OSError as one: pass",
        "match f():\n    case [one, *_]: pass",
    ],
)
def test_a_variable_is_found_wherever_it_is_bound(text):
    assert "one" in set(variables(ast.parse(text)))
    assert not {*variables(ast.parse("found.told(one=one)"))}
