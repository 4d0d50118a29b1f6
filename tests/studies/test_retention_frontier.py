"""The frontier study: its arms, its sums, its equal seconds, and once all of it in small."""

import json
import math

import pytest
import yaml
from studies.retention_frontier import HERE, QUICK, QUICK_SECONDS, RATES, RATES_SEED, Study
from studies.retention_frontier_measures import Language
from studies.retention_frontier_results import (
    ARMS,
    SAME_STEPS,
    STRENGTHS,
    differences,
    draw,
    family,
    gathered,
    rates_table,
    table,
)

from varifocal.errors import RunError
from varifocal.evaluation.retention_data import Material
from varifocal.sweep import load_sweep

BASE = {"accuracy": {"IMG": 40.0, "TXT": 45.0, "NO": 30.0}, "prose_nats": 2.0}
BASE |= {"after_image_nats": 1.0, "sources": {"text": "prose"}}
PILOTS = {arm: {"step_seconds": 2.0, "keep_seconds": 0.0} for arm in ARMS}
PILOTS["mma-keep"] = {"step_seconds": 2.5, "keep_seconds": 20.0}
PILOTS["mma-base-text"] = {"step_seconds": 1.5, "keep_seconds": 0.0}
TRIED = {"average": 50.0, "IMG": 50.0, "TXT": 50.0, "NO": 50.0}


def point(right, prose_nats=2.5, step_seconds=2.0):
    columns = dict.fromkeys(("IMG", "TXT", "NO", "average"), right)
    figures = {"prose_nats": prose_nats, "after_image_nats": 1.25, "answers_same": 10.0}
    cost = {"cpu_seconds": 240.0, "steps": 90, "step_seconds": step_seconds}
    return {"accuracy": columns, **figures, **cost}


def test_language_is_counted_from_the_base_and_a_step_from_todays():
    slow = point(70.0, step_seconds=2.5)
    done = {"mma": {1: point(80.0), 0: point(90.0, 3.0)}, "mma-keep at 0.5": {0: slow}}
    arms = gathered(BASE, done)["arms"]
    factors = [math.exp(1.0), math.exp(0.5)]
    assert arms["mma"]["prose_factor"]["values"] == pytest.approx(factors)
    assert arms["mma"]["after_image_factor"]["mean"] == pytest.approx(math.exp(0.25))
    assert arms["mma"]["accuracy"]["IMG"]["values"] == [90.0, 80.0]
    assert arms["mma"]["step_cost"]["values"] == [1, 1]
    assert arms["mma-keep at 0.5"]["step_cost"]["mean"] == 1.25
    assert arms["mma-keep at 0.5"]["less_mma"]["TXT"]["values"] == [-20.0]  # of its own seed
    assert differences(gathered(BASE, done)).splitlines()[2:] == [
        "| MMA, keep, strength 0.5 | -20.0 | -20.0 | -20.0 | -20.0 |"
    ]


def test_the_table_and_the_figure_have_every_arm(tmp_path):
    done = {"mma": {0: point(80.0)}, "mma at 0.5": {0: point(60.0, 2.1)}, "lora": {0: point(75.0)}}
    results = gathered(BASE, done)
    lines = table(results).splitlines()
    assert len(lines) == 2 + 1 + 3
    assert lines[3].startswith("| MMA | 80.0 | 80.0 | 80.0 | 1.649 | 1.284 | 10.0 | 1.00 ")
    assert lines[4].startswith("| MMA, strength 0.5 | 60.0 | 60.0 | 60.0 | 1.105 |")
    draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_the_sweep_has_the_arms_the_table_names(tmp_path):
    page = yaml.safe_load((HERE / "retention-frontier.yaml").read_text())
    assert {each["label"] for each in page["points"]} == ARMS.keys()
    assert STRENGTHS.keys() | SAME_STEPS.keys() < ARMS.keys()
    assert {family(arm) for arm in ARMS} == RATES.keys()
    assert RATES_SEED in page["seeds"]
    (tmp_path / "sciencebook").mkdir()
    given = ["model.connector.weights=start", f"data.root={tmp_path}"]
    sweep = load_sweep(HERE / "retention-frontier.yaml", given)
    keeps = {each.setting: each.recipe.training.keep for each in sweep.points}
    named = {arm for arm in ARMS if "keep" in arm or "replay" in arm}
    assert {name for name, keep in keeps.items() if keep} == named


def test_an_arm_gets_the_steps_that_its_seconds_hold(tmp_path):
    """A pilot that is done is not run again."""
    (tmp_path / "pilot.json").write_text(json.dumps(PILOTS))
    study = Study(tmp_path, QUICK, [0], seconds=240.0)
    steps = [study._steps(arm) for arm in ("mma", "mma-keep", "mma-base-text")]
    assert steps == [120, 88, 120]  # the base's text takes its sibling's
    assert Study(tmp_path, QUICK, [0], seconds=QUICK_SECONDS)._steps("mma") == 1


def write_rates(folder, right):
    for rate, average in right.items():
        file = folder / "rates" / f"lora-{rate}" / "asked.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({**TRIED, "average": average}))


def test_a_family_takes_the_rate_that_answered_most_of_equal_ones_the_lowest(tmp_path):
    """Rates that were tried are not tried again."""
    write_rates(tmp_path, {"0.0005": 50.0, "0.001": 61.0, "0.002": 61.0})
    study = Study(tmp_path, QUICK, [0], seconds=1.0)
    assert study._tuned("lora") == 1e-3
    lines = rates_table({"rates": {"lora": study._tried("lora")}}).splitlines()
    assert lines[2:] == [
        "| lora | 0.0005 | 50.0 | 50.0 | 50.0 | 50.0 |",
        "| lora | 0.001 | 50.0 | 50.0 | 50.0 | 61.0 |",
        "| lora | 0.002 | 50.0 | 50.0 | 50.0 | 61.0 |",
    ]


def test_arms_are_not_measured_on_two_kinds_of_text(tmp_path):
    study = Study(tmp_path, QUICK, [0], seconds=1.0)
    study.language = Language(Material([], [], [], {}), [], [], BASE)
    study._write_base()
    study._write_base()
    other = {**BASE, "sources": {"text": "alpaca"}}
    study.language = Language(Material([], [], [], {}), [], [], other)
    with pytest.raises(RunError, match=r"measured on other texts; give the former --data"):
        study._write_base()


@pytest.mark.slow
def test_the_whole_study_in_small(tmp_path):
    pytest.importorskip("gguf")
    study = Study(tmp_path, QUICK, [0], QUICK_SECONDS)
    study.run()
    page = json.loads((tmp_path / "retention-frontier.json").read_text())
    assert len(page["arms"]) == len(ARMS) + sum(map(len, STRENGTHS.values())) - len(STRENGTHS)
    assert {name: set(tried) for name, tried in page["rates"].items()} == {
        name: {f"{rate:g}" for rate in rates} for name, rates in RATES.items()
    }
    assert page["arms"]["mma-base-text"]["prose_factor"]["mean"] == 1
    assert page["arms"]["mma-base-text"]["answers_same"]["mean"] == 100
    assert (tmp_path / "retention-frontier.png").is_file()
    assert page["arms"]["lora-base-text"]["prose_factor"]["mean"] == 1
    assert table(page).count("\n") == 2 + len(page["arms"])
    before = {file: file.stat().st_mtime_ns for file in tmp_path.glob("runs/*/measured-*.json")}
    Study(tmp_path, QUICK, [0], QUICK_SECONDS).run()
    assert {file: file.stat().st_mtime_ns for file in before} == before
