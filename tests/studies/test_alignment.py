"""The alignment study: its figures from files, and its five-minute version."""

import json
import subprocess
import sys
from pathlib import Path

import PIL.Image
import pytest
from studies.alignment_figures import curves
from studies.alignment_results import at_minutes, collect, crossing
from studies.alignment_tables import tables

from studies import alignment

ROOT = Path(__file__).parents[2]
SCORES = {
    "none": {0: (40, 50, 55, 60), 1: (42, 48, 53, 58)},
    "words": {0: (50, 70, 80), 1: (60, 78, 88)},
    "captions": {0: (40, 52, 54)},
}
ALIGNED = 120.0  # seconds


@pytest.fixture
def out(tmp_path):
    """Runs of two seeds, a minute every ten steps; one has one seed, one was stopped once."""
    for setting, by_seed in SCORES.items():
        for seed, accuracies in by_seed.items():
            if setting != "none":
                write_stage(tmp_path / "stages" / f"{setting},seed={seed}", setting)
            stopped_at = 17 if setting == "words" and seed == 1 else None
            write_run(tmp_path / "book" / f"{setting},seed={seed}", accuracies, stopped_at)
    (tmp_path / "book" / "captions,seed=0" / "point.json").write_text("{}")
    write_run(tmp_path / "book" / "captions,seed=1", (99, 99, 99))
    (tmp_path / "book" / "captions,seed=1" / "point.json").unlink()  # not finished: not read
    return tmp_path


def write_stage(root, name):
    root.mkdir(parents=True)
    cost = {"seconds_cpu_alignment": ALIGNED, "seconds_cpu_training": 90.0, "vision_lookups": 77}
    (root / "cost.json").write_text(json.dumps(cost))
    model = {"language_model": "a", "vision_tower": "b"}
    page = {"model": model, "alignment": {"steps": 10, "batch_size": 16}}
    (root / "recipe.yaml").write_text(json.dumps(page))


def write_run(root, accuracies, stopped_at=None):
    recipe = {"model": {"language_model": "a"}, "training": {"save_steps": 10}}
    root.mkdir(parents=True)
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    steps = {10 * number: accuracy for number, accuracy in enumerate(accuracies, start=1)}
    if stopped_at is not None:
        steps[stopped_at] = 0
    for step, accuracy in steps.items():
        checkpoint = root / "checkpoints" / f"checkpoint-{step}"
        scores = root / "eval" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        scores.mkdir(parents=True)
        seconds = {"cpu_training": 6.0 * step}
        (checkpoint / "unlogged.json").write_text(json.dumps({"seconds": seconds}))
        measures = [{"name": "average", "value": accuracy}]
        (scores / "sciencebook-test.json").write_text(json.dumps({"measures": measures}))
    (root / "point.json").write_text("{}")


def test_curves_count_the_stage_and_differences_are_paired(out):
    found = collect(out, [0, 1])
    assert set(found["book"]) == {"none", "words", "captions"}
    assert found["nlvr"] == {}
    assert found["stages"]["words"]["pictures"]["mean"] == 160
    assert found["stages"]["captions"]["pictures"]["mean"] == 77
    assert found["stages"]["captions"]["minutes"]["mean"] == 1.5
    words = found["book"]["words"]
    assert words["seeds"] == [0, 1]
    assert [point["minutes"]["mean"] for point in words["curve"]] == [3, 4, 5]
    assert [point["accuracy"]["values"] for point in words["curve"]] == [
        [50, 60],
        [70, 78],
        [80, 88],
    ]
    # At step 30 without a stage 55 and 53; after words' five minutes nothing is measured any more.
    assert words["against_none"]["equal_steps"]["values"] == [25, 35]
    assert words["against_none"]["equal_minutes"] is None
    captions = found["book"]["captions"]
    assert captions["seeds"] == [0]
    assert captions["curve"][-1]["accuracy"]["low"] is None
    assert captions["against_none"]["equal_steps"]["values"] == [54 - 55]
    # Its end comes after 4.5 minutes; 1.5 steps further on none stands beyond its last point.
    assert captions["against_none"]["equal_minutes"] is None
    assert words["reached"]["60"] == {"step": [15, 10], "minutes": [3.5, 3]}
    assert words["reached"]["80"]["step"] == [30, 22]
    assert found["book"]["none"]["reached"]["60"]["step"] == [40, None]


