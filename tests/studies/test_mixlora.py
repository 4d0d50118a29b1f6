"""The MixLoRA study: its tasks, its settings, its figures, and its five-minute version."""

import gzip
import json
import struct
import subprocess
import sys
from dataclasses import replace
from math import log
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from studies.mixlora_figures import draw_all, print_tables
from studies.mixlora_results import CLAIMS, collect
from studies.mixlora_tasks import SKILLS, Sizes, make_tasks

from studies import mixlora
from varifocal.analysis.tasks import name_task
from varifocal.data.loading import load_source
from varifocal.errors import DataError, RunError
from varifocal.recipe import FileSection
from varifocal.recipe.strict_yaml import read_page

ROOT = Path(__file__).parents[2]
SIZES = Sizes(train=2, test=2, described=2)
SEEDS = (0, 1)


def write_idx(file, values):
    head = b"\0\0\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    file.write_bytes(gzip.compress(head + values.tobytes()))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """NLVR's and Fashion-MNIST's own files, with a few rows each."""
    root = tmp_path_factory.mktemp("data")
    nlvr, fashion = root / "nlvr", root / "fashion_mnist"
    (nlvr / "images").mkdir(parents=True)
    fashion.mkdir()
    PIL.Image.new("RGB", (8, 8)).save(nlvr / "images" / "one.png")
    for name in ("train", "dev"):
        rows = [
            {"id": f"{place}-{box}", "sentence": f"{name} {place}", "label": label}
            for place, label in enumerate(("true", "true", "true", "false", "false"))
            for box in range(2)
        ]
        lines = (json.dumps({**row, "image": "images/one.png"}) for row in rows)
        (nlvr / f"{name}.jsonl").write_text("\n".join(lines))
    for number, split in enumerate(("train", "t10k")):
        pixels = np.arange(6 * 28 * 28, dtype=np.uint8).reshape(6, 28, 28) + np.uint8(number)
        write_idx(fashion / f"{split}-images-idx3-ubyte.gz", pixels)
        write_idx(fashion / f"{split}-labels-idx1-ubyte.gz", np.arange(6, dtype=np.uint8))
    return root


@pytest.fixture(scope="module")
def tasks(data, tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("tasks"), SIZES, data)


def read(tasks, key):
    found = {}
    for page in tasks[key]:
        for example in load_source(FileSection(**page)):
            found.setdefault(name_task(example), []).append(example)
    return found


# The tasks


@pytest.mark.parametrize("key", ["data.train", "data.evaluate"])
def test_every_task_has_equally_many_questions(tasks, key):
    found = {task: len(own) for task, own in read(tasks, key).items()}
    assert found == dict.fromkeys((*SKILLS, "nlvr", "fashion"), 2)


def test_a_constant_answer_to_nlvr_is_right_half_the_time(tasks):
    answers = [one.messages[-1].text for one in read(tasks, "data.train")["nlvr"]]
    assert sorted(answers) == ["false", "true"]


def test_an_article_stands_among_two_others(tasks):
    articles = read(tasks, "data.evaluate")["fashion"]
    assert [one.messages[-1].text for one in articles] == ["T-shirt/top", "trouser"]
    assert all(len(set(one.choices)) == 3 for one in articles)


def test_what_the_connector_is_shown_is_true_and_of_no_question(tasks):
    sources = [FileSection(**page) for page in tasks["data.captions"][1:]]
    nlvr, fashion = ([one.messages[-1].text for one in load_source(one)] for one in sources)
    assert nlvr == ["train 0", "train 1"]  # the first true ones
    assert fashion == ["pullover", "dress"]  # after the two that are asked about


def test_without_data_four_tasks_are_left(tmp_path):
    assert set(read(make_tasks(tmp_path, SIZES, None), "data.train")) == set(SKILLS)


def test_a_folder_without_nlvr_is_named(tmp_path):
    with pytest.raises(DataError, match=r"--data: NLVR's '.*nowhere.nlvr.train.jsonl'"):
        make_tasks(tmp_path / "tasks", SIZES, tmp_path / "nowhere")


# The settings


def test_settings_differ_in_the_tuner_alone_and_scale_alike(tasks):
    sweeps = mixlora.one_by_one({**tasks, "seed": 0}, None)
    recipes = [sweep.points[0].recipe for sweep in sweeps]
    pages = [one.model_dump(exclude={"tuner", "name", "provenance"}) for one in recipes]
    assert len(pages) == 13
    assert all(page == pages[0] for page in pages)
    tuners = [one.tuner for one in recipes]
    assert {one.lora_alpha / one.rank for one in tuners} == {2.0}
    assert {(len(one.target_modules), one.dropout) for one in tuners} == {(7, 0.0)}


def test_all_that_is_looked_into_or_claimed_is_in_the_sweep():
    labels = {point["label"] for point in read_page(mixlora.SWEEP)["points"]}
    turns = {name for turn in mixlora.TURNS for name in turn or ()}
    named = {*turns, *mixlora.INTERFERENCE, *mixlora.BEFORE, *mixlora.ROUTING}
    assert named | {name for _, *pair in CLAIMS for name in pair} <= labels


# The figures


def write_run(run, seed, tasks, losses):
    """What a trained and scored run leaves; `losses` are NLVR's right answers', in bits."""
    (run / "eval").mkdir(parents=True)
    (run / "analysis").mkdir()
    recipe = next(mixlora.one_by_one({**tasks, "seed": seed}, ("lora-r4",))).points[0].recipe
    (run / "recipe.yaml").write_text(recipe.dump_yaml())
    (run / "point.json").write_text("{}")
    page = {"trained_parameters": {"layer": 7, "connector": 5}, "tokens": 11}
    (run / "training.json").write_text(json.dumps(page))
    (run / "metrics.jsonl").write_text(json.dumps({"step": 1, "factor_entropy": 0.5}) + "\n")
    options = {"options": ["a", "b"], "gold": ["a"]}
    even = {"scores": [0.0, 0.0], **options, "correct": 1.0}
    wrong = [
        {"scores": [-loss * log(2), log(1 - 2**-loss)], **options, "correct": 0.0}
        for loss in losses
    ]
    for name, rows in (("book", [even] * 8), ("nlvr", wrong), ("fashion", [even] * 2)):
        lines = "\n".join(json.dumps(row) for row in rows)
        (run / "eval" / f"{name}-test.predictions.jsonl").write_text(lines)


def write_interference(run, negative):
    matrix = {"interference": [[1.0, -0.5], [None, None]], "negative_share": negative, "pairs": 2,
              "surely_negative": 1, "trained_parameters": 7}  # fmt: skip
    page = {"tasks": ["a", "b"], "examples": {"a": 2, "b": 2}, "vague": [], "all": matrix,
            "layers": {"layers 0-9": matrix}}  # fmt: skip
    (run / "analysis" / "interference.json").write_text(json.dumps(page))


def write_routing(run):
    usage = {"usage": [[0.5, 0.5], [1.0, 0.0]], "entropy": 0.8, "mean_overlap": 0.5}
    page = {"tasks": ["a", "b"], "examples": {"a": 2, "b": 2}, "overlap": [[1.0, 0.5], [0.5, 1.0]],
            "modules": {"m.layers.3.q_proj": {"A": usage, "B": usage}}}  # fmt: skip
    (run / "analysis" / "routing.json").write_text(json.dumps(page))


@pytest.fixture
def results(tasks, tmp_path):
    for seed in SEEDS:
        for name, losses in (("r4-weighted", (1, 2 + seed)), ("lora-r4", (2, 3 + 3 * seed))):
            run = tmp_path / f"seed{seed}" / name
            write_run(run, seed, tasks, losses)
            write_interference(run, 0.25 + 0.5 * seed)
        write_routing(tmp_path / f"seed{seed}" / "r4-weighted")
    return collect({seed: tmp_path / f"seed{seed}" for seed in SEEDS})


def test_scores_are_means_of_tasks_over_seeds(results):
    scores = results["settings"]["r4-weighted"]["tasks"]
    assert scores["nlvr"]["loss"]["values"] == pytest.approx([1.5 * log(2), 2.0 * log(2)])
    assert scores["counting"]["loss"]["mean"] == pytest.approx(log(2))
    assert scores["all"]["loss"]["values"] == pytest.approx([6.5 / 6 * log(2), 7 / 6 * log(2)])
    assert scores["all"]["accuracy"]["mean"] == pytest.approx(500 / 6)  # nlvr was written wrong
    assert results["tasks"]["nlvr"] == {"questions": 2, "chance": 50, "even_loss": log(2)}


def test_differences_are_paired_by_seed(results):
    (one,) = results["differences"]
    assert (one["of"], one["against"]) == ("r4-weighted", "lora-r4")
    assert one["tasks"]["nlvr"]["loss"]["values"] == pytest.approx([-log(2), -2 * log(2)])


def test_interference_and_routing_are_gathered(results):
    after = results["interference"]["after"]["lora-r4"]
    assert after["negative_share"]["all"]["values"] == [0.25, 0.75]
    assert after["surely_negative_share"]["mean"] == 0.5
    assert (after["mean_effect"]["mean"], after["mean_harm"]["mean"]) == (-0.5, 0.5)
    assert results["interference"]["before"] == {}
    assert results["negative_share_differences"] == []  # no LoRA of rank 16
    assert results["routing"]["r4-weighted"]["overlap"]["mean"] == 0.5


def test_images_and_tables_are_made_of_what_is_there(results, tmp_path, capsys):
    draw_all(results, tmp_path)
    names = ("mixlora.png", "mixlora-interference.png", "mixlora-factors.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
    print_tables(results)
    said = capsys.readouterr().out
    assert "| LoRA r4 | 2 | 7 | 0.953 (-0.148 to 2.054) | 83 (83 to 83) |" in said
    assert (
        "LoRA r4, after | 2 | 50 (-268 to 368) | 50 | 50 (50 to 50) | -0.50 (-0.50 to -0.50) |"
        in said
    )


# The whole study


@pytest.fixture
def trained(tasks, monkeypatch):
    """What the study trains, each of which leaves its recipe and that it is done."""
    found = []

    def leave(recipe, run, **_):
        found.append(run.name)
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(recipe.dump_yaml())
        (run / "training.json").write_text("{}")
        (run / "point.json").write_text("{}")

    def sweep(sweep, folder, **_):
        leave(sweep.points[0].recipe, folder / sweep.points[0].label)

    monkeypatch.setattr(mixlora, "make_tasks", lambda *_: tasks)
    monkeypatch.setattr(mixlora, "run_training", leave)
    monkeypatch.setattr(mixlora, "run_sweep", sweep)
    monkeypatch.setattr(mixlora.Study, "write", lambda _: {})
    return found


def study_of(out, size=mixlora.QUICK, quick=True):
    return mixlora.Study(out, size, (0,), None, quick)


def test_a_setting_that_is_done_is_not_trained_again(tmp_path, trained):
    for _ in range(2):
        study_of(tmp_path).run(0, ("lora-r4",))
    assert trained == ["connector", "lora-r4"]


def test_a_setting_that_was_done_otherwise_is_refused(tmp_path, trained):
    study_of(tmp_path).run(0, ("lora-r4",))
    other = replace(mixlora.QUICK, overrides={**mixlora.QUICK.overrides, "training.max_steps": 3})
    with pytest.raises(RunError, match=r"lora-r4 holds a run with training.max_steps: 2"):
        study_of(tmp_path, other).run(0, ("lora-r4",))


def test_a_connector_of_another_alignment_is_refused(tmp_path, trained, monkeypatch):
    study_of(tmp_path).run(0, ())
    monkeypatch.setattr(mixlora, "NOT_TRAINED", {"training.max_steps": 1})
    study_of(tmp_path).run(0, ())  # what a connector's run does not train is no matter
    with pytest.raises(RunError, match=r"connector holds .* of 10 alignment steps, .* has 600;"):
        study_of(tmp_path, mixlora.FULL, quick=False).run(0, ())
    assert trained == ["connector"]


@pytest.mark.slow
def test_the_quick_study_has_all_its_settings(tmp_path):
    command = [sys.executable, "-m", "studies.mixlora", str(tmp_path / "out"), "--quick"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    page = json.loads((tmp_path / "out" / "mixlora.json").read_text())
    assert set(page["settings"]) == {"lora-r16", "r4-weighted"}
    assert set(page["interference"]["before"]) == {"lora-r16", "r4-weighted"}
    assert set(page["interference"]["after"]) == {"lora-r16", "r4-weighted"}
    assert set(page["routing"]) == {"r4-weighted"}
