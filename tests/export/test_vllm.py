"""vLLM's rules, and one server for both routes: read by an emulation of its loader, never run."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

from varifocal.assemble import open_run
from varifocal.data.example import Example, Image, Message
from varifocal.data.rows.packing import Collator
from varifocal.errors import ModelError
from varifocal.exporting.adapters import route_lora
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order
from varifocal.exporting.vllm import check_llava_folder, check_lora

MMA = {
    "type": "mma",
    "router_temperature": 1.0,
    "adapt_vision_tower": False,
    "projection_bias": False,
}
LORA = {"type": "lora", "adapt_vision_tower": False, "lora_alpha": 24.0}
BASE = {"text_route": "base"}


@pytest.fixture(scope="module")
def pairs(make_run, tmp_path_factory):
    """By tuner: a run that leaves text to its base, and what `--to llava --for vllm` writes."""
    made = {}
    for tuner in (MMA, LORA):
        run, out = make_run(tuner | BASE, "siglip"), tmp_path_factory.mktemp("pair") / "out"
        export_run(Order(run, "llava", num_prompts=2, serves="vllm"), out)
        made[tuner["type"]] = (run, out)
    return made


def served(out, *, image):
    """The model that vLLM runs for a request: the base, and the image's LoRA where it has one."""
    model = LlavaForConditionalGeneration.from_pretrained(out / "text").eval()
    if not image:
        return model
    page = json.loads((out / "image" / "adapter_config.json").read_text())
    tensors = load_file(out / "image" / "adapter_model.safetensors")
    scale = page["lora_alpha"] / (page["r"] ** 0.5 if page["use_rslora"] else page["r"])
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in tensors}
    own = dict(model.named_parameters())
    for layer in layers:
        up, down = (tensors[f"base_model.model.{layer}.lora_{part}.weight"] for part in "BA")
        assert down.shape[0] == page["r"]
        with torch.no_grad():
            own[f"{layer}.weight"] += scale * (up @ down)
    return model


def asked(image):
    content = ("Which colour?",) if image is None else (Image(path=image), "Which colour?")
    return Example((Message("user", content),))


@torch.no_grad()
def run_logits(run, example):
    _, parts = open_run(run.root)
    encoded = parts.encoder.encode(example, with_answer=False)
    batch = Collator(0, load_images=parts.load_images)([encoded])
    return parts.model.eval()(**batch, use_cache=False).logits[0], encoded.input_ids


@torch.no_grad()
def served_logits(out, image):
    processor = AutoProcessor.from_pretrained(out / "text")
    parts = [] if image is None else [{"type": "image", "image": str(image)}]
    turn = {"role": "user", "content": [*parts, {"type": "text", "text": "Which colour?"}]}
    given = processor.apply_chat_template(
        [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    model = served(out, image=image is not None)
    return model(**given, use_cache=False).logits[0], given["input_ids"][0]


@pytest.mark.parametrize("tuner", ["mma", "lora"])
def test_one_server_answers_images_by_the_lora_and_text_by_the_base(pairs, image, tuner):
    run, out = pairs[tuner]
    for shown in (image, None):
        expected, ids = run_logits(run, asked(shown))
        found, theirs = served_logits(out, shown)
        assert theirs.tolist() == ids.tolist()
        torch.testing.assert_close(found[:, : expected.shape[-1]], expected, rtol=0, atol=2e-5)
    base, _ = served_logits(out, image)
    with_lora = served(out, image=True).state_dict()
    without = served(out, image=False).state_dict()
    assert any(not torch.equal(with_lora[name], without[name]) for name in with_lora), base


@pytest.mark.parametrize("tuner", ["mma", "lora"])
def test_the_card_names_the_command_and_that_vllm_was_not_run(pairs, tuner):
    card = (pairs[tuner][1] / "image" / "README.md").read_text()
    assert "vllm serve text --enable-lora --max-lora-rank 8 --default-mm-loras" in card
    assert "vLLM itself was not run" in card
    assert check_lora(pairs[tuner][1] / "image") == 8


def test_mma_without_biases_is_a_lora_without_any(make_run, tmp_path):
    run = make_run(MMA)
    done = export_run(Order(run, "lora", num_prompts=2, serves="vllm"), tmp_path / "out")
    for one in done:
        tensors = load_file(one.directory / "adapter_model.safetensors")
        assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)
        assert not json.loads((one.directory / "adapter_config.json").read_text())["lora_bias"]
    assert route_lora(open_run(run.root)[1].model, 1, "base").config.r == 8


def test_biases_are_refused_with_what_to_train(make_run, tmp_path):
    run = make_run(MMA | {"projection_bias": True})
    with pytest.raises(ModelError, match=r"train with tuner\.projection_bias: false"):
        export_run(Order(run, "lora", num_prompts=2, serves="vllm"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"lora_bias": True}, "no bias in an adapter"),
        ({"bias": "lora_only"}, "no bias in an adapter"),
        ({"modules_to_save": ["connector"]}, "modules_to_save has to be empty"),
        ({"use_dora": True}, "no DoRA"),
        ({"r": 600}, "its rank is 600"),
        ({"rank_pattern": {"q_proj": 4}}, "other rank or scale"),
    ],
)
def test_each_rule_of_the_config(pairs, tmp_path, change, rule):
    copied(pairs["lora"][1] / "image", tmp_path, page=change)
    with pytest.raises(ModelError, match=rule):
        check_lora(tmp_path)


@pytest.mark.parametrize(
    ("rename", "rule"),
    [
        (lambda name: name.replace(".weight", ".bias"), "unsupported LoRA weight"),
        (lambda name: name.replace(".lora_A.", ".lora_A.default."), "unsupported LoRA weight"),
        (lambda name: name.removeprefix("base_model.model."), "refused or left out"),
        (lambda name: name.replace("q_proj", "patch_embedding"), "refused or left out"),
    ],
)
def test_each_rule_of_the_names(pairs, tmp_path, rename, rule):
    copied(pairs["lora"][1] / "image", tmp_path, rename=rename)
    with pytest.raises(ModelError, match=rule):
        check_lora(tmp_path)


def copied(source, target, page=None, rename=None):
    told = json.loads((source / "adapter_config.json").read_text()) | (page or {})
    (target / "adapter_config.json").write_text(json.dumps(told))
    tensors = load_file(source / "adapter_model.safetensors")
    tensors = {rename(name) if rename else name: tensor for name, tensor in tensors.items()}
    save_file(tensors, target / "adapter_model.safetensors")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "generation_config.json", "processor_config.json"]
)
def test_a_llava_without_a_file_is_refused(pairs, tmp_path, name):
    for file in (pairs["lora"][1] / "text").iterdir():
        if file.is_file() and file.name != name:
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(ModelError, match=f"it has no {name}"):
        check_llava_folder(tmp_path)


def test_a_gguf_is_not_for_vllm(make_run, tmp_path):
    with pytest.raises(ModelError, match="vLLM reads --to lora, llava or merged"):
        export_run(Order(make_run(LORA), "gguf", num_prompts=2, serves="vllm"), tmp_path / "out")
