"""`--to model`: a grafted run in one folder, loaded by transformers' Auto classes."""

import json
import shutil

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
)

import varifocal as vf
from varifocal.assemble import open_run
from varifocal.data.example import Image, Message
from varifocal.errors import ModelError
from varifocal.models.grafted import GraftedForConditionalGeneration
from varifocal.serving.engine import Engine, Sampling

TUNERS = {
    "lora": {"type": "lora", "rank": 4, "adapt_vision_tower": True},
    "mma": {"type": "mma", "router_temperature": 1.0, "adapt_vision_tower": True},
    "unrouted": {"type": "mma", "router": False},
    "mixlora": {"type": "mixlora", "num_factors": 6, "rank": 2},
    "lora_base": {"type": "lora", "text_route": "base", "adapt_vision_tower": True},
    "none": {"type": "none"},
    "full": {"type": "full"},
}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    file = tmp_path_factory.mktemp("picture") / "picture.png"
    PIL.Image.effect_noise((40, 30), 80).convert("RGB").save(file)
    return file


def turns(image):
    """Questions without and with an image, as transformers takes them."""
    seen = [{"type": "image", "image": str(image)}, {"type": "text", "text": "What is it?"}]
    return [
        [{"role": "user", "content": [{"type": "text", "text": "Who is it?"}]}],
        [{"role": "user", "content": seen}],
    ]


def answers_of_run(run, image):
    _, parts = open_run(run.root)
    engine = Engine(parts.model, parts.encoder, parts.load_images)
    asked = [("Who is it?",), (Image(path=image), "What is it?")]
    try:
        return [
            engine.answer([Message("user", content)], Sampling(max_new_tokens=12))
            for content in asked
        ]
    finally:
        engine.close()


def answers_of_auto(place, image):
    """Ask by transformers' own classes and `generate` alone."""
    model = AutoModelForImageTextToText.from_pretrained(place)
    processor = AutoProcessor.from_pretrained(place)
    found = []
    for conversation in turns(image):
        asked = processor.apply_chat_template(
            conversation,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            written = model.generate(**asked, max_new_tokens=12, do_sample=False)
        words = written[0, asked["input_ids"].shape[1] :]
        found.append(processor.decode(words, skip_special_tokens=True))
    return model, found


@pytest.mark.parametrize("tuner", TUNERS)
def test_a_run_and_its_model_answer_as_open_run_does(make_run, tmp_path, image, tuner):
    run = make_run(TUNERS[tuner], connector={"hidden_dim": 16, "num_tokens": 4})
    expected = answers_of_run(run, image)
    assert len(set(expected)) == 2
    model, found = answers_of_auto(run.root, image)
    assert isinstance(model, GraftedForConditionalGeneration)
    assert not model.training
    assert found == expected
    (done,) = vf.export(run.root, "model", tmp_path / "out", num_prompts=4)
    assert done.parity.passed
    shutil.move(tmp_path / "out", tmp_path / "elsewhere")  # it names nothing outside of itself
    inside = (tmp_path / "elsewhere" / "adapter_config.json").is_file()
    assert inside is (tuner in ("mma", "unrouted", "mixlora", "lora_base"))
    model, found = answers_of_auto(tmp_path / "elsewhere", image)
    assert isinstance(model, GraftedForConditionalGeneration)
    assert found == expected


def test_an_adapter_in_a_run_can_be_left_out_by_transformers_means(make_run):
    run = make_run(TUNERS["lora"])
    model = AutoModelForImageTextToText.from_pretrained(run.root)
    assert model.active_adapters() == ["default"]
    ids = torch.arange(5)[None]
    with_it = model(input_ids=ids).logits
    model.disable_adapters()
    _, parts = open_run(run.root)
    with parts.model.disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, parts.model(input_ids=ids).logits)
    model.enable_adapters()
    assert torch.equal(model(input_ids=ids).logits, with_it)


def test_a_run_of_a_language_model_opens_as_a_causal_language_model(make_run):
    run = make_run(TUNERS["lora"], tower=None)
    _, parts = open_run(run.root)
    model = AutoModelForCausalLM.from_pretrained(run.root)
    ids = torch.arange(5)[None]
    assert torch.equal(model(input_ids=ids).logits, parts.model(input_ids=ids).logits)
    for kind in (AutoProcessor, AutoTokenizer):
        tokenizer = kind.from_pretrained(run.root)
        assert tokenizer("a").input_ids == parts.processor("a").input_ids
    with pytest.raises(ModelError, match="--to model is for a language model with a vision tower"):
        vf.export(run.root, "model")


def test_the_runs_system_prompt_is_in_its_processor(make_run):
    run = make_run({"type": "none"}, data={"system_prompt": "Größe"})
    for kind in (AutoProcessor, AutoTokenizer):
        read = kind.from_pretrained(run.root)
        text = read.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
        assert "Größe" in text


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"quantization_config": {"load_in_4bit": True}}, "quantization_config cannot be given"),
        ({"device_map": {"": "cpu"}}, "is one device"),
    ],
)
def test_an_option_that_a_run_cannot_take_is_refused(make_run, option, sentence):
    run = make_run({"type": "none"})
    with pytest.raises(ModelError, match=sentence):
        AutoModelForImageTextToText.from_pretrained(run.root, **option)
    model = AutoModelForImageTextToText.from_pretrained(run.root, dtype="bfloat16")
    assert model.language_model.dtype == torch.bfloat16


def test_a_run_is_no_model_of_a_recipe(make_run):
    from varifocal.models.sources import find_checkpoint

    run = make_run({"type": "none"})
    with pytest.raises(ModelError, match=r"is a run and no model.*--to model"):
        find_checkpoint(str(run.root))


@pytest.mark.parametrize("tuner", ["lora", "mma"])
def test_a_wrong_number_on_disk_does_not_leave(make_run, tmp_path, monkeypatch, tuner):
    from varifocal.exporting import artifacts

    run = make_run(TUNERS[tuner])
    name = "adapter_model" if tuner == "mma" else "model"
    write = artifacts._through_pixels

    def spoil(job, directory):
        file = directory / f"{name}.safetensors"
        tensors = load_file(file)
        key = next(key for key in sorted(tensors) if "layers.1" in key and tensors[key].any())
        tensors[key] = -tensors[key]
        save_file(tensors, file, metadata={"format": "pt"})
        return write(job, directory)

    monkeypatch.setattr(artifacts, "_through_pixels", spoil)
    with pytest.raises(ModelError, match="nothing was written"):
        vf.export(run.root, "model", tmp_path / "out", num_prompts=4)
    assert not (tmp_path / "out").exists()


def test_a_rounded_model_tells_what_rounding_costs(make_run, tmp_path):
    run = make_run(TUNERS["mma"])
    (done,) = vf.export(run.root, "model", tmp_path / "out", dtype="bfloat16", num_prompts=4)
    assert done.rounding is not None
    assert done.rounding.largest_gap > 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["model_type"], config["dtype"]) == ("grafted", "bfloat16")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    kinds = {name.partition(".")[0]: tensor.dtype for name, tensor in tensors.items()}
    assert kinds["connector"] == torch.float32
    assert kinds["language_model"] == kinds["vision_tower"] == torch.bfloat16
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AutoModelForImageTextToText.from_pretrained" in card
