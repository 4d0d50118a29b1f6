"""What the site has next to the files in docs/: its home page, the generated reference, folders.

Nothing here is written into the tree: mkdocs takes the pages from memory.
"""

import json
import re
from pathlib import Path
from typing import Any

from cli_page import cli_page
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from recipe_page import recipe_page

from varifocal.cli.commands import app
from varifocal.recipe import Recipe

ROOT = Path(__file__).parents[2]

_NAMES = {
    "alignment": "Word alignment",
    "families": "Today's models",
    "lavin": "LaVIN",
    "mixlora": "MixLoRA",
    "mlan": "MLAN",
    "small-vit": "A small ViT",
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the entries of the nav that name a folder."""
    config.nav = _filled(config.nav or [], Path(config.docs_dir))
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of something else."""
    pages = {
        "index.md": home_page((ROOT / "README.md").read_text(encoding="utf-8")),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "reference/recipe.md": recipe_page(Recipe),
        "reference/recipe.schema.json": json.dumps(Recipe.model_json_schema(), indent=1),
        "reference/cli.md": cli_page(app),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def home_page(readme: str) -> str:
    """Turn the README into the site's first page: its links start inside docs/."""
    return re.sub(r"\]\(docs/", "](", readme)


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead a page's links to the README to the home page that is made of it."""
    return home_links(markdown, page.file.src_uri)


def home_links(markdown: str, page: str) -> str:
    """Turn a page's links to the README, which lies above docs/, into links to index.md.

    >>> home_links("[a](../README.md), [b](../README.md#c)", "tour.md")
    '[a](index.md), [b](index.md#c)'
    """
    up = "../" * page.count("/")
    return markdown.replace(f"]({up}../README.md", f"]({up}index.md")


def _filled(entries: list[Any], docs: Path) -> list[Any]:
    filled: list[Any] = []
    for entry in entries:
        if not isinstance(entry, dict):
            filled.append(entry)
            continue
        for title, value in entry.items():
            inner: Any = value
            if isinstance(value, list):
                inner = _filled(value, docs)
            elif value.endswith("/"):
                pages = sorted((docs / value).glob("*.md"))
                inner = [
                    {_NAMES.get(page.stem, page.stem): f"{value}{page.name}"} for page in pages
                ]
            if inner:
                filled.append({title: inner})
    return filled
