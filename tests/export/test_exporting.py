"""The gate, the files, the memory, the refusals and the hub."""

import json
import weakref

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from varifocal.assemble import open_run
from varifocal.errors import ModelError, RunError
from varifocal.exporting import plain_tensors
from varifocal.exporting.export import export_run, push
from varifocal.exporting.folders import read_parity
from varifocal.exporting.plain_tensors import PlainModel, fold_route, write_plain
from varifocal.exporting.request import Order, check_possible
from varifocal.recipe import load_recipe
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


def test_adapters_without_a_router_are_refused_with_the_way_out(mma_run, tmp_path):
    page = mma_run.recipe.read_text()
    assert "  router: true\n" in page
    file = tmp_path / "recipe.yaml"
    file.write_text(page.replace("  router: true\n", "  router: false\n"))
    recipe = load_recipe(file, check_paths=False)
    with pytest.raises(ModelError, match=r"have none \(tuner.router: false\); serve the run"):
        check_possible(Order(mma_run, "merged"), recipe, None)


def test_shards_hold_every_tensor_once_and_no_more_than_was_asked(mma_run, tmp_path):
    limit = 1e-5  # GiB: 10,737 bytes
    text, _ = export_run(Order(mma_run, "merged", num_prompts=2, shard_gib=limit), tmp_path / "out")
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


def test_writing_keeps_one_shard_in_memory(tmp_path, monkeypatch):
    names = [f"part.{number}" for number in range(12)]
    shapes = dict.fromkeys(names, torch.empty(1003, device="meta"))
    tensors = dict.fromkeys(names, lambda: torch.ones(1003))
    content = PlainModel(LlamaForCausalLM, LlamaForCausalLM.config_class(), None, tensors, shapes)
    made, alive, store, save = [], [], plain_tensors.as_stored, plain_tensors.save_file

    def stored(tensor):
        ready = store(tensor)
        made.append(weakref.ref(ready))
        return ready

    def watched(*args, **kwargs):
        alive.append(sum(tensor() is not None for tensor in made))
        save(*args, **kwargs)

    monkeypatch.setattr(plain_tensors, "as_stored", stored)
    monkeypatch.setattr(plain_tensors, "save_file", watched)
    write_plain(content, tmp_path, shard_gib=3.5 * 4 * 1003 / 2**30)
    assert alive == [3, 3, 3, 3]


