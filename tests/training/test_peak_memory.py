"""The peak of this process alone, and what stands in where the system does not tell it."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from varifocal.training import cost

MEBIBYTE = 1 / 1024


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_memory_that_was_held_and_let_go_counts():
    before = cost.peak_memory_gib()
    held = np.ones(int(before * 2**30) // 8 + 2**23)  # as much again as the peak was, and 64 MiB
    after = cost.peak_memory_gib()
    del held
    assert after >= before + 60 * MEBIBYTE
    assert cost.peak_memory_gib() == pytest.approx(after, abs=60 * MEBIBYTE)


def test_the_line_is_read_in_kib(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "_STATUS", tmp_path / "status")
    (tmp_path / "status").write_text("VmPeak:\t 9999999 kB\nVmHWM:\t 1572864 kB\nVmRSS:\t 1 kB\n")
    assert cost.peak_memory_gib() == 1.5


@pytest.mark.parametrize("status", [None, "Name:\tpython\n"])
@pytest.mark.parametrize(("system", "unit"), [("darwin", 2**30), ("linux", 2**20)])
def test_elsewhere_the_system_is_asked(tmp_path, monkeypatch, status, system, unit):
    monkeypatch.setattr(cost, "_STATUS", tmp_path / "status")
    monkeypatch.setattr(cost.sys, "platform", system)
    monkeypatch.setattr(
        cost.resource, "getrusage", lambda who: type("Usage", (), {"ru_maxrss": 3 * unit})
    )
    if status is not None:
        (tmp_path / "status").write_text(status)
    assert cost.peak_memory_gib() == 3.0


@pytest.mark.skipif(not cost._STATUS.exists(), reason="only Linux tells the peak of one process")
def test_a_child_does_not_count_what_its_parent_held():
    body = inspect.getsource(cost._high_water_mark)
    code = f"from pathlib import Path\n_STATUS = Path({str(cost._STATUS)!r})\n{body}\n"
    command = [sys.executable, "-c", f"{code}print(_high_water_mark())"]
    said = subprocess.check_output(command, text=True)
    assert float(said) < 0.1 < cost.peak_memory_gib()
