"""A SmolVLM of transformers through a recipe, from a plan to an answer."""

import json

import pytest

from varifocal.assemble import open_run
from varifocal.errors import RecipeError
from varifocal.planning.devices import this_cpu
from varifocal.planning.estimate import estimate
from varifocal.training.train import run_training
from varifocal.training.tuner import count_parameters

SIDE = 56  # 8 x 8 cells, 4 x 4 tokens


@pytest.mark.parametrize("tuner", [{"type": "lora"}, {"type": "mma", "adapt_vision_tower": False}])
def test_it_is_planned_trained_saved_scored_and_asked(
    whole_recipe, smolvlm, tmp_path, score_and_ask, tuner
):
    sizes = {"model.image_side": SIDE, "data.row_length": 400}
    recipe = whole_recipe(smolvlm, tuner, epochs=2, **sizes)
    planned = estimate(recipe, this_cpu(), quick=True)
    run = tmp_path / "run"
    result = run_training(recipe, run)
    cost = json.loads((run / "cost.json").read_text())
    assert result.vision_passes == planned.vision_passes == 18  # nine images, twice
    assert (planned.tokens, planned.flops) == (cost["tokens"], cost["flops"])
    assert count_parameters(recipe)["trained_parameters_by_part"]["connector"] == 4 * 16 * 32
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    _, opened = open_run(run)
    assert opened.encoder.tokens_per_image == 16
    score_and_ask(run)


def test_mma_in_its_tower_is_refused(whole_recipe, smolvlm):
    recipe = whole_recipe(smolvlm, {"type": "mma"}, **{"model.image_side": SIDE})
    with pytest.raises(RecipeError, match=r"tuner\.adapt_vision_tower: .*set it to false"):
        count_parameters(recipe)
