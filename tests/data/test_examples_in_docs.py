"""What the docstrings show is run."""

import doctest
import importlib

import pytest

MODULES = ["example", "formats", "questions", "reading", "shorten", "table", "packing"]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_show_what_happens(name):
    module = importlib.import_module(f"varifocal.data.{name}")
    assert doctest.testmod(module).failed == 0