def test_equal_minutes_are_read_between_two_points(out):
    for seed in (0, 1):
        cost = out / "stages" / f"words,seed={seed}" / "cost.json"
        cost.write_text(json.dumps({"seconds_cpu_alignment": 30.0}))
    words = collect(out, [0, 1])["book"]["words"]
    assert words["against_none"]["equal_minutes"]["values"] == [80 - 57.5, 88 - 55.5]


def test_a_curve_is_read_on_straight_lines():
    curve = [
        {"step": 8, "minutes": 1.0, "accuracy": 50.0},
        {"step": 16, "minutes": 2.0, "accuracy": 45.0},
        {"step": 24, "minutes": 4.0, "accuracy": 65.0},
    ]
    assert crossing(curve, "step", 55.0) == 20
    assert crossing(curve, "minutes", 55.0) == 3
    assert at_minutes(curve, 3.0) == 55
    assert at_minutes(curve, 0.5) is at_minutes(curve, 4.5) is None


def test_figure_and_tables_show_what_is_there(out):
    found = collect(out, [0, 1])
    curves(found, out / "figure.png")
    with PIL.Image.open(out / "figure.png") as image:
        assert image.width > image.height > 300
    text = tables(found)
    assert "| words | 160 | 120.0 |" in text
    assert "| captions | 1 | 40.0 | 52.0 | 54.0 |  | -1.0 |  |" in text
    assert "| none | 40, - | 4.0, - |" in text
    assert "NLVR" not in text


def test_the_sweeps_are_cut_to_a_seed_and_take_the_stages_of_that_seed(tmp_path, monkeypatch):
    for folder, names in {"sciencebook": (), "nlvr-data": ("train.jsonl", "dev.jsonl")}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    monkeypatch.chdir(tmp_path)
    found = list(alignment.sweeps([1], quick=False, with_nlvr=True))
    assert [name for name, _ in found] == ["stages", "book", "nlvr"]
    assert [point.setting for point in found[2][1].points] == ["none", "words", "captions"]
    quick = list(alignment.sweeps([1], quick=True, with_nlvr=False))
    assert [name for name, _ in quick] == ["stages", "book"]
    recipes = [point.recipe for _, sweep in quick for point in sweep.points]
    assert {recipe.training.max_steps for recipe in recipes} == {0, 2}
    assert max(one.alignment.steps for one in recipes if one.alignment) == 8
    book = {point.setting: point.recipe for point in found[1][1].points}
    assert {recipe.seed for recipe in book.values()} == {1}
    assert book["none"].model.connector.weights is None
    for name in ("words", "captions", "words-few"):
        assert book[name].model.connector.weights == str(tmp_path / "stages" / f"{name},seed=1")
        assert book[name].alignment is None


def test_the_link_to_nlvr_follows_its_folder(tmp_path):
    out, first, moved = (tmp_path / name for name in ("out", "first", "moved"))
    (out / "sciencebook").mkdir(parents=True)
    (out / "sciencebook" / "problems.json").touch()
    first.mkdir()
    alignment.prepare(out, True, first)
    alignment.prepare(out, True, first)
    assert (out / "nlvr-data").resolve() == first
    first.rename(moved)  # leaves a link to nothing
    alignment.prepare(out, True, moved)
    assert (out / "nlvr-data").resolve() == moved


def test_no_run_is_written_into_the_data(tmp_path):
    out, data = tmp_path / "out", tmp_path / "data"
    (out / "sciencebook").mkdir(parents=True)
    (out / "sciencebook" / "problems.json").touch()
    data.mkdir()
    (out / "nlvr").symlink_to(data)  # as an older call left it
    alignment.prepare(out, True, data)
    folders = [out / name for name in ("stages", "book", "nlvr")]
    assert not any(folder.exists() or folder.is_symlink() for folder in folders)


@pytest.mark.slow
def test_the_quick_study_has_all_its_settings(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "studies.alignment", str(out), "--quick", "--seeds", "0"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    page = json.loads((out / "alignment.json").read_text())
    assert set(page["stages"]) == {"words", "words-few", "captions"}
    assert set(page["book"]) == {"none", "words", "captions", "words-few"}
    assert "left out: NLVR" in found.stdout
    for name in ("alignment.png", "words.png"):
        with PIL.Image.open(out / name) as image:
            assert image.width > 900
