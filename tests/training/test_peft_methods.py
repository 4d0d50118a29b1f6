"""PEFT's other methods through a recipe: each is trained, opened again, and off is the base."""

import re
import shutil
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from varifocal.assemble import assemble, open_run
from varifocal.errors import ModelError, RecipeError
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order
from varifocal.models.saved import WEIGHTS
from varifocal.recipe import PeftSection
from varifocal.recipe.tuners import PeftMethod
from varifocal.run import RunDirectory
from varifocal.training.train import run_training
from varifocal.training.tuner import attach_tuner, count_parameters, count_trained

SMALL = {
    "c3a": {"block_size": 4},
    "fourierft": {"n_frequency": 10},
    "oft": {"oft_block_size": 4},
    "road": {"group_size": 4},
    "gralora": {"gralora_k": 2},
    "miss": {"r": 4},
    "waveft": {"n_frequency": 10},
}
"""Options for layers as narrow as the tests'."""
KINDS = {name: {"method": name, "options": SMALL.get(name, {})} for name in get_args(PeftMethod)}
KINDS["dora"] = {"method": "lora", "options": {"use_dora": True, "r": 2}}
KINDS["rslora"] = {"method": "lora", "options": {"use_rslora": True, "r": 2}}


QUICK = ("ia3", "vera", "dora")  # with `exclude_modules`, without, and of LoRA's own options


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in KINDS],
)
def test_a_run_is_opened_again_as_it_was_trained(tmp_path, recipe, kind, monkeypatch):
    page = recipe({"tuner": {"type": "peft", **KINDS[kind]}, "training.max_steps": 2})
    trained = []

    def attach(*given, **named):
        trained.append(attach_tuner(*given, **named))
        return trained[-1]

    monkeypatch.setattr("varifocal.training.train.attach_tuner", attach)
    run_training(page, tmp_path / "run")
    base = assemble(page).base.eval()
    _, parts = open_run(tmp_path / "run")
    ids = torch.tensor([[5, 6, 7, 8]])
    twice = {
        "input_ids": torch.cat([ids, ids.flip(1)], dim=1),
        "position_ids": torch.arange(4).repeat(2)[None],
        "segment_ids": torch.arange(2).repeat_interleave(4)[None],
        "use_cache": False,
    }
    with torch.no_grad():
        answer = parts.model(input_ids=ids).logits
        assert answer.equal(trained[0].eval()(input_ids=ids).logits)
        packed = parts.model(**twice).logits[:, :4]
        torch.testing.assert_close(packed, answer, rtol=0, atol=1e-5)
        with parts.model.disable_adapter():
            off = parts.model(input_ids=ids).logits
        assert off.equal(base(input_ids=ids).logits)
    assert not answer.equal(off)


def test_a_stopped_run_ends_as_an_unbroken_one(tmp_path, recipe):
    page = {"tuner": {"type": "peft", "method": "vera", "options": {"r": 4}}}
    page |= {"training.max_steps": 4, "training.save_steps": 2}
    run_training(recipe(page), tmp_path / "whole")
    run_training(recipe({**page, "training.max_steps": 2}), tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "adapter")
    run_training(recipe(page), tmp_path / "parts", resume=True)
    ends = [load_file(tmp_path / name / "adapter" / WEIGHTS) for name in ("whole", "parts")]
    assert ends[0].keys() == ends[1].keys()
    assert all(tensor.equal(ends[1][name]) for name, tensor in ends[0].items())


@pytest.mark.parametrize("method", ["ia3", "vera"])  # with `exclude_modules` and without
@pytest.mark.parametrize("tower", [False, True])
def test_the_tower_is_left_alone_unless_asked(recipe, llava, method, tower):
    changes = {"model.vision_tower": None, "model.connector": None, "data.max_length": 200}
    model = assemble(recipe({"model.language_model": str(llava), **changes})).base
    section = PeftSection(method=method, target_modules=("q_proj",), adapt_vision_tower=tower)
    counts = count_trained(attach_tuner(model, section))
    assert counts["language_model"] > 0
    assert ("vision_tower" in counts) == tower


def test_parameters_are_counted_without_weights(recipe):
    page = recipe({"tuner": {"type": "peft", "method": "ia3"}})
    width, key_width, layers = 32, 16, 2
    counts = count_parameters(page)["trained_parameters_by_part"]
    assert counts["language_model"] == layers * (width + 2 * key_width + width)


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("vera", {"rank": 4}, "tuner.options.rank: no option of method vera"),
        ("ia3", {"feedforward_modules": ["fc"]}, "`feedforward_modules` should be a subset"),
        ("lora", {"use_dorra": True}, "no option of method lora; did you mean 'use_dora'?"),
        ("lora", {"modules_to_save": ["norm"]}, "modules_to_save: no option of method lora"),
        ("lora", {"init_lora_weights": "pissa"}, "'pissa' changes the frozen weights"),
        ("lora", {"r": 0}, "tuner: `r` should be a positive integer"),
    ],
)
def test_options_that_no_method_takes_are_refused(recipe, method, options, sentence):
    base = assemble(recipe({})).base
    with pytest.raises(RecipeError, match=re.escape(sentence)):
        attach_tuner(base, PeftSection(method=method, options=options))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "lora"])
@pytest.mark.parametrize("kind", ["dora", "rslora"])
def test_a_lora_of_any_kind_leaves_as_it_was_trained(tmp_path, recipe, kind, form):
    page = recipe({"tuner": {"type": "peft", **KINDS[kind]}, "training.max_steps": 2})
    run_training(page, tmp_path / "run")
    order = Order(RunDirectory(tmp_path / "run"), form, num_prompts=2)
    (exported,) = export_run(order, tmp_path / "out")  # behind the gate of parity
    assert exported.directory.is_dir()


def test_a_direction_has_no_strength(tmp_path, recipe):
    page = recipe({"tuner": {"type": "peft", **KINDS["dora"]}, "training.max_steps": 1})
    run_training(page, tmp_path / "run")
    with pytest.raises(ModelError, match="this model has none that could be scaled"):
        open_run(tmp_path / "run", strength=0.5)


def test_what_is_no_lora_is_not_exported(tmp_path, recipe):
    page = recipe({"tuner": {"type": "peft", "method": "ia3"}, "training.max_steps": 1})
    run_training(page, tmp_path / "run")
    with pytest.raises(ModelError, match="this run's tuner is PEFT's ia3: serve the run itself"):
        export_run(Order(RunDirectory(tmp_path / "run"), "merged"), tmp_path / "out")
