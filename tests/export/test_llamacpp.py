"""Two files for llama.cpp: a language model, and the tower and projector that make its tokens."""

import json
import shutil

import pytest
import torch

from varifocal.assemble import open_run
from varifocal.errors import ModelError
from varifocal.exporting import mmproj
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order

gguf = pytest.importorskip("gguf")

MMA = {"type": "mma", "router_temperature": 1.0, "adapt_vision_tower": False}
LORA = {"type": "lora", "adapt_vision_tower": True}


@pytest.mark.parametrize(
    ("tuner", "places"), [(MMA, ["text", "image"]), (LORA, [""]), ({"type": "full"}, [""])]
)
def test_two_files_hold_what_llama_cpp_reads(make_run, tmp_path, tuner, places):
    done = export_run(Order(make_run(tuner, "siglip"), "llamacpp", num_prompts=2), tmp_path / "out")
    assert [one.directory for one in done] == [tmp_path / "out" / place for place in places]
    if places[0] == "text":
        assert not (done[0].directory / "mmproj.gguf").exists()
    reader = gguf.GGUFReader(done[-1].directory / "mmproj.gguf")
    header = {name: field.contents() for name, field in reader.fields.items()}
    assert (header["clip.projector_type"], header["clip.vision.block_count"]) == ("mlp", 3)
    assert header["clip.use_gelu"]
    assert "clip.vision.feature_layer" not in header  # llama.cpp leaves the last block out itself
    names = {tensor.name for tensor in reader.tensors}
    assert not names & {"v.post_ln.weight", "v.class_embd"}
    assert "28 x 28" in (done[-1].directory / "README.md").read_text()


def test_a_clip_run_is_refused_with_the_build_that_reads_it_otherwise(make_run, tmp_path):
    with pytest.raises(ModelError, match=r"build 10257\) reads a CLIP tower's tokens in another"):
        export_run(Order(make_run(LORA), "llamacpp", num_prompts=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


IN_ITS_ORDER = {"type": "mlp2x_gelu", "image_tokens": "llamacpp"}


def test_a_clip_run_in_llama_cpps_order_leaves(make_run, tmp_path):
    run = make_run(LORA, "clip", connector=IN_ITS_ORDER)
    (done,) = export_run(Order(run, "llamacpp", num_prompts=2), tmp_path / "out")
    tensors = {
        tensor.name: torch.tensor(tensor.data)
        for tensor in gguf.GGUFReader(done.directory / "mmproj.gguf").tensors
    }
    _, parts = open_run(run.root)
    model = parts.base.vision_tower.model
    positions = model.state_dict()
    own = next(t for n, t in positions.items() if n.endswith("position_embedding.weight"))
    assert torch.equal(tensors["v.position_embd.weight"], torch.cat([own[1:], own[:1]]))
    with pytest.raises(ModelError, match="which LLaVA has not: use --to llamacpp"):
        export_run(Order(run, "llava", num_prompts=2), tmp_path / "llava")


def test_a_tower_without_a_class_token_has_no_such_order(make_run):
    with pytest.raises(ModelError, match=r"leave connector\.image_tokens out"):
        make_run(LORA, "siglip", connector=IN_ITS_ORDER)


@pytest.mark.parametrize("name", ["mlp.fc1", "self_attn.q_proj", "self_attn.v_proj"])
def test_a_tensor_under_another_name_does_not_leave(make_run, tmp_path, monkeypatch, name):
    run = make_run({"type": "none"}, "siglip")
    other = {"mlp.fc1": "mlp.fc2"}.get(name, "self_attn.out_proj")
    swapped = {name: mmproj._BLOCK[other], other: mmproj._BLOCK[name]}
    monkeypatch.setattr(mmproj, "_BLOCK", mmproj._BLOCK | swapped)
    with pytest.raises((ModelError, RuntimeError), match=r"other tokens of an image|shape|size"):
        export_run(Order(run, "llamacpp", num_prompts=2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layer", [-1, 1])
def test_the_layer_that_is_read_is_said(make_run, tmp_path, parts_directory, layer):
    """Else llama.cpp would read the last but one."""
    tower = tmp_path / "siglip"
    shutil.copytree(parts_directory / "siglip", tower)
    page = json.loads((tower / "config.json").read_text())
    (tower / "config.json").write_text(json.dumps(page | {"vision_feature_layer": layer}))
    run = make_run({"type": "none"}, str(tower))
    (done,) = export_run(Order(run, "llamacpp", num_prompts=2), tmp_path / "out")
    reader = gguf.GGUFReader(done.directory / "mmproj.gguf")
    header = {name: field.contents() for name, field in reader.fields.items()}
    assert header["clip.vision.block_count"] == (3 if layer == -1 else 2)
    assert header.get("clip.vision.feature_layer") == ([3] if layer == -1 else None)


def test_half_precision_rounds_matrices_alone(make_run, tmp_path):
    run = make_run({"type": "none"}, "siglip")
    order = Order(run, "llamacpp", dtype="float16", num_prompts=2)
    (done,) = export_run(order, tmp_path / "out")
    tensors = gguf.GGUFReader(done.directory / "mmproj.gguf").tensors
    kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    assert kinds["mm.0.weight"] == kinds["v.blk.0.ffn_up.weight"] == "F16"
    assert kinds["v.position_embd.weight"] == kinds["mm.0.bias"] == "F32"
