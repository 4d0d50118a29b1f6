"""Training that encodes while it trains, and training from streams."""

import json

import pytest
from safetensors.torch import load_file

from varifocal.errors import DataError, Stopped
from varifocal.run import RunDirectory
from varifocal.training.callbacks import StopWish
from varifocal.training.train import run_training

LAZY = {"data.lazy": True, "training.max_steps": 8, "training.save_steps": 3}


def adapter(run):
    return load_file(run.adapter / "adapter_model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.fixture
def lines(tmp_path):
    """An Alpaca-like file, in the order of its numbers."""
    file = tmp_path / "lines.jsonl"
    rows = ({"instruction": f"Say {number}", "output": f"{number}"} for number in range(40))
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_a_lazy_run_reports_what_it_held(tmp_path, recipe):
    result = run_training(recipe(LAZY), tmp_path / "run")
    report = json.loads(RunDirectory(tmp_path / "run").data.read_text())
    assert result.steps == 8
    assert report["encoded_while_training"]
    assert 0 < report["packing_efficiency"] <= 1


def test_a_lazy_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, recipe, monkeypatch):
    run_training(recipe(LAZY), tmp_path / "whole")
    asked = iter([False] * 4 + [True] * 100)
    with monkeypatch.context() as patch:
        given = property(lambda self: next(asked), lambda self, value: None)
        patch.setattr(StopWish, "given", given, raising=False)
        with pytest.raises(Stopped, match="stopped after step"):
            run_training(recipe(LAZY), tmp_path / "halved")
    resumed = run_training(recipe(LAZY), tmp_path / "halved", resume=True)
    whole, halved = (RunDirectory(tmp_path / name) for name in ("whole", "halved"))
    assert same(adapter(whole), adapter(halved))
    assert resumed.steps == 8


def test_the_mixture_of_a_run_is_written_down(tmp_path, recipe):
    asked = {"data.mixture.total": 12, "data.mixture.language_fraction": 0.25}
    run_training(recipe({**asked, "training.max_steps": 1}), tmp_path / "run")
    report = json.loads(RunDirectory(tmp_path / "run").data.read_text())
    held = {row["modality"]: row for row in report["realised"]}
    assert {name: row["samples"] for name, row in held.items()} == {"text": 3, "image": 9}
    assert all(0 < row["trained_tokens"] < row["tokens"] for row in held.values())


def test_a_stream_trains_and_needs_a_number_of_steps(tmp_path, recipe, lines):
    streamed = {"data.train": [{"path": str(lines), "format": "alpaca", "streaming": True}]}
    with pytest.raises(DataError, match=r"set training\.max_steps"):
        run_training(recipe(streamed), tmp_path / "endless")
    result = run_training(recipe({**streamed, "training.max_steps": 3}), tmp_path / "run")
    assert result.steps == 3


def test_a_stream_cannot_be_counted(tmp_path, recipe, lines):
    source = {"path": str(lines), "format": "alpaca", "streaming": True}
    page = {"data.train": [source], "data.mixture.total": 5, "training.max_steps": 1}
    with pytest.raises(DataError, match="cannot be counted"):
        run_training(recipe(page), tmp_path / "run")


def test_columns_that_are_not_read_are_told_before_the_first_step(recipe, tmp_path):
    turns = [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "Yes."}]
    row = {"id": "1", "conversations": turns, "rejected": "No."}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    source = {"path": str(tmp_path / "rows.jsonl"), "format": "sharegpt"}
    said = []
    page = recipe({"data.train": [source], "training.max_steps": 1})
    run_training(page, tmp_path / "run", progress=lambda stage, *at: said.append((stage, at[-1])))
    told = "rows.jsonl: as sharegpt, these columns are not read: rejected"
    stages = [stage for stage, _ in said]
    assert ("data", told) in said
    assert stages.index("data") < stages.index("train")
