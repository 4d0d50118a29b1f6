"""The processor: placeholders, templates, and what does not belong together."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, CLIPImageProcessorPil

from varifocal.errors import ModelError
from varifocal.models import GraftedProcessor
from varifocal.models.packaged_weights import efficientnet_processor
from varifocal.models.processor import add_placeholder, with_image_parts

RED = Image.new("RGB", (40, 30), (255, 0, 0))
BLUE = Image.new("RGB", (20, 20), (0, 0, 255))


@pytest.fixture
def processor(make_tokenizer):
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    return GraftedProcessor(images, make_tokenizer(), tokens_per_image=5)


def user(*parts):
    kinds = {str: lambda p: {"type": "text", "text": p}}
    content = [kinds.get(type(p), lambda p: {"type": "image", "image": p})(p) for p in parts]
    return {"role": "user", "content": content}


def test_the_placeholder_is_one_token_past_the_tokenizers_own(make_tokenizer, processor):
    plain = make_tokenizer()
    assert processor.image_token_id == len(plain)
    assert plain("what? 12").input_ids == processor.tokenizer("what? 12").input_ids
    assert processor.tokenizer("a<|image|>b").input_ids[1] == processor.image_token_id
    assert add_placeholder(processor.tokenizer) == processor.image_token_id  # added once


def test_each_image_becomes_its_placeholders(processor):
    out = processor(
        text=["a <|image|>b", "c<|image|> and <|image|>"],
        images=[RED, BLUE, RED],
        padding=True,
        return_tensors="pt",
    )
    is_image = out["input_ids"] == processor.image_token_id
    assert is_image.sum(1).tolist() == [5, 10]
    assert out["pixel_values"].shape == (3, 3, 28, 28)
    assert torch.equal(out["pixel_values"][0], out["pixel_values"][2])
    assert out["attention_mask"].shape == out["input_ids"].shape
    text = processor(text=["ab"], return_tensors="pt")
    assert "pixel_values" not in text


@pytest.mark.parametrize(
    ("text", "images", "error"),
    [
        ("no image here", [RED], "Found total 0 .* tokens and 1 images"),
        ("<|image|>", None, "Found 1 .* tokens in the text but no images"),
        ("<|image|><|image|>", [RED], "Found total 2 .* tokens and 1 images"),
    ],
)
def test_text_and_images_must_belong_together(processor, text, images, error):
    with pytest.raises(ModelError, match=error):
        processor(text=text, images=images)


def test_a_conversation_of_text_is_rendered_to_the_letter_as_by_the_tokenizer(processor):
    turns = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "a dog"},
    ]
    expected = processor.tokenizer.apply_chat_template(turns, tokenize=False)
    assert processor.apply_chat_template(turns) == expected
    parts = [turns[0], user("what ", "is it?"), turns[2]]
    assert processor.apply_chat_template(parts) == expected


def test_images_in_a_conversation_stand_where_they_were_put(processor):
    turns = [
        user(RED, "what is it?"),
        {"role": "assistant", "content": "red"},
        user("and ", BLUE, "?"),
    ]
    assert processor.apply_chat_template(turns, add_generation_prompt=True) == (
        "<s>user\n<|image|>what is it?</s>\n<s>assistant\nred</s>\n"
        "<s>user\nand <|image|>?</s>\n<s>assistant\n"
    )
    out = processor.apply_chat_template(
        turns, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    assert (out["input_ids"] == processor.image_token_id).sum() == 10
    pixels = processor.image_processor([RED, BLUE], return_tensors="pt")["pixel_values"]
    assert torch.equal(out["pixel_values"], pixels)


def test_it_feeds_the_model(processor, make_grafted):
    grafted = make_grafted()
    grafted.config.image_token_id = processor.image_token_id
    out = processor.apply_chat_template(
        [[user(RED, "what is it?")], [user("hello")]],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        processor_kwargs={"padding": True, "padding_side": "left", "return_tensors": "pt"},
    )
    generated = grafted.generate(**out, max_new_tokens=3)
    assert generated.shape == (2, out["input_ids"].shape[1] + 3)


def test_round_trip_through_the_auto_class(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert isinstance(loaded, GraftedProcessor)
    assert loaded.tokens_per_image == 5
    assert loaded.image_token_id == processor.image_token_id
    assert loaded.chat_template == processor.chat_template
    turns = [user(RED, "what is it?")]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    ours = processor.apply_chat_template(turns, **options)
    theirs = loaded.apply_chat_template(turns, **options)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_templates_are_extended_once():
    extended = with_image_parts("\n{{ messages[0]['content'] }}", "<i>")
    assert with_image_parts(extended, "<i>") == extended


def test_a_tokenizer_without_a_template_stays_without(make_tokenizer, processor):
    plain = GraftedProcessor(processor.image_processor, make_tokenizer(None), tokens_per_image=5)
    assert plain.chat_template is None


def test_efficientnets_images_are_whole_and_centred_at_127():
    """(rgb - 127) / 128, no crop: the last row and column of a wide image are still there."""
    image = np.full((100, 300, 3), 127, dtype=np.uint8)
    image[:, -10:] = 255
    pixels = efficientnet_processor(224)(Image.fromarray(image), return_tensors="pt")
    pixels = pixels["pixel_values"][0]
    assert pixels.shape == (3, 224, 224)
    assert pixels[:, 100, 50].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)
    assert pixels[:, 100, -1].tolist() == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
