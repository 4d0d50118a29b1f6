"""The site: what is generated says everything, and the built pages fetch nothing from elsewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import varifocal
import varifocal.tuners
from varifocal.cli.commands import app
from varifocal.recipe import Recipe

ROOT = Path(__file__).parents[2]

pytest.importorskip("mkdocs")


def keys(model, seen=()):
    """Every key of a model's JSON schema, by section."""
    schema = model.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    return {
        (section["title"], key): field.get("description", "")
        for section in sections
        for key, field in section["properties"].items()
    }


def test_the_recipe_page_has_every_key_with_its_meaning(hook):
    page = hook("recipe_page").recipe_page(Recipe)
    flat = re.sub(r"\s+", " ", page.replace("\\|", "|"))
    for (section, key), meaning in keys(Recipe).items():
        assert f"| `{key}` |" in flat, (section, key)
        assert re.sub(r"\s+", " ", meaning) in flat, (section, key)


def test_a_bar_ends_a_cell_but_in_backticks(hook):
    row = hook("tables").table_row(("`a|b`", "c|d", "`e` | `f|g`"))
    assert row == "| `a|b` | c\\|d | `e` \\| `f|g` |"


@pytest.mark.parametrize(
    "row",
    [
        "| `rank` | integer from 1 | `8` | Rank of the update. |",
        "| `language_model` | text | required | A causal language model, or a whole",
        "| `dropout` | number from 0 below 1 | `0.1` |",
        '| `dtype` | `float32` or `bfloat16` or `float16` | `"bfloat16"` |',
        "| `train` | list of section | `[]` | Sources of training examples",
        "| `tuner` | section | `type: mma` | One of the sections below, by its `type`. |",
        "| `seed` | integer from 0 below 4,294,967,296 | `0` |",
    ],
)
def test_a_row_of_the_recipe_page(hook, row):
    assert row in hook("recipe_page").recipe_page(Recipe)


def test_the_cli_page_has_every_verb_and_option(hook):
    from typer.main import get_command

    page = hook("cli_page").cli_page(app)
    verbs = dict(hook("cli_page")._verbs(get_command(app), "varifocal"))
    assert {"varifocal train", "varifocal data make sciencebook"} < set(verbs)
    for path, verb in verbs.items():
        part = page.partition(f"## {path}\n")[2].partition("\n## ")[0]
        for option in verb.params:
            if option.name != "help":
                assert option.param_type_name == "argument" or f"`{option.opts[0]}`" in part
        assert verb.epilog is None or "Example: `varifocal" in part


def test_the_python_page_has_every_public_name():
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    errors = {name for name in varifocal.__all__ if name.endswith("Error")}
    for name in set(varifocal.__all__) - errors:
        assert re.search(rf"^::: varifocal\.[\w.]*\b{name}$", page, re.M), name
    listed = re.search(r"::: varifocal\.errors\n.*members: \[(.*)\]", page)[1]
    assert set(listed.split(", ")) == errors


def test_the_home_page_is_the_readme(hook):
    home = hook("site").home_page("see [data](docs/data.md), [an anchor](docs/a.md#b)")
    assert home == "see [data](data.md), [an anchor](a.md#b)"


@pytest.mark.parametrize(("page", "home"), [("tour.md", "index.md"), ("a/b.md", "../index.md")])
def test_a_link_to_the_readme_leads_home(hook, page, home):
    up = "../" * (page.count("/") + 1)
    written = f"the [README]({up}README.md#x), [data](../data.md)"
    assert hook("site").home_links(written, page) == f"the [README]({home}#x), [data](../data.md)"


def test_a_folder_in_the_nav_takes_its_pages_or_vanishes(hook, tmp_path):
    (tmp_path / "studies").mkdir()
    for name in ("mlan.md", "a.md", "figure.png"):
        (tmp_path / "studies" / name).write_text("")
    nav = ["index.md", {"Studies": "studies/"}, {"Papers": "papers/"}, {"In": [{"P": "papers/"}]}]
    assert hook("site")._filled(nav, tmp_path) == [
        "index.md",
        {"Studies": [{"a": "studies/a.md"}, {"MLAN": "studies/mlan.md"}]},
    ]


def build(config, site):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config]
    return subprocess.run(
        [*map(str, command), "-d", str(site)], capture_output=True, text=True, cwd=ROOT
    )


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path):
    done = build(ROOT / "mkdocs.yml", tmp_path)
    assert done.returncode == 0, done.stderr
    fetched = re.compile(
        r'<(?:script|img|iframe|source)[^>]*\ssrc="https?:|<link[^>]*href="https?:'
    )
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        assert not fetched.search(page.read_text()), page


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["[a](nowhere.md)", "[a](data.md#no-such-heading)"])
def test_a_broken_link_is_an_error(tmp_path, wrong):
    """The site's own settings, on two pages."""
    (tmp_path / "docs").mkdir()
    settings = (ROOT / "mkdocs.yml").read_text().partition("\n# An entry that ends")[0]
    settings = re.sub(r"(?m)^(hooks|extra_css): .*\n", "", settings)
    (tmp_path / "mkdocs.yml").write_text(settings)
    (tmp_path / "docs" / "data.md").write_text("# Data\n")
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[a](data.md#data)\n")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n{wrong}\n")
    assert build(tmp_path / "mkdocs.yml", tmp_path / "site").returncode == 1
