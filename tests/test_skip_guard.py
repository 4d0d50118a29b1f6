"""A skip that nobody allowed fails the session, in one process and in several."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skip_guard import SkipGuard

HERE = Path(__file__).parent
CONFTEST = """import sys
sys.path.insert(0, {here!r})
from skip_guard import SkipGuard

def pytest_configure(config):
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(SkipGuard({allowed!r}))
"""
TESTS = {
    "test_one.py": "import pytest\n\ndef test_runs(): pass\n\ndef test_skips(): pytest.skip('no')",
    "test_whole.py": "import pytest\n\npytest.importorskip('no_such_package')",
    "test_strict.py": "import pytest\n\n@pytest.mark.xfail\ndef test_fails(): assert 0",
}


def session(folder, allowed, *options):
    for name, text in TESTS.items():
        (folder / name).write_text(text)
    (folder / "conftest.py").write_text(CONFTEST.format(here=str(HERE), allowed=allowed))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "."]
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("options", [(), ("-p", "xdist", "-n", "1")])
def test_a_skip_that_nobody_allowed_fails(tmp_path, options):
    code, said = session(tmp_path, ["test_one.py::test_skips"], *options)
    assert code == 1
    assert "test_whole.py: Skipped: could not import 'no_such_package'" in said
    assert "test_one.py::test_skips:" not in said


def test_allowed_skips_pass(tmp_path):
    assert session(tmp_path, ["test_one.py::test_skips", "test_whole.py"])[0] == 0


def test_each_line_of_the_list_gives_a_reason(tmp_path):
    (tmp_path / "list").write_text("# a heading\ntests/test_a.py  # needs a GPU\n\n")
    assert SkipGuard.of_file(tmp_path / "list").allowed == ("tests/test_a.py",)
    (tmp_path / "list").write_text("tests/test_a.py\n")
    with pytest.raises(pytest.UsageError, match="gives no reason"):
        SkipGuard.of_file(tmp_path / "list")


def test_the_list_names_only_tests_that_are_there():
    root = HERE.parent
    for test in SkipGuard.of_file(HERE / "allowed_skips.txt").allowed:
        file, _, name = test.partition("::")
        assert (root / file).is_file(), test
        assert name.partition("[")[0] in (root / file).read_text(), test
