"""The benchmark's arms learn the same thing; no time is looked at."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
STEPS = 3


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.fixture
def page(bench, parts, tmp_path):
    from benchmarks.side_by_side.material import Shape
    from benchmarks.side_by_side.page import write_page

    return write_page(
        tmp_path / "bench",
        Shape(samples=24, stretch=0.1),
        rows=2,
        model={
            "language_model": str(parts / "language"),
            "vision_tower": str(parts / "efficientnet"),
            "connector": {"hidden_dim": 8, "num_tokens": 4},
            "dtype": "float32",
        },
        training={"max_steps": STEPS, "learning_rate": 1e-2, "warmup_steps": 0},
    )


def test_three_arms_have_the_same_losses_at_every_step(page, tmp_path):
    from benchmarks.side_by_side.arms import run_arm
    from benchmarks.side_by_side.gate import Gate

    from varifocal.recipe import load_recipe

    losses, trained = {}, set()
    for arm in ("varifocal_plain", "paper_loop", "trainer_peft"):
        gate = Gate(STEPS)
        run_arm(arm, load_recipe(page), tmp_path / arm, gate)
        losses[arm] = torch.tensor([line["loss"] for line in gate.lines[1:]], dtype=torch.float64)
        trained.add(gate.lines[0]["trained_parameters"])
    ours = losses.pop("varifocal_plain")
    assert len(ours) == STEPS
    assert len(trained) == 1
    for other in losses.values():
        torch.testing.assert_close(other, ours, rtol=1e-4, atol=0)


def test_half_of_the_samples_have_a_image_and_lengths_are_those_of_scienceqa(bench):
    from benchmarks.side_by_side.material import Shape, draw_lengths

    lengths = draw_lengths(Shape(samples=4000))
    assert 270 < sum(map(sum, lengths)) / 4000 < 310  # measured: 297, with 4 % over 512
    assert max(map(sum, lengths)) == 492


def test_a_step_needs_the_operations_that_a_run_counts(page, bench):
    from benchmarks.side_by_side.arms import _load, samples_per_step, steps_of

    from varifocal.data.rows.packing import Collator
    from varifocal.planning.shapes import build_shapes
    from varifocal.recipe import load_recipe
    from varifocal.training.cost import Spent

    recipe = load_recipe(page)
    shapes = build_shapes(recipe)
    collate = Collator(pad_id=0, load_images=shapes.images.load)
    counted = []
    for samples in steps_of(recipe, _load(recipe)[1]):
        spent = Spent()
        spent.add(collate(samples), shapes.formula, shapes.images.token_id)
        counted.append((len(samples), spent.tokens, spent.flops))
    assert list(samples_per_step(recipe)) == counted
    assert len(counted) == STEPS


def test_the_products_alone_are_an_arm(page, tmp_path):
    from benchmarks.side_by_side.arms import run_arm
    from benchmarks.side_by_side.gate import Gate

    from varifocal.recipe import load_recipe

    gate = Gate(2)
    run_arm("products", load_recipe(page), tmp_path / "products", gate)
    assert len(gate.lines) == 3
    assert gate.lines[0]["gflops"].keys() == {"float32", "bfloat16", "int8"}
    assert min(gate.lines[0]["gflops"].values()) > 0


def test_an_earlier_revision_runs_from_a_tree_of_its_own(bench, tmp_path):
    from benchmarks.side_by_side.children import check_out

    root = check_out("HEAD", tmp_path)
    assert (root / "src" / "varifocal" / "__init__.py").is_file()
    assert check_out("HEAD", tmp_path) == root
    with pytest.raises(SystemExit, match="git knows no such revision"):
        check_out("no-such-tag", tmp_path)


def test_the_summary_compares_arms_round_by_round(bench):
    from benchmarks.side_by_side.summary import summarise

    def line(arm, number, seconds, peak):
        memory = {"peak_mib": 100 + peak, "above_weights_mib": peak}
        known = {"piece": "p", "round": number, "step": number + 1, "timed": True, "arm": arm}
        return {**known, "seconds": seconds, "cpu_seconds": 1.0, "loss": 2.0, **memory}

    lines = [
        {"piece": "p", "arm": arm, "timed": True, "loaded_mib": 100, "trained_parameters": 7}
        for arm in ("varifocal", "trainer_peft")
    ]
    for number, (ours, other) in enumerate([(9.0, 9.0), (1.0, 2.0), (1.0, 3.0)], start=-1):
        lines += [line("varifocal", number, ours, 10), line("trainer_peft", number, other, 40)]
    lines[:0] = [
        {"piece": "p", "arm": "products", "timed": True, "product_flops": 10, "gflops": {}}
    ]
    lines += [line("products", number, 1.0, 0) | {"cpu_seconds": 0.5} for number in range(2)]
    page = summarise(lines, [(8, 80, 5)] * 3, {})
    share = page["arms"]["varifocal"]["share_of_limit"]["median"]
    assert share == 0.25  # 5 operations at 10 in half a CPU second, and it took one
    assert "products" not in page["arms"]
    against = page["vs_trainer_peft"]
    assert against["samples_per_second"] == {"min": 2, "median": 2.5, "max": 3}
    assert against["peak_memory"]["median"] == 0.25
    assert page["rounds"] == 2
    assert page["arms"]["varifocal"]["samples_per_second"]["median"] == 8
    assert page["arms"]["varifocal"]["first_step_seconds"]["max"] == 9
