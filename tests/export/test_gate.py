"""Nothing leaves that differs from the trained model in one tensor, however little."""

import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from varifocal.assemble import open_run
from varifocal.errors import ModelError
from varifocal.exporting import adapters, artifacts, gguf, plain_tensors
from varifocal.exporting.export import _left_in_group, export_run
from varifocal.exporting.request import Order
from varifocal.recipe import load_recipe

LORA = {"type": "lora", "lora_alpha": 24.0}
FORMS = ["merged", "llava", "gguf", "lora"]


@pytest.fixture(scope="module")
def lora_run(make_run):
    return make_run(LORA)


@pytest.fixture(scope="module")
def timid_run(make_run):
    """A LoRA that has hardly learnt: a layer of it changes logits by less than the gate's bound."""
    run = make_run(LORA)
    _, parts = open_run(run.root)
    for name, parameter in parts.model.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(3e-5)
    parts.model.save_pretrained(run.adapter)
    return run


def refused(run, form, out, **options):
    with pytest.raises(ModelError) as told:
        export_run(Order(run, form, num_prompts=2, **options), out)
    assert not out.exists()
    return str(told.value)


def nudged(tensor):
    """Move one number to its neighbour in the number format."""
    moved = tensor.clone()
    flat = moved.view(-1)
    flat[0] = flat[0] * (1 + 4 * torch.finfo(tensor.dtype).eps)
    return moved


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("form", FORMS)
def test_one_number_that_is_one_step_off_on_disk(lora_run, tmp_path, monkeypatch, form, dtype):
    calls = iter(range(10_000))

    def wrong(store):
        return lambda tensor: nudged(store(tensor)) if next(calls) == 3 else store(tensor)

    monkeypatch.setattr(plain_tensors, "as_stored", wrong(plain_tensors.as_stored))
    monkeypatch.setattr(adapters, "as_stored", wrong(adapters.as_stored))
    told = iter(range(10_000))
    numpy = gguf.as_numpy
    monkeypatch.setattr(gguf, "as_numpy", lambda t: numpy(nudged(t) if next(told) == 3 else t))
    assert "1 of" in refused(lora_run, form, tmp_path / "out", dtype=dtype)


@pytest.mark.parametrize("form", ["merged", "llava"])
def test_two_layers_that_have_changed_places_on_disk(lora_run, tmp_path, monkeypatch, form):
    save = plain_tensors.save_file

    def swapped(tensors, *rest, **options):
        one, other = (next(n for n in tensors if f"layers.{i}.mlp.up_proj" in n) for i in (0, 1))
        save({**tensors, one: tensors[other], other: tensors[one]}, *rest, **options)

    monkeypatch.setattr(plain_tensors, "save_file", swapped)
    assert "up_proj.weight was read back" in refused(lora_run, form, tmp_path / "out")


