"""The LaVIN study: its settings, its sums, and once a run of all of it in small."""

import json

import pytest
import yaml
from studies.lavin import HERE, MEASURED, QUICK, Study
from studies.lavin_results import SETTINGS, differences, draw, gathered, table

from varifocal.errors import RunError
from varifocal.sweep import load_sweep


def point(average, text_nats=1.0, **columns):
    accuracy = {"TXT": average, "IMG": average, "NO": average, "average": average, **columns}
    return {
        "accuracy": accuracy,
        "text_nats": text_nats,
        "cpu_seconds": 60.0,
        "tokens": 1000,
        "trained_parameters": {"language_model": 10, "connector": 5},
        "questions": dict.fromkeys(accuracy, 4),
        "chance": dict.fromkeys(accuracy, 50.0),
    }


def test_differences_are_paired_by_seed_and_leave_out_what_is_not_there_yet():
    done = {
        "text-only": {0: point(10.0), 1: point(50.0)},
        "images": {1: point(60.0, IMG=80.0), 0: point(20.0, IMG=40.0), 2: point(99.0)},
        "router": {0: point(90.0)},
    }
    results = gathered(point(30.0), done)
    assert list(results["differences"]) == ["images - text-only"]
    difference = results["differences"]["images - text-only"]
    assert difference["average"]["values"] == [10.0, 10.0]
    assert difference["IMG"]["values"] == [30.0, 30.0]
    assert results["settings"]["images"]["accuracy"]["average"]["values"] == [20.0, 60.0, 99.0]
    assert results["settings"]["images"]["seeds"] == [0, 1, 2]


def test_the_cost_in_language_is_counted_from_the_base():
    results = gathered(point(30.0, text_nats=2.0), {"lora": {0: point(40.0, text_nats=2.5)}})
    assert results["settings"]["lora"]["text_nats_gained"]["mean"] == 0.5
    line = table(results).splitlines()[-1]
    assert line == "| LoRA | 40.0 | 40.0 | 40.0 | 40.0 | 15 | 1.0 | +0.50 |"


def test_without_texts_nothing_is_said_of_the_language(tmp_path):
    results = gathered(point(30.0, text_nats=None), {"lora": {0: point(40.0, text_nats=None)}})
    assert results["settings"]["lora"]["text_nats_gained"] is None
    assert table(results).splitlines()[-1].endswith("| 1.0 |  |")
    draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("nats", "given", "told"),
    [(1.6, False, "with --data, and this call is without"), (None, True, "without --data, and")],
)
def test_texts_are_read_by_every_call_or_by_none(nats, given, told, tmp_path):
    (tmp_path / "base.json").write_text(json.dumps({"text_nats": nats}))
    data = tmp_path if given else None
    (tmp_path / "sciencebook").mkdir()
    starts = load_sweep(HERE / "lavin-start.yaml", [f"data.root={tmp_path}"])
    with pytest.raises(RunError, match=rf"base.json was measured {told}"):
        Study(tmp_path, QUICK, [0], data)._measure_base(starts)
    same = None if given else tmp_path
    Study(tmp_path, QUICK, [0], same)._measure_base(starts)


def test_seconds_are_the_runs_own_with_those_before_a_resumption(tmp_path):
    (tmp_path / "base.json").write_text(json.dumps(point(30.0)))
    run = tmp_path / "runs" / "lora,seed=0"
    run.mkdir(parents=True)
    (run / MEASURED).write_text(json.dumps(point(40.0)))  # 60 seconds of a last call
    (run / "cost.json").write_text(json.dumps({"seconds_cpu_total": 90.06}))
    Study(tmp_path, QUICK, [0], tmp_path, "python -m studies.lavin OUT --quick").write()
    page = json.loads((tmp_path / "lavin.json").read_text())
    assert page["settings"]["lora"]["cpu_seconds"]["values"] == [90.1]
    assert page["command"].endswith("--quick")


def test_the_sweep_has_the_settings_the_figure_names():
    page = yaml.safe_load((HERE / "lavin.yaml").read_text())
    assert [each["label"] for each in page["points"]] == list(SETTINGS)
    tuners = {each["label"]: each["set"]["tuner"] for each in page["points"]}
    routed, plain = tuners["router"], tuners["tower-adapters"]
    assert (plain["router"], plain["bottleneck_dim"]) == (False, 18)
    assert (routed.get("router", True), routed["bottleneck_dim"]) == (True, 12)


@pytest.mark.slow
def test_the_whole_study_in_small(tmp_path):
    pytest.importorskip("gguf")
    study = Study(tmp_path, QUICK, [0], None)
    study.run()
    study.write()
    page = json.loads((tmp_path / "lavin.json").read_text())
    assert list(page["settings"]) == list(SETTINGS)
    assert (tmp_path / "lavin.png").is_file()
    trained = {name: figures["trained_parameters"] for name, figures in page["settings"].items()}
    assert trained["text-only"].keys() == {"language_model"}
    assert "vision_tower" not in trained["images"]
    one, two = (sum(trained[name].values()) for name in ("tower-adapters", "router"))
    assert abs(one / two - 1) < 0.01
    assert differences(page).count("|") > 10
