"""Fail a test session in which something was skipped that nobody allowed.

`pytest --allowed-skips tests/allowed_skips.txt`: each line of the file names a test, by the
beginning of its id, and says after a `#` why it may be skipped.
"""

from pathlib import Path

import pytest


class SkipGuard:
    """A pytest plugin that turns unexpected skips into a failure.

    Args:
        allowed: beginnings of the ids of tests that may be skipped.
    """

    def __init__(self, allowed):
        self.allowed = tuple(allowed)
        self.unexpected = []

    @classmethod
    def of_file(cls, path):
        """Read the allowed ids; a line without a reason is an error."""
        allowed = []
        for line in filter(None, map(str.strip, Path(path).read_text().splitlines())):
            test, _, reason = line.partition("#")
            if not reason.strip():
                raise pytest.UsageError(f"{path}: '{line}' gives no reason after a #")
            if test.strip():  # else a whole line of comment
                allowed.append(test.strip())
        return cls(allowed)

    def _note(self, report):
        skipped = report.skipped and not hasattr(report, "wasxfail")
        if skipped and not report.nodeid.startswith(self.allowed):
            self.unexpected.append(f"{report.nodeid}: {report.longrepr[2]}")

    def pytest_runtest_logreport(self, report):
        """Note a test that was skipped."""
        self._note(report)

    def pytest_collectreport(self, report):
        """Note a file that was skipped."""
        self._note(report)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        """Fail the session."""
        if self.unexpected and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter):
        """Name the skips that nobody allowed."""
        if self.unexpected:
            terminalreporter.section("skipped, and not in the list of allowed skips", red=True)
            for line in sorted(set(self.unexpected)):
                terminalreporter.write_line(line)