def test_a_fold_without_its_bias_does_not_leave(mma_run, tmp_path, monkeypatch):
    whole = folding.fold_linear

    def without_bias(weight, bias, folded, *, dtype=None):
        folded_weight, shifted = whole(weight, bias, folded, dtype=dtype)
        return folded_weight, torch.zeros_like(shifted)

    monkeypatch.setattr("varifocal.exporting.plain_tensors.fold_linear", without_bias)
    with pytest.raises(ModelError, match=r"not the trained model: in model\.layers\.0.*q_proj"):
        export_run(Order(mma_run, "merged", num_prompts=3), tmp_path / "out")
    assert not list(tmp_path.rglob("*.safetensors"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("form", ["merged", "lora"])
def test_gpt2s_turned_weights_leave_as_they_are_held(make_run, tmp_path, save_gpt2, form):
    """Its linears hold [inputs, outputs]; the gate compares, at float32's rounding."""
    run = make_run({"type": "mma", "router_temperature": 1.0}, tower=None, language=save_gpt2)
    text, image = export_run(Order(run, form, num_prompts=2), tmp_path / "out")
    assert max(text.parity.relative_gap, image.parity.relative_gap) < 1e-5


@pytest.mark.parametrize("form", ["merged", "lora"])
def test_where_the_second_route_fails_the_first_does_not_leave_either(
    mma_run, tmp_path, monkeypatch, form
):
    out = tmp_path / "out"
    export_run(Order(mma_run, form, num_prompts=2), out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert {"text", "image"} <= {path.name for path in before}
    maps = folding.fold_maps
    for room in ("plain_tensors", "adapters"):  # the image route gets the text route's weights
        monkeypatch.setattr(
            f"varifocal.exporting.{room}.fold_maps", lambda model, _: maps(model, 0)
        )
    told = []
    with pytest.raises(ModelError, match=r"out/image is not the trained.*nothing was written"):
        export_run(Order(mma_run, form, num_prompts=2), out, lambda *step: told.append(step))
    assert told[-1] == ("export", 2, 3, f"{out / 'image'}: writing and comparing")
    # text was written, and had passed
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert [path.name for path in sorted(out.iterdir())] == ["image", "text"]


def test_a_bound_of_ones_own_is_kept_to(mma_run, tmp_path):
    with pytest.raises(ModelError, match=r"allowed: 0\)"):
        export_run(Order(mma_run, "merged", num_prompts=2, max_gap=0.0), tmp_path / "out")


def test_the_card_tells_how_near_it_is(mma_run, tmp_path):
    text, image = export_run(Order(mma_run, "lora", num_prompts=2), tmp_path / "out")
    card = (image.directory / "README.md").read_text()
    assert "PeftModel.from_pretrained" in card
    assert f"{image.parity.largest_gap:.3g} (allowed" in card
    assert "| verdict | passed |" in card
    assert read_parity(text.directory)["largest_gap"] == text.parity.largest_gap


@pytest.mark.parametrize(
    ("tuner", "to", "fix"),
    [
        ({"type": "mixlora"}, "merged", "--to route --prompt"),
        ({"type": "mixlora"}, "gguf", "--to route --prompt"),
        ({"type": "lora_experts"}, "lora", "every token weighs this run's LoRA experts anew"),
        ({"type": "lora_experts", "router": "instance"}, "merged", "(--to route --prompt '...')"),
        ({"type": "none"}, "lora", "use --to merged"),
        ({"type": "full"}, "lora", "use --to merged"),
        ({"type": "lora"}, "route", "give --prompt with it"),
    ],
)
def test_what_cannot_be_had_says_what_can(make_run, tmp_path, tuner, to, fix):
    with pytest.raises(ModelError) as told:
        export_run(Order(make_run(tuner), to), tmp_path / "out")
    assert fix in str(told.value)


def test_a_quantised_base_says_how_it_leaves(mma_run, tmp_path, monkeypatch):
    """bitsandbytes itself is tried in tests/models; here only what an export says."""
    recipe, parts = open_run(mma_run.root)
    section = recipe.model.model_copy(update={"quantization": "nf4"})
    recipe = recipe.model_copy(update={"model": section})
    parts.base.is_quantized = True
    monkeypatch.setattr("varifocal.exporting.export.open_run", lambda *_, **__: (recipe, parts))
    with pytest.raises(ModelError, match=r"held in nf4.*set model.quantization to null in"):
        export_run(Order(mma_run, "merged"), tmp_path / "out")


def test_what_passed_is_uploaded_in_private(mma_run, tmp_path, hub):
    export_run(Order(mma_run, "lora", num_prompts=2), tmp_path / "out")
    assert push(tmp_path / "out", "me/mine") == "https://hub/me/mine"
    assert hub == [("me/mine", True), ("me/mine", ["image", "text"])]


def test_what_did_not_pass_and_what_is_no_export_are_not_uploaded(mma_run, tmp_path, hub):
    export_run(Order(mma_run, "lora", num_prompts=2), tmp_path / "out")
    file = tmp_path / "out" / "image" / "parity.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "passed": False}))
    with pytest.raises(ModelError, match="image did not pass the parity gate"):
        push(tmp_path / "out", "me/mine")
    with pytest.raises(RunError, match="no export of Varifocal"):
        push(mma_run.root, "me/mine")
    assert hub == []


def test_a_hub_that_refuses_ends_in_a_sentence(mma_run, tmp_path, hub, monkeypatch):
    import huggingface_hub

    def refuse(*_, **__):
        raise OSError("no network\nat all")

    export_run(Order(mma_run, "lora", num_prompts=2), tmp_path / "out")
    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with pytest.raises(ModelError, match="as me/mine: no network; log in with"):
        push(tmp_path / "out", "me/mine")
