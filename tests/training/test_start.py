"""A training that starts from another run's adapter."""

import pytest
import torch
from safetensors.torch import load_file

from varifocal.errors import RecipeError
from varifocal.training.train import run_training

MMA = {"type": "mma", "bottleneck_dim": 4}
HARD = {"type": "mixlora", "num_factors": 4, "rank": 2, "selection": "hard"}
LORA = {"type": "lora", "rank": 2}


def adapter_of(root):
    return load_file(root / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("tuner", [MMA, HARD, LORA], ids=lambda tuner: tuner["type"])
def test_it_has_every_tensor_of_the_run_it_starts_from(recipe, tmp_path, tuner):
    run_training(recipe({"tuner": tuner, "training.max_steps": 1}), tmp_path / "first")
    weights = {"tuner": {**tuner, "weights": str(tmp_path / "first")}, "seed": 9}
    run_training(recipe({**weights, "training.max_steps": 0}), tmp_path / "second")
    first, second = adapter_of(tmp_path / "first"), adapter_of(tmp_path / "second")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    run_training(recipe({"tuner": tuner, "seed": 9, "training.max_steps": 0}), tmp_path / "fresh")
    assert any(
        not torch.equal(t, first[name]) for name, t in adapter_of(tmp_path / "fresh").items()
    )


def test_another_tuner_or_base_is_refused(recipe, tmp_path):
    run_training(recipe({"tuner": MMA, "training.max_steps": 0}), tmp_path / "first")
    weights = {"weights": str(tmp_path / "first")}
    for other in ({**MMA, "bottleneck_dim": 8}, LORA):
        page = recipe({"tuner": {**other, **weights}, "training.max_steps": 0})
        with pytest.raises(RecipeError, match="was trained with another tuner or connector"):
            run_training(page, tmp_path / "second")
    config = tmp_path / "first" / "adapter" / "adapter_config.json"
    digest = '"base_fingerprint": "'
    config.write_text(config.read_text().replace(digest, f"{digest}0"))
    page = recipe({"tuner": {**MMA, **weights}, "training.max_steps": 0})
    with pytest.raises(RecipeError, match="was trained on other models than this recipe names"):
        run_training(page, tmp_path / "second")
    with pytest.raises(RecipeError, match=r"would be lost: tuner\.weights puts another"):
        recipe({"tuner": {**MMA, **weights}, "alignment": {"steps": 1}})
