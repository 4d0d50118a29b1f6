"""The environment that `make` builds starts quickly where Python may write no bytecode."""

from pathlib import Path

MAKEFILE = (Path(__file__).parents[1] / "Makefile").read_text()


def test_what_is_installed_is_compiled_once():
    assert "--no-compile" not in MAKEFILE
    assert "-m compileall -q src" in MAKEFILE
