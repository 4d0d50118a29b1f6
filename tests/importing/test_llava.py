"""Projectors and LoRAs in the layout of LLaVA's code, written and computed here by hand."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModel, LlamaForCausalLM

import varifocal as vf
from varifocal.assemble import open_run
from varifocal.errors import ModelError

RANK, ALPHA = 2, 6.0
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def projector(kind: str) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    shapes = {"": (32, 16)} if kind == "linear" else {"0.": (32, 16), "2.": (32, 32)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"model.mm_projector.{name}weight"] = 0.3 * torch.randn(shape, generator=random)
        tensors[f"model.mm_projector.{name}bias"] = 0.3 * torch.randn(32, generator=random)
    return tensors


def lora(bases: Path) -> dict[str, Tensor]:
    llama = load_file(bases / "llama" / "model.safetensors")
    random = torch.Generator().manual_seed(2)
    tensors = {}
    for linear in (f"model.layers.{i}.{name}" for i in (0, 1) for name in TARGETS):
        outputs, inputs = llama[f"{linear}.weight"].shape
        at = f"base_model.model.{linear}"
        tensors[f"{at}.lora_A.weight"] = 0.3 * torch.randn(RANK, inputs, generator=random)
        tensors[f"{at}.lora_B.weight"] = 0.3 * torch.randn(outputs, RANK, generator=random)
    return tensors


def save_config(folder: Path, bases: Path, kind: str, **more) -> Path:
    folder.mkdir()
    page = {"model_type": "llava_llama", "_name_or_path": str(bases / "llama")}
    page |= {"mm_vision_tower": str(bases / "clip"), "mm_vision_select_layer": -2}
    page |= {} if kind == "linear" else {"mm_projector_type": kind}
    (folder / "config.json").write_text(json.dumps(page | more))
    return folder


def save_lora(folder: Path, bases: Path, prefix: str, **more) -> None:
    page = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.05}
    page |= {"bias": "none", "target_modules": [name.split(".")[1] for name in TARGETS]}
    (folder / "adapter_config.json").write_text(json.dumps(page | more))
    torch.save(lora(bases), folder / "adapter_model.bin")
    kind = "mlp2x_gelu" if "mm_projector_type" in (folder / "config.json").read_text() else "linear"
    others = {f"{prefix}{name}": tensor for name, tensor in projector(kind).items()}
    torch.save(others, folder / "non_lora_trainables.bin")


def assert_equal_logits(bases: Path, root: Path, kind: str, weights: dict[str, Tensor]) -> None:
    """Compare a run with the plain language model, its weights merged, on projected patches."""
    _, parts = open_run(root)
    llama = LlamaForCausalLM.from_pretrained(bases / "llama")
    clip = CLIPVisionModel.from_pretrained(bases / "clip")
    with torch.no_grad():
        for name, update in weights.items():
            llama.get_parameter(name).add_(update)
        random = torch.Generator().manual_seed(5)
        ids = torch.randint(3, 200, (1, 7), generator=random)
        pixels = torch.randn(1, 3, 28, 28, generator=random)
        states = clip(pixel_values=pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        t = {name.removeprefix("model.mm_projector."): p for name, p in projector(kind).items()}
        if kind == "linear":
            tokens = F.linear(states, t["weight"], t["bias"])
        else:
            hidden = F.gelu(F.linear(states, t["0.weight"], t["0.bias"]))
            tokens = F.linear(hidden, t["2.weight"], t["2.bias"])
        words = llama.model.embed_tokens(ids)
        shown = torch.cat([words[:, :1], tokens, words[:, 1:]], dim=1)
        expected = llama(inputs_embeds=shown).logits
        images = torch.full((1, 4), parts.processor.image_token_id)
        row = torch.cat([ids[:, :1], images, ids[:, 1:]], dim=1)
        found = parts.model(input_ids=row, pixel_values=pixels).logits[..., : expected.shape[-1]]
    size = expected.abs().max()
    torch.testing.assert_close(found / size, expected / size, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_a_projector_becomes_a_run(bases, tmp_path, kind):
    more = {"image_aspect_ratio": "pad"} if kind == "mlp2x_gelu" else {}
    folder = save_config(tmp_path / "theirs", bases, kind, **more)
    torch.save(projector(kind), folder / "mm_projector.bin")
    run = vf.import_checkpoint(folder, "llava", tmp_path / "run", dtype="float32")
    assert run.recipe.data.chat_template == "vicuna_v1"
    images = run.recipe.model.image_preparation
    assert (images and images.fit) == more.get("image_aspect_ratio")
    assert (run.recipe.tuner.type, run.recipe.model.connector.type) == ("none", kind)
    assert_equal_logits(bases, run.root, kind, {})


@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("linear", ""),
        ("mlp2x_gelu", "base_model.model."),
        ("mlp2x_gelu", "base_model.model.model."),
    ],
)
def test_a_lora_becomes_a_run(bases, tmp_path, kind, prefix):
    folder = save_config(tmp_path / "theirs", bases, kind)
    save_lora(folder, bases, prefix)
    run = vf.import_checkpoint(folder, "llava", tmp_path / "run", dtype="float32")
    tuner = run.recipe.tuner
    assert (tuner.type, tuner.rank, tuner.lora_alpha) == ("lora", RANK, ALPHA)
    pairs = lora(bases)
    updates = {
        name.removeprefix("base_model.model.").replace("lora_A.", ""): ALPHA
        / RANK
        * pairs[name.replace("lora_A", "lora_B")]
        @ a
        for name, a in pairs.items()
        if "lora_A" in name
    }
    assert len(updates) == 2 * len(TARGETS)
    assert_equal_logits(bases, run.root, kind, updates)


def save_whole(
    folder: Path, bases: Path, kind: str, *, pickled=True, inside=True, **more: Tensor
) -> dict[str, Tensor]:
    """Write a model that was tuned whole, in two files with an index; return what it had learnt."""
    config = LlamaForCausalLM.from_pretrained(bases / "llama").config.to_dict()
    ours = json.loads(save_config(folder, bases, kind).joinpath("config.json").read_text())
    theirs = {"architectures": ["LlavaLlamaForCausalLM"], "_name_or_path": "./checkpoints/none"}
    (folder / "config.json").write_text(json.dumps(config | ours | theirs))
    for file in (bases / "llama").glob("*token*"):
        shutil.copy(file, folder)
    random = torch.Generator().manual_seed(3)
    trained = load_file(bases / "llama" / "model.safetensors")
    updates = {n: 0.2 * torch.randn(t.shape, generator=random) for n, t in trained.items()}
    tensors = {name: tensor + updates[name] for name, tensor in trained.items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    tensors |= (projector(kind) if inside else {}) | more
    names = sorted(tensors)
    suffix, single = ("bin", "pytorch_model") if pickled else ("safetensors", "model")
    places = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"{single}-0000{number}-of-00002.{suffix}"
        held = {name: tensors[name] for name in part}
        torch.save(held, folder / file) if pickled else save_file(held, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / f"{single}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return updates


@pytest.mark.parametrize(
    ("kind", "pickled", "inside"),
    [("linear", True, True), ("mlp2x_gelu", False, True), ("mlp2x_gelu", True, False)],
)
def test_a_whole_model_becomes_a_run(bases, tmp_path, kind, pickled, inside):
    folder = tmp_path / "theirs"
    updates = save_whole(folder, bases, kind, pickled=pickled, inside=inside)
    if not inside:
        torch.save(projector(kind), folder / "mm_projector.bin")
    run = vf.import_checkpoint(folder, "llava", tmp_path / "run", dtype="float32")
    shutil.rmtree(folder)
    assert run.recipe.model.language_model == str(tmp_path / "run" / "base")
    origin = json.loads((run.root / "imported.json").read_text())
    assert origin["num_tensors"] == len(updates) + 1 + (len(projector(kind)) if inside else 0)
    assert_equal_logits(bases, run.root, kind, updates)


def test_a_whole_models_tower_has_to_be_the_one_that_is_named(bases, tmp_path):
    tower = load_file(bases / "clip" / "model.safetensors")
    before = "" if any(name.startswith("vision_model.") for name in tower) else "vision_model."
    held = {f"model.vision_tower.vision_tower.{before}{n}": t for n, t in tower.items()}
    save_whole(tmp_path / "same", bases, "linear", **held)
    torch.save({}, tmp_path / "same" / "mm_projector.bin")
    run = vf.import_checkpoint(tmp_path / "same", "llava", tmp_path / "run", dtype="float32")
    assert json.loads((run.root / "imported.json").read_text())["num_tensors"] > len(held)
    name, tensor = next(iter(held.items()))
    save_whole(tmp_path / "other", bases, "linear", **held | {name: tensor + 1})
    with pytest.raises(ModelError, match="has other numbers than"):
        vf.import_checkpoint(tmp_path / "other", "llava", tmp_path / "run2", dtype="float32")
    assert not (tmp_path / "run2").exists()


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.memory.weight": torch.ones(2)}, r"1 tensor is unknown \(model\.memory\.weight\)"),
        ({NORM: torch.ones(3)}, r"model\.norm\.weight has the shape \[3\], and its config\.json"),
        ({NORM: None}, r"lacks 1 tensors of its language model \(model\.norm\.weight\)"),
        ({"model.mm_projector.bias": None}, r"1 tensor is missing \(model\.mm_projector\.bias\)"),
    ],
)
def test_a_whole_model_with_other_tensors_is_refused(bases, tmp_path, change, words):
    folder = tmp_path / "theirs"
    save_whole(folder, bases, "linear")
    for file in folder.glob("*.bin"):
        held = torch.load(file)
        more = set(change) if file.name.endswith("1-of-00002.bin") else set(held)
        held |= {name: tensor for name, tensor in change.items() if name in more}
        torch.save({name: tensor for name, tensor in held.items() if tensor is not None}, file)
    with pytest.raises(ModelError, match=words):
        vf.import_checkpoint(folder, "llava", tmp_path / "run", dtype="float32")
    assert not (tmp_path / "run").exists()


def test_a_whole_model_brings_its_own_language_model(bases, tmp_path):
    save_whole(tmp_path / "theirs", bases, "linear")
    with pytest.raises(ModelError, match="leave --language-model out"):
        vf.import_checkpoint(
            tmp_path / "theirs", "llava", tmp_path / "run", language_model=str(bases / "llama")
        )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llava_mpt"}, "is of type llava_mpt, and those that are read are"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer is -1, and only -2 has an equal"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type is 'mlp3x_gelu'; those with"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end is True, and only False"),
        ({"_name_or_path": ""}, "has no _name_or_path: give --language-model"),
        ({"mm_projector_type": "mlp2x_gelu"}, r"missing \(model.mm_projector.0.weight"),
    ],
)
def test_another_config_is_refused(bases, tmp_path, config, words):
    folder = save_config(tmp_path / "theirs", bases, "linear", **config)
    torch.save(projector("linear"), folder / "mm_projector.bin")
    with pytest.raises(ModelError, match=words):
        vf.import_checkpoint(folder, "llava", tmp_path / "run", dtype="float32")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "use_dora is True, and only False has an equal here"),
        ({"bias": "all"}, "bias is 'all', and only 'none' has an equal here"),
        ({"r": None}, "is damaged: it has no rank r, or no list of target_modules"),
        ({"r": 3}, r"lora_A.weight gives \[2, .*need \[3, "),
        ({"target_modules": ["q_proj", "v_proj"]}, "2 tensors are on one side alone|4 tensors are"),
    ],
)
def test_another_lora_is_refused(bases, tmp_path, change, words):
    folder = save_config(tmp_path / "theirs", bases, "linear")
    save_lora(folder, bases, "", **change)
    with pytest.raises(ModelError, match=words):
        vf.import_checkpoint(folder, "llava", tmp_path / "run", dtype="float32")


def test_a_folder_that_lacks_a_part_names_it(bases, tmp_path, run):
    folder = save_config(tmp_path / "theirs", bases, "linear")
    with pytest.raises(ModelError, match=r"has neither mm_projector\.bin nor a LoRA"):
        vf.import_checkpoint(folder, "llava", tmp_path / "run")
    save_lora(folder, bases, "")
    (folder / "non_lora_trainables.bin").unlink()
    with pytest.raises(ModelError, match=r"holds a LoRA and no non_lora_trainables\.bin"):
        vf.import_checkpoint(folder, "llava", tmp_path / "run")
    code, _, err = run("import", "llava", tmp_path, "--out", tmp_path / "run")
    assert code == 2
    assert "is no checkpoint of LLaVA's code: it has no config.json" in err
