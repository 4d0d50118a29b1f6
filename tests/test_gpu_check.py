"""The check for GPUs, tiny and on the CPU: what it counts, compares and catches."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import gpu_check

    yield gpu_check
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.fixture
def entries_of(gpu_check, tmp_path):
    def run(only, seconds=600.0):
        out = tmp_path / "page.json"
        given = Namespace(small=True, seconds=seconds, steps=1, only=only, out=out)
        page = gpu_check.check(given)
        assert json.loads(out.read_text()) == page
        return page["entries"]

    return run


def test_a_step_has_its_speed_and_memory_next_to_the_plan(entries_of, gpu_check):
    found = entries_of("^small mma$")["small mma"]
    per_step = found["samples_per_second"] * found["step_seconds"]
    assert per_step == pytest.approx(4, rel=1e-3)  # two rows of two
    peak = gpu_check.this_cpu().teraflops["float32"]
    rate = found["tflops_per_step"] / found["step_seconds"]
    assert found["mfu"] == pytest.approx(rate / peak, rel=1e-3)
    assert 0 < found["planned_gib_without_framework"] < found["peak_memory_gib"]


def test_a_plan_on_the_meta_device_holds_the_weights_that_are_built(gpu_check):
    from benchmarks import gpu_models

    way = gpu_models.Way(dtype=torch.float32, autocast=False)
    model, _ = gpu_models.build(gpu_models.SMALL, way, "cpu")
    parts = gpu_models.planned_gib(gpu_models.SMALL, way)
    frozen = [each for each in model.parameters() if not each.requires_grad]
    held = sum(each.numel() * each.element_size() for each in (*frozen, *model.buffers()))
    assert parts["frozen_weights"] * 2**30 == pytest.approx(held, rel=1e-6)


def test_packed_rows_have_the_loss_of_their_samples_alone(entries_of):
    found = entries_of("^equal (mma|lora) packed$")
    assert len(found) == 2
    assert all(each["loss"] < 1e-6 for each in found.values())


def test_an_entry_that_fails_or_takes_too_long_loses_nothing_else(entries_of, gpu_check):
    liger = entries_of("liger$|^products$")
    assert liger.pop("products")
    assert all("CUDA devices only" in each["error"] for each in liger.values())

    def endless():
        while True:
            pass

    assert gpu_check.attempt(endless, 1.1)["error"].startswith("TimeoutError: not done within")
    assert entries_of("^products$", seconds=0.0) == {"products": {"skipped": "no time was left"}}


@pytest.mark.slow
def test_every_entry_gives_what_it_promises(entries_of):
    found = entries_of("^(?!.*(liger|compiled))")
    assert len(found) == 21
    assert not [each for each in found.values() if "error" in each or "skipped" in each]
    for name, each in found.items():
        if name.startswith("equal"):
            assert each["loss"] < 1e-6
            assert each.get("gradient", 0) < 1e-5
    assert found["small decoding"]["folded 8 rows"] > 0