@pytest.mark.parametrize("form", ["merged", "llava", "gguf"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_of_a_timid_adapter_that_is_left_out(timid_run, tmp_path, monkeypatch, form, dtype):
    """Its logits alone would pass, as the test below sees; the layer by itself does not."""
    found = artifacts.plain_model

    def without_one(written, number_format, **options):
        content = found(written, number_format, **options)
        name = "model.layers.1.self_attn.v_proj.weight"
        base = written.get_submodule("model.layers.1.self_attn.v_proj").get_base_layer()
        content.tensors[name] = lambda: base.weight.detach().float()
        return content

    monkeypatch.setattr(artifacts, "plain_model", without_one)
    told = refused(timid_run, form, tmp_path / "out", dtype=dtype)
    assert "in model.layers.1.self_attn.v_proj the adapter changes" in told


def test_a_layer_left_out_of_a_lora(timid_run, tmp_path, monkeypatch):
    taken = artifacts.own_lora

    def without_one(model, name):
        files = taken(model, name)
        for part in "AB":
            del files.weights[
                f"base_model.model.model.layers.1.self_attn.v_proj.lora_{part}.weight"
            ]
        files.config.target_modules = {
            n for n in files.config.target_modules if n != "model.layers.1.self_attn.v_proj"
        }
        return files

    monkeypatch.setattr(artifacts, "own_lora", without_one)
    assert "is scaled by None as written" in refused(timid_run, "lora", tmp_path / "out")


@pytest.mark.parametrize("part", ["q_proj", "k_proj"])
def test_a_permutation_that_is_forgotten(lora_run, tmp_path, monkeypatch, part):
    pairs = gguf._in_pairs
    monkeypatch.setattr(
        gguf, "_in_pairs", lambda t, name, config: t if part in name else pairs(t, name, config)
    )
    assert f"{part}.weight was read back" in refused(lora_run, "gguf", tmp_path / "out")


def test_an_unadapted_tensor_that_is_anothers(lora_run, tmp_path, monkeypatch):
    """The logits in float32 tell, where no adapter is."""
    found = artifacts.plain_model

    def crossed(written, number_format, **options):
        content = found(written, number_format, **options)
        one, other = (f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1))
        tensors = content.tensors
        tensors[one], tensors[other] = tensors[other], tensors[one]
        return content

    monkeypatch.setattr(artifacts, "plain_model", crossed)
    for dtype in ("float32", "bfloat16"):
        assert "its logits differ" in refused(lora_run, "merged", tmp_path / "out", dtype=dtype)


def test_rounding_is_told_apart(lora_run, tmp_path):
    (done,) = export_run(
        Order(lora_run, "merged", dtype="bfloat16", num_prompts=4), tmp_path / "out"
    )
    assert done.parity.relative_gap < 1e-5
    assert done.rounding is not None
    assert 1e-3 < done.rounding.relative_gap < 0.05
    page = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert page["rounding"]["dtype"] == "bfloat16"
    assert page["dtype"] == "float32"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Rounding the weights to bfloat16 comes on top of that." in card
    (plain,) = export_run(Order(lora_run, "merged", num_prompts=2), tmp_path / "plain")
    assert plain.rounding is None
    assert load_file(tmp_path / "out/model.safetensors")["lm_head.weight"].dtype == torch.bfloat16


def test_the_weights_are_rounded_once(make_run, tmp_path):
    """A bfloat16 run in float16: the base goes there by float32, with its adapter inside."""
    run = make_run(LORA, dtype="bfloat16")
    (done,) = export_run(Order(run, "merged", dtype="float16", num_prompts=2), tmp_path / "out")
    _, parts = open_run(run.root)
    layer = parts.base.language_model.model.layers[0].self_attn.q_proj
    change = layer.get_delta_weight("default").float()
    expected = (layer.base_layer.weight.float() + change).half()
    stored = load_file(done.directory / "model.safetensors")
    assert torch.equal(stored["model.layers.0.self_attn.q_proj.weight"], expected)


def test_a_number_that_the_format_cannot_hold(make_run, tmp_path, parts_directory):
    model = AutoModelForCausalLM.from_pretrained(parts_directory / "language")
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[0, 0] = 1e6
    model.save_pretrained(tmp_path / "large")
    for file in (parts_directory / "language").glob("*token*"):
        (tmp_path / "large" / file.name).write_bytes(file.read_bytes())
    template = parts_directory / "language" / "chat_template.jinja"
    (tmp_path / "large" / template.name).write_text(template.read_text())
    run = make_run({"type": "none"}, language=tmp_path / "large")
    told = refused(run, "merged", tmp_path / "out", dtype="float16")
    assert "gate_proj.weight holds numbers up to 1e+06, which float16 cannot hold" in told
    export_run(Order(run, "merged", dtype="bfloat16", num_prompts=2), tmp_path / "out")


def test_where_float32_does_not_fit_layers_are_compared_one_by_one(make_run, tmp_path, monkeypatch):
    run = make_run(LORA, dtype="bfloat16")
    monkeypatch.setattr("varifocal.exporting.export.free_bytes", lambda device: 0)
    (done,) = export_run(Order(run, "merged", num_prompts=2), tmp_path / "out")
    assert (done.parity.dtype, done.layers) == ("bfloat16", 8)
    assert done.rounding is None
    assert any("did not fit into memory" in note for note in done.notes)
    found = artifacts.plain_model

    def slightly_wrong(written, number_format, **options):
        content = found(written, number_format, **options)
        name = "model.layers.1.self_attn.k_proj.weight"
        produce = content.tensors[name]
        content.tensors[name] = lambda: produce() * 1.001
        return content

    monkeypatch.setattr(artifacts, "plain_model", slightly_wrong)
    assert "in model.layers.1.self_attn.k_proj" in refused(run, "merged", tmp_path / "wrong")


def test_exporting_leaves_the_run_and_the_next_form_alone(lora_run, tmp_path):
    """LoRAs were merged in place once: what came after was another model."""
    before = {file: file.read_bytes() for file in lora_run.root.rglob("*") if file.is_file()}
    export_run(Order(lora_run, "merged", num_prompts=2), tmp_path / "merged")
    export_run(Order(lora_run, "lora", num_prompts=2), tmp_path / "lora")
    after = {file: file.read_bytes() for file in lora_run.root.rglob("*") if file.is_file()}
    assert after == before


def test_logits_alone_would_let_a_timid_adapter_go(timid_run, tmp_path, monkeypatch):
    """Else the layers' own comparison would not be needed, and not be tested above."""
    monkeypatch.setattr(artifacts, "check_layers", lambda *_: 0)
    found = artifacts.plain_model

    def without_one(written, number_format, **options):
        content = found(written, number_format, **options)
        layer = written.get_submodule("model.layers.1.self_attn.v_proj")
        weight = layer.get_base_layer().weight.detach().float()
        content.tensors["model.layers.1.self_attn.v_proj.weight"] = lambda: weight
        return content

    monkeypatch.setattr(artifacts, "plain_model", without_one)
    export_run(Order(timid_run, "merged", num_prompts=2), tmp_path / "out")


SCALES = {
    "rslora": {"use_rslora": True},
    "alphas": {
        "alpha_pattern": {"q_proj": 40, "^language_model.model.layers.1.self_attn.k_proj": 3}
    },
    "both": {"use_rslora": True, "alpha_pattern": {"layers.0.self_attn.v_proj": 11}},
}


@pytest.mark.parametrize("changes", SCALES.values(), ids=SCALES)
@pytest.mark.parametrize("form", FORMS)
def test_scales_of_a_lora_are_the_runs(make_run, tmp_path, changes, form):
    run = make_run(LORA)
    file = run.adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    _, parts = open_run(run.root)
    scales = {
        name.removeprefix("language_model."): part.scaling["default"]
        for name, part in parts.base.named_modules()
        if isinstance(part, LoraLayer) and "vision" not in name
    }
    assert len(set(scales.values())) > (1 if "alpha_pattern" in changes else 0)
    (done,) = export_run(Order(run, form, num_prompts=2), tmp_path / "out")
    if form == "lora":
        base = AutoModelForCausalLM.from_pretrained(_base_of(run))
        model = PeftModel.from_pretrained(base, done.directory)
        found = {
            name: part.scaling["default"]
            for name, part in model.get_base_model().named_modules()
            if isinstance(part, LoraLayer)
        }
        assert found == scales


def _base_of(run):
    return load_recipe(run.recipe, check_paths=False).model.language_model


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({"memory.max": "100", "memory.current": "70", "memory.stat": "inactive_file 20"}, [50]),
        ({"memory.max": "max", "memory.current": "70", "memory.stat": "inactive_file 20"}, []),
        (
            {
                "memory/memory.limit_in_bytes": "100",
                "memory/memory.usage_in_bytes": "90",
                "memory/memory.stat": "total_inactive_file 5",
            },
            [15],
        ),
        ({}, []),
    ],
)
def test_the_memory_that_a_container_leaves(tmp_path, files, left):
    """Of both kinds of control group; files in the cache count as free."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert _left_in_group(tmp_path) == left
