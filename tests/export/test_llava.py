"""A graft as transformers' LLaVA: its states, its projector, its prompts, its images."""

import json

import PIL.Image
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from varifocal.assemble import open_model, open_run
from varifocal.data.example import Example, Image, Message
from varifocal.data.rows.packing import Collator
from varifocal.errors import ModelError
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order

MMA = {"type": "mma", "router_temperature": 1.0, "adapt_vision_tower": False}
NONE = {"type": "none"}
LORA_BASE = {"type": "lora", "text_route": "base", "adapt_vision_tower": True}


@torch.no_grad()
def own_logits(run, image):
    """What the run says to a question about an image, and the ids it was asked with."""
    _, parts = open_run(run.root)
    example = Example((Message("user", (Image(path=image), "Which colour?")),))
    encoded = parts.encoder.encode(example, with_answer=False)
    batch = Collator(0, load_images=parts.load_images)([encoded])
    return parts.model.eval()(**batch, use_cache=False).logits[0], encoded.input_ids


@torch.no_grad()
def llava_logits(directory, image):
    processor = AutoProcessor.from_pretrained(directory)
    model = LlavaForConditionalGeneration.from_pretrained(directory).eval()
    parts = [{"type": "image", "image": PIL.Image.open(image)}]
    parts.append({"type": "text", "text": "Which colour?"})
    given = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    return model(**given, use_cache=False).logits[0], given["input_ids"][0]


@pytest.mark.parametrize(
    ("tuner", "tower", "states"),
    [
        (MMA, "clip", ("default", 16)),
        (MMA, "siglip", ("full", 16)),
        ({"type": "lora", "adapt_vision_tower": True}, "clip", ("default", 16)),
        (LORA_BASE, "clip", ("default", 16)),
        (NONE, "siglip", ("full", 16)),
        ({"type": "full"}, "clip", ("default", 16)),
    ],
)
def test_the_llava_says_what_the_run_says(make_run, tmp_path, image, tuner, tower, states):
    run = make_run(tuner, tower)
    done = export_run(Order(run, "llava", num_prompts=4), tmp_path / "out")
    directory = done[-1].directory
    assert directory == tmp_path / ("out/image" if tuner in (MMA, LORA_BASE) else "out")
    expected, ids = own_logits(run, image)
    found, theirs = llava_logits(directory, image)
    assert theirs.tolist() == ids.tolist()
    torch.testing.assert_close(found[:, : expected.shape[-1]], expected, rtol=0, atol=2e-5)
    config = json.loads((directory / "config.json").read_text())
    assert (config["vision_feature_select_strategy"], config["image_seq_length"]) == states
    assert config["architectures"] == ["LlavaForConditionalGeneration"]


def test_its_names_on_disk_are_those_that_transformers_saves(make_run, tmp_path):
    from safetensors import safe_open

    (done,) = export_run(Order(make_run(NONE), "llava", num_prompts=2), tmp_path / "out")
    LlavaForConditionalGeneration.from_pretrained(done.directory).save_pretrained(tmp_path / "own")
    ours, own = (
        safe_open(place / "model.safetensors", "pt") for place in (done.directory, tmp_path / "own")
    )
    assert set(ours.keys()) == set(own.keys())
    assert all(torch.equal(ours.get_tensor(n), own.get_tensor(n)) for n in own.keys())  # noqa: SIM118


def test_the_placeholder_has_a_row_and_is_never_written(make_run, tmp_path):
    (done,) = export_run(Order(make_run(NONE), "llava", num_prompts=2), tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(done.directory)
    placeholder, vocabulary = model.config.image_token_id, model.config.text_config.vocab_size
    assert placeholder == vocabulary - 1
    assert model.generation_config.suppress_tokens == [placeholder]
    table = model.get_input_embeddings().weight
    processor = AutoProcessor.from_pretrained(done.directory)
    assert torch.equal(table[placeholder], table[processor.tokenizer.bos_token_id])
    assert processor.image_token_id == placeholder


def test_tied_tables_stay_tied(make_run, tmp_path, parts_directory, save_tied):
    run = make_run(MMA, language=save_tied)
    done = export_run(Order(run, "llava", num_prompts=2), tmp_path / "out")
    model = LlavaForConditionalGeneration.from_pretrained(done[1].directory)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_text_route_lies_beside_it_as_a_plain_model(mma_run, tmp_path):
    text, image = export_run(Order(mma_run, "llava", num_prompts=2), tmp_path / "out")
    page = json.loads((text.directory / "config.json").read_text())
    assert page["architectures"] == ["LlamaForCausalLM"]
    assert "text route next to it" in (image.directory / "README.md").read_text()


def test_varifocal_opens_it_and_asks_it_the_same_way(mma_run, tmp_path, image):
    done = export_run(Order(mma_run, "llava", num_prompts=2), tmp_path / "out")
    _, parts = open_model(done[1].directory)
    example = Example((Message("user", (Image(path=image), "Which colour?")),))
    encoded = parts.encoder.encode(example, with_answer=False)
    expected, ids = own_logits(mma_run, image)
    assert encoded.input_ids.tolist() == ids.tolist()  # the run's system prompt among them
    batch = Collator(0, load_images=parts.load_images)([encoded])
    with torch.no_grad():
        found = parts.model(**batch, use_cache=False).logits[0]
    torch.testing.assert_close(found[:, : expected.shape[-1]], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_leaves_too(mma_run, tmp_path, dtype):
    done = export_run(Order(mma_run, "llava", dtype=dtype, num_prompts=4), tmp_path / "out")
    assert [one.parity.dtype for one in done] == ["float32", "float32"]
    assert [one.rounding.dtype for one in done] == [dtype, dtype]
    assert all(one.parity.relative_gap < 1e-5 < one.rounding.relative_gap for one in done)
    page = json.loads((done[1].directory / "config.json").read_text())
    assert page["dtype"] == dtype


@pytest.mark.parametrize(
    ("tuner", "options", "fix"),
    [
        (NONE, {"connector": {"hidden_dim": 16}}, "model.connector: {type: mlp2x_gelu"),
        (NONE, {"connector": {"type": "linear"}}, "model.connector: {type: mlp2x_gelu"),
        ({"type": "mma"}, {}, "tuner.adapt_vision_tower: false"),
        (NONE, {"tower": None}, "--to merged, which writes it as what it is"),
    ],
)
def test_what_is_no_llava_says_how_it_could_be(make_run, tmp_path, tuner, options, fix):
    run = make_run(tuner, **options)
    with pytest.raises(ModelError) as told:
        export_run(Order(run, "llava", num_prompts=2), tmp_path / "out")
    assert fix in str(told.value)
    assert not (tmp_path / "out").exists()
