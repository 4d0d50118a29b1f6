"""The repository's pages and the modules that build the site."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The harness of the pages is modules of this folder.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def hook():
    """Import one of docs/hooks by its name."""
    folder = str(ROOT / "docs" / "hooks")

    def load(name):
        spec = importlib.util.spec_from_file_location(name, f"{folder}/{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, folder)
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(folder)
        return module

    return load
