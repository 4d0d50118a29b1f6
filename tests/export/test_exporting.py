"""The gate, the files and the refusals."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from varifocal.assemble import open_run
from varifocal.errors import ModelError
from varifocal.export.exporting import export
from varifocal.export.order import Order
from varifocal.export.plain import fold_route
from varifocal.export.shards import write_plain
from varifocal.tuners.mma import folding


@pytest.mark.parametrize(("route", "modality"), [("text", 0), ("image", 1)])
def test_in_float64_a_folded_route_is_the_run_to_a_millionth(mma_run, tmp_path, route, modality):
    _, parts = open_run(mma_run.root)
    parts.model.double().eval()
    content = fold_route(parts.model, modality, torch.float64)
    write_plain(content, tmp_path, shard_gib=1e-5)
    model = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = torch.arange(30, 60)[None]
    with torch.no_grad():
        marks = torch.full_like(ids, modality)
        expected = parts.model(input_ids=ids, modality_ids=marks, use_cache=False).logits
        found = model(input_ids=ids, use_cache=False).logits
        other = parts.model(input_ids=ids, modality_ids=1 - marks, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (other - expected).abs().max() > 1e-2


def test_shards_hold_every_tensor_once_and_no_more_than_was_asked(mma_run, tmp_path):
    limit = 1e-5  # GiB: 10,737 bytes
    text, _ = export(Order(mma_run, "merged", num_prompts=2, shard_gib=limit), tmp_path / "out")
    index = json.loads((text.directory / "model.safetensors.index.json").read_text())
    names = {}
    for file in sorted(text.directory.glob("*.safetensors")):
        with safe_open(file, "pt") as stored:
            sizes = {n: stored.get_tensor(n).nbytes for n in stored.keys()}  # noqa: SIM118
        assert len(sizes) == 1 or sum(sizes.values()) <= limit * 2**30
        names |= dict.fromkeys(sizes, file.name)
    assert names == index["weight_map"]
    assert len(set(names.values())) > 3
    model = LlamaForCausalLM.from_pretrained(text.directory)
    total = sum(t.nbytes for t in model.state_dict().values())
    assert index["metadata"]["total_size"] == total


def test_a_fold_without_its_bias_does_not_leave(mma_run, tmp_path, monkeypatch):
    whole = folding.fold_linear

    def without_bias(weight, bias, folded, *, dtype=None):
        folded_weight, shifted = whole(weight, bias, folded, dtype=dtype)
        return folded_weight, torch.zeros_like(shifted)

    monkeypatch.setattr("varifocal.export.plain.fold_linear", without_bias)
    with pytest.raises(ModelError, match="is not the trained model: over 3 prompts"):
        export(Order(mma_run, "merged", num_prompts=3), tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_bound_of_ones_own_is_kept_to(mma_run, tmp_path):
    with pytest.raises(ModelError, match=r"allowed: 0\)"):
        export(Order(mma_run, "merged", num_prompts=2, max_gap=0.0), tmp_path / "out")


@pytest.mark.parametrize(
    ("tuner", "to", "mend"),
    [
        ({"type": "mixlora"}, "merged", "--to route --prompt"),
        ({"type": "mixlora"}, "gguf", "--to route --prompt"),
        ({"type": "none"}, "lora", "use --to merged"),
        ({"type": "full"}, "lora", "use --to merged"),
        ({"type": "lora"}, "route", "give --prompt with it"),
    ],
)
def test_what_cannot_be_had_says_what_can(make_run, tmp_path, tuner, to, mend):
    with pytest.raises(ModelError) as told:
        export(Order(make_run(tuner), to), tmp_path / "out")
    assert mend in str(told.value)


def test_a_quantised_base_says_how_it_leaves(mma_run, tmp_path, monkeypatch):
    """bitsandbytes itself is tried in tests/models; here only what an export says."""
    recipe, parts = open_run(mma_run.root)
    section = recipe.model.model_copy(update={"quantization": "nf4"})
    recipe = recipe.model_copy(update={"model": section})
    parts.base.is_quantized = True
    monkeypatch.setattr("varifocal.export.exporting.open_run", lambda *_, **__: (recipe, parts))
    with pytest.raises(ModelError, match=r"held in nf4.*set model.quantization to null in"):
        export(Order(mma_run, "merged"), tmp_path / "out")
