"""A Qwen-VL of transformers through a recipe, from a plan to an answer."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from varifocal.assemble import open_run
from varifocal.data.example import Image, Message
from varifocal.data.loading import load_source
from varifocal.data.rows.packing import Collator
from varifocal.errors import RecipeError
from varifocal.planning.devices import this_cpu
from varifocal.planning.estimate import estimate
from varifocal.serving.engine import Engine, Sampling
from varifocal.training.train import run_training
from varifocal.training.tuner import count_parameters


@pytest.fixture
def recipe_of(whole_recipe, qwen_vl):
    """A recipe of a Qwen-VL on the book, two epochs: `recipe_of(type="lora")`."""
    sizes = {"model.image_side": 56, "data.row_length": 400}
    return lambda **tuner: whole_recipe(qwen_vl, tuner, epochs=2, **sizes)


MMA = {"type": "mma", "adapt_vision_tower": False}


@pytest.mark.parametrize(
    ("qwen_vl", "tuner"),
    [("Qwen2VL", MMA), ("Qwen2_5_VL", {"type": "lora"})],
    indirect=["qwen_vl"],
    ids=["2-mma", "2.5-lora"],
)
def test_it_is_planned_trained_scored_and_asked(recipe_of, tmp_path, score_and_ask, tuner):
    run = tmp_path / "run"
    page = recipe_of(**tuner)
    planned = estimate(page, this_cpu(), quick=True)
    result = run_training(page, run)
    cost = json.loads((run / "cost.json").read_text())
    assert result.vision_passes == planned.vision_passes == 18  # nine images, twice
    assert (planned.tokens, planned.flops) == (cost["tokens"], cost["flops"])
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    score_and_ask(run)


@pytest.mark.parametrize("qwen_vl", ["Qwen2_5_VL"], indirect=True)
def test_its_adapter_is_plain_pefts_and_counts_as_transformers_do(recipe_of, tmp_path, qwen_vl):
    run = tmp_path / "run"
    run_training(recipe_of(type="lora"), run)
    recipe, parts = open_run(run)
    sample = next(one for one in _samples(recipe, parts) if one.modality)
    batch = Collator(0, load_images=parts.load_images)([sample])
    base = AutoModelForImageTextToText.from_pretrained(qwen_vl, dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    ids = batch["input_ids"]
    theirs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == base.config.image_token_id).int(),
        **{name: batch[name] for name in ("pixel_values", "image_grid_thw")},
    }
    with torch.no_grad():
        own, other = parts.model(**batch).logits, plain(**theirs).logits
    torch.testing.assert_close(own, other, rtol=0, atol=5e-5)


def _samples(recipe, parts):
    return [parts.encoder.encode(one) for one in load_source(recipe.data.train[0])]


@pytest.mark.parametrize("qwen_vl", ["Qwen2VL"], indirect=True)
def test_conversations_share_a_batch_and_go_on(recipe_of, tmp_path, book):
    """Further images in later turns: every turn is read anew, and none disturbs another."""
    run = tmp_path / "run"
    run_training(recipe_of(type="lora"), run)
    _, parts = open_run(run)
    images = [Image(path=book / "images" / "train" / str(n) / "image.png") for n in (0, 1)]
    first = Message("user", (images[0], "Which colour?"))
    talks = [
        [first],
        [first, Message("assistant", ("Red.",)), Message("user", (images[1], "And this?"))],
        [Message("user", ("What comes after A?",))],
    ]
    sampling = Sampling(max_new_tokens=5)
    alone = []
    for talk in talks:
        engine = Engine(parts.model, parts.encoder, parts.load_images)
        alone.append(engine.answer(talk, sampling))
        engine.close()
    engine = Engine(parts.model, parts.encoder, parts.load_images)
    requests = [engine.submit(talk, sampling) for talk in [*talks, talks[1]]]
    together = ["".join(piece.text for piece in request) for request in requests]
    assert together == [*alone, alone[1]]
    assert engine.answer(talks[1], sampling) == alone[1]  # its first turn has been read before
    assert engine.stats().cached_tokens == 0
    engine.close()


@pytest.mark.parametrize("qwen_vl", ["Qwen2VL"], indirect=True)
def test_mma_in_its_tower_is_refused(recipe_of):
    with pytest.raises(RecipeError, match=r"tuner\.adapt_vision_tower: .*set it to false"):
        count_parameters(recipe_of(type="mma"))
