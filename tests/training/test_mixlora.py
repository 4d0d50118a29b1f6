"""MixLoRA through a recipe: trained, watched for collapse, balanced, opened again."""

import pytest
import torch

from varifocal.assemble import open_run
from varifocal.run import RunDirectory
from varifocal.training.train import run_training

MIXLORA = {
    "tuner": {"type": "mixlora", "num_factors": 4, "rank": 2, "dropout": 0.0},
    "training.max_steps": 2,
}


def logged(root):
    return RunDirectory(root).read_metrics()


def test_a_run_logs_how_its_factors_are_used(tmp_path, recipe):
    run_training(recipe(MIXLORA), tmp_path / "run")
    for line in logged(tmp_path / "run"):
        assert 0.5 <= line["factor_entropy"] <= 1  # 2 of 4 factors at least: log 2 / log 4
        assert 0.25 <= line["factor_top_load"] <= 0.5
        assert 0 <= line["router_sharpness"] < 1


@pytest.mark.parametrize("router", ["token", "instance"])
def test_a_run_of_experts_logs_how_they_are_used_and_is_opened_again(tmp_path, recipe, router):
    experts = {"type": "lora_experts", "router": router, "num_experts": 3, "balance": 0.1}
    run_training(recipe({"tuner": experts, "training.max_steps": 2}), tmp_path / "run")
    for line in logged(tmp_path / "run"):
        assert 0 < line["factor_entropy"] <= 1
        assert 1 / 3 <= line["factor_top_load"] < 1
        assert 0 < line["router_sharpness"] < 1
    _, parts = open_run(tmp_path / "run")
    ids = torch.tensor([[5, 6, 7, 8]])
    answer = parts.model(input_ids=ids).logits
    with parts.model.disable_adapter():
        assert not answer.equal(parts.model(input_ids=ids).logits)


def test_other_methods_have_no_factors_to_log(tmp_path, recipe):
    run_training(recipe({"training.max_steps": 1}), tmp_path / "run")
    assert "factor_entropy" not in logged(tmp_path / "run")[0]


def test_the_balance_term_is_added_to_the_loss(tmp_path, recipe):
    run_training(recipe(MIXLORA), tmp_path / "plain")
    run_training(
        recipe({**MIXLORA, "tuner": {**MIXLORA["tuner"], "balance": 0.5}}), tmp_path / "level"
    )
    plain, level = (logged(tmp_path / name)[0]["loss"] for name in ("plain", "level"))
    assert level - plain == pytest.approx(0.5, abs=0.2)  # 1 where the load is even, more elsewhere


def test_a_run_is_opened_again_with_the_same_answers(tmp_path, recipe):
    run_training(recipe(MIXLORA), tmp_path / "run")
    outputs = []
    for _ in range(2):
        _, parts = open_run(tmp_path / "run")
        ids = torch.tensor([[5, 6, 7, 8]])
        outputs.append(parts.model(input_ids=ids).logits)
    assert outputs[0].equal(outputs[1])
