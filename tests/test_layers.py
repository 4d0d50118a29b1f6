"""The arrows between the rooms of the house, read off the import statements.

cli, demo -> planning, reports -> training, evaluation, analysis, exporting, serving -> assemble
-> models, data, tuners -> sciencebook, plotting, recipe, run, manifest, cache, errors. Imports
inside functions count as well as those at the top.
"""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "varifocal"

GROUND = {"errors", "staging", "cache", "manifest", "writing", "locking", "run", "trained_weights"}
GROUND |= {"recipe", "sciencebook", "plotting", "pages", "progress", "hub"}
STOCK = {"models", "data", "tuners"}
VERBS = {"training", "evaluation", "analysis", "exporting", "serving"}
ABOUT = {"planning", "reports", "importing"}

# The public names in __init__ are lazy; what registers models and tuners has to know both.
ALLOWED = {
    "errors": set(),
    "staging": set(),
    "cache": {"errors", "staging"},
    "plotting": {"writing"},
    "pages": set(),
    "hub": {"errors"},
    "progress": set(),
    "sciencebook": {"errors", "locking", "progress", "writing"},
    "recipe": {"errors"},
    "manifest": {"errors"},
    "sigterm": set(),
    "writing": {"errors", "staging", "cache", "manifest"},
    "locking": {"errors", "staging", "writing"},
    "run": {"errors", "staging", "manifest", "writing", "locking"},
    "trained_weights": {"errors", "run"},
    "tuners": set(),
    "models": GROUND,
    "data": GROUND,
    "prompts": GROUND | STOCK,
    "assemble": GROUND | STOCK | {"prompts"},
    **dict.fromkeys(VERBS, GROUND | STOCK | {"assemble"}),
    "training": GROUND | STOCK | {"assemble", "evaluation"},
    "planning": GROUND | STOCK | {"assemble", "prompts", "training"},
    "reports": GROUND | STOCK | {"assemble"},
    "importing": GROUND | STOCK | {"assemble", "prompts", "training"},
    "demo": GROUND | STOCK | VERBS | ABOUT | {"assemble"},
    "sweep": GROUND | STOCK | VERBS | ABOUT | {"assemble"},
    "auto": GROUND | STOCK | {"assemble"},
    "api": GROUND | STOCK | VERBS | ABOUT | {"assemble"},
    "cli": GROUND
    | STOCK
    | VERBS
    | ABOUT
    | {"assemble", "prompts", "demo", "sweep", "registration", "sigterm"},
    "registration": {"errors", "models", "tuners"},
    "__init__": GROUND | STOCK | VERBS | ABOUT | {"api", "registration"},
}


def modules() -> Iterator[tuple[str, Path]]:
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).with_suffix("").parts
        yield parts[0], file


@dataclass(frozen=True)
class Facts:
    """What a file's tree shows; the tree itself is not kept.

    Attributes:
        imported: dotted names under `varifocal` that it imports, `varifocal` itself left out.
        at_the_top: of them, those outside of functions, and the packages that they are in.
        libraries: first parts of all names that it imports.
        prints: whether it writes to the screen.
    """

    imported: frozenset[str]
    at_the_top: frozenset[str]
    libraries: frozenset[str]
    prints: bool


@functools.cache
def facts(file: Path) -> Facts:
    inside = file.relative_to(SOURCE).parent.parts
    package = ("varifocal", *inside)
    tree = ast.parse(file.read_text())
    names: set[str] = set()
    prints = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join([*start, *([node.module] if node.module else [])])
            names |= {f"{origin}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            prints |= is_print(node.func)
    ours = {name.removeprefix("varifocal.") for name in names if name.startswith("varifocal.")}
    libraries = {name.split(".")[0] for name in names}
    top = frozenset(top_level_imports(tree, inside))
    return Facts(frozenset(ours), top, frozenset(libraries), prints)


def is_print(called: ast.expr) -> bool:
    if isinstance(called, ast.Name):
        return called.id == "print"
    return isinstance(called, ast.Attribute) and ast.unparse(called) in (
        *("sys.stdout.write", "sys.stderr.write", "console.print"),
    )


def rooms_imported(file: Path) -> set[str]:
    return {name.split(".")[0] for name in facts(file).imported}


@pytest.mark.parametrize(
    ("room", "file"), list(modules()), ids=lambda value: str(value).removeprefix(f"{SOURCE}/")
)
def test_a_file_imports_only_from_below(room, file):
    assert room in ALLOWED, f"{room} has no place in the house yet: give it one in ALLOWED"
    names = {name for name in ALLOWED if name != "__init__"}
    beyond = (rooms_imported(file) & names) - ALLOWED[room] - {room}
    assert not beyond, f"{file.relative_to(SOURCE)} imports {sorted(beyond)}"


def test_no_two_modules_import_each_other_at_the_top():
    graph = {dotted(file): facts(file).at_the_top for _, file in modules()}
    graph = {name: {other for other in others if other in graph} for name, others in graph.items()}
    assert not cycle(graph)


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts)


