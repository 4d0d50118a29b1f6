"""The leaderboard of recipes: which checkpoint sees, what counts, and once all of it in small."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def sight(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("VARIFOCAL_CACHE", "")  # put back after the test, which sets it
    from benchmarks import time_to_sight

    yield time_to_sight
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("right", "step"),
    [
        ([80, 80, 90, 95], 20),
        ([0, 79.9, 80, 80], 40),
        ([0, 81, 79, 90], None),
        ([90], None),
        ([0, 10, 20, 99], None),
    ],
)
def test_the_second_of_two_successive_checkpoints_counts(sight, right, step):
    by_step = dict(zip(range(10, 50, 10), right, strict=False))
    assert sight.first_to_hold(list(by_step), by_step.__getitem__, 80.0) == step


def test_checkpoints_before_the_middle_of_what_fails_are_not_scored(sight):
    scored = []

    def right(step):
        scored.append(step)
        return 100.0 if step >= 7 else 0.0

    assert sight.first_to_hold(range(1, 11), right, 80.0) == 8
    assert set(scored) == {6, 7, 8, 9, 10}


def test_a_checkpoint_that_an_interruption_wrote_is_no_evaluation(sight):
    assert sight.planned_steps([3, 6, 8, 9, 25]) == [3, 6, 9, 25]


def test_every_entry_is_a_recipe_with_its_date(sight, tmp_path):
    from varifocal.demo import FULL

    (tmp_path / "sciencebook").mkdir()
    entries = sight.load_entries()
    assert entries
    for entry in entries:
        recipe = sight._recipe_of(entry, 3, tmp_path, FULL)
        assert (recipe.seed, recipe.training.save_steps) == (3, 0.1)
        assert entry.date.startswith("20")
        assert entry.about


def test_loading_and_scoring_count_apart_and_a_seed_that_never_sees_is_last(sight):
    stages = {"loading": 100.0, "encoding": 1.0, "vision_features": 20.0, "alignment": 30.0}
    stages["training"] = 49.0
    seen = sight.Sight(60.0, 4, stages, {2: 80.0, 4: 81.0}, {2: 5.0, 4: 7.0})
    never = replace(seen, seconds=None, step=None)
    first, other = (sight.Entry(name, "2026-12-01", "", {}) for name in ("first", "other"))
    rows = [sight._row(first, {0: seen, 1: replace(seen, seconds=90.0), 2: never})]
    rows.append(sight._row(other, {0: replace(seen, seconds=30.0)}))
    rest = "| 20 | 30 | 100 | 81.0 | 6 |"
    assert sight.table({"entries": rows}).splitlines()[2:] == [
        "| first | 2026-12-01 | 90 (60, 90, never) | 1.00 | 4, 4, never " + rest,
        "| other | 2026-12-01 | 30 (30) | 0.33 | 4 " + rest,
    ]


@pytest.mark.slow
def test_the_whole_leaderboard_in_small(sight, parts, tmp_path):
    from varifocal.demo import Size

    model = {
        "model.language_model": str(parts / "language"),
        "model.vision_tower": str(parts / "efficientnet"),
        "model.connector": {"hidden_dim": 8, "num_tokens": 4},
        "model.dtype": "float32",
    }
    size = Size(train=22, test=22, language=0, overrides={**model, "alignment.steps": 4})
    steps = {"training.max_steps": 4, "training.per_device_train_batch_size": 1}
    entries = [
        sight.Entry(f"rate-{rate}", "2026-12-01", "", {**steps, "training.learning_rate": rate})
        for rate in (1e-3, 1e-2)
    ]
    lines = []
    page = sight.run_all(
        tmp_path, entries, [0], size=size, least=0.0, report=lambda line: lines.append(line)
    )
    assert json.loads((tmp_path / "time-to-sight.json").read_text())["percent"] == 0.0
    assert [line.partition(":")[0] for line in lines[:2]] == [
        "rate-0.001, seed 0",
        "rate-0.01, seed 0",
    ]
    for row in page["entries"]:
        for result in row["seeds"].values():
            assert result["step"] == 2  # all are right 0 % of the time, or more
            assert 0 < result["seconds"] < sum(result["stages"].values())
            assert result["stages"]["vision_features"] > 0
            assert max(result["right"]) == 4
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("rate*/eval/*/right.json")}
    sight.run_all(tmp_path, entries, [0], size=size, least=0.0, report=lambda line: None)
    assert {file: file.stat().st_mtime_ns for file in before} == before