def top_level_imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Yield the modules that have to be there before this one can run: not the rooms' own doors."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = (node.module or "").removeprefix("varifocal").removeprefix(".")
            origin = ".".join([*start, module] if module else start)
            yield from (origin, *(f"{origin}.{alias.name}" for alias in node.names))


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Find a circle of imports, or an empty list."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def test_the_cycle_finder_finds_one():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})


# A row of one of these tables is a file that nothing else has to import; nor the table itself.
TABLES = {"cli.commands", "data.formats.registry", "evaluation.benchmarks.registry"}
TABLES |= {"sciencebook.table", "models.families.base"}
MOST_SINGLE_IMPORTERS = 49


def single_importers(graph: dict[str, set[str]]) -> dict[str, str]:
    """Map each module that one other module alone imports to that one, rows of tables left out."""
    importers: dict[str, set[str]] = {name: set() for name in graph}
    for name, others in graph.items():
        for other in others - {name}:
            importers[other].add(name)
    single = {name: next(iter(them)) for name, them in importers.items() if len(them) == 1}
    return {
        name: importer
        for name, importer in single.items()
        if importer not in TABLES and name not in TABLES and not name.startswith("models.families.")
    }


def import_graph() -> dict[str, set[str]]:
    """Map each module to those it imports, packages by their `__init__` left out as modules."""
    files = {dotted(file).removesuffix(".__init__"): file for _, file in modules()}
    packages = {name for name, file in files.items() if file.stem == "__init__"}
    graph = {}
    for name, file in files.items():
        modules_of = {
            each if each in files else each.rpartition(".")[0] for each in facts(file).imported
        }
        graph[name] = (modules_of & files.keys()) - packages
    return graph


def test_few_files_serve_a_single_other():
    single = single_importers(import_graph())
    assert len(single) <= MOST_SINGLE_IMPORTERS, (
        f"{len(single)} files have one importer; merge the smallest into theirs: {single}"
    )


def test_a_single_importer_is_found():
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set(), "sciencebook.table": {"a"}}
    assert single_importers(graph) == {"b": "a"}


MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 400, 60


@pytest.mark.parametrize(
    "file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE))
)
def test_files_and_functions_are_short(file):
    text = file.read_text()
    assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE, "find its second subject"
    assert not long_functions(text, MOST_LINES_OF_A_FUNCTION)


def long_functions(text: str, most: int) -> dict[str, int]:
    """Map the functions of a source that have more lines than allowed to their number."""
    functions = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    return {name: length for name, length in lengths.items() if length > most}


def test_a_long_function_is_found():
    text = (
        "def short():\n    pass\n\n\nclass A:\n    def long(self):\n        a = 1\n        b = 2\n"
    )
    assert long_functions(text, 2) == {"long": 3}


def test_only_the_command_line_prints():
    printing = {room for room, file in modules() if facts(file).prints}
    assert printing <= {"cli"}
    assert "cli" in printing


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("fastapi", {"serving"}),
        ("matplotlib", {"plotting", "analysis", "reports"}),
        ("lm_eval", {"evaluation"}),
    ],
)
def test_a_library_is_used_in_its_rooms_alone(library, rooms):
    users = {room for room, file in modules() if library in facts(file).libraries}
    assert users <= rooms
