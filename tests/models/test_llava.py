"""transformers' LLaVA as it is: its tokens, its packed rows, its images counted."""

import copy
import pickle

import numpy as np
import PIL.Image
import pytest
import torch
from peft import LoraConfig, get_peft_model

from varifocal.assemble import assemble
from varifocal.data.example import Example, Image, Message
from varifocal.data.rows.packing import Collator
from varifocal.errors import ModelError
from varifocal.models import connector_name, load_model
from varifocal.prompts import load_encoder
from varifocal.recipe import DataSection, ModelSection, Recipe
from varifocal.tuners import MMAConfig


def recipe_for(directory, **data):
    section = ModelSection(language_model=str(directory), dtype="float32")
    return Recipe(model=section, data=DataSection(**data))


def image(seed):
    """An image of noise, 40 x 28 pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 40, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def talk(tmp_path, *texts, pil_images=()):
    """A conversation; the images, by their seeds, stand before its first text."""
    images = []
    for seed in pil_images:
        images.append(Image(path=tmp_path / f"{seed}.png"))
        image(seed).save(images[-1].path)
    turns = [
        Message("assistant" if number % 2 else "user", (*(images if not number else ()), text))
        for number, text in enumerate(texts)
    ]
    return Example(tuple(turns))


@pytest.fixture
def parts(llava):
    return assemble(recipe_for(llava))


@pytest.fixture
def examples(tmp_path):
    return [
        talk(tmp_path, "Which colour?", "Red.", pil_images=[1]),
        talk(tmp_path, "What comes after A?", "B."),
        talk(tmp_path, "And these?", "Blue, green.", pil_images=[2, 3]),
    ]


@pytest.mark.parametrize(
    ("strategy", "tower", "kind"),
    [
        ("default", "clip", "Llava"),
        ("full", "clip", "Llava"),
        ("full", "siglip", "Llava"),
        ("default", "clip", "VipLlava"),
    ],
)
def test_an_image_takes_the_processors_own_tokens(make_llava, tmp_path, strategy, tower, kind):
    make_llava(tmp_path / "llava", strategy, tower, kind)
    parts = assemble(recipe_for(tmp_path / "llava"))
    asked = talk(tmp_path, "Which colour?", pil_images=[1, 2])
    encoded = parts.encoder.encode(asked, with_answer=False)
    content = [{"type": "image", "image": image(seed)} for seed in (1, 2)]
    turn = {"role": "user", "content": [*content, {"type": "text", "text": "Which colour?"}]}
    theirs = parts.processor.apply_chat_template(
        [turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert encoded.input_ids.tolist() == theirs["input_ids"][0].tolist()
    batch = Collator(0, load_images=parts.load_images)([encoded])
    assert torch.equal(batch["pixel_values"], theirs["pixel_values"])
    with torch.no_grad():
        ours, own = parts.model(**batch, use_cache=False), parts.model(**theirs, use_cache=False)
    torch.testing.assert_close(ours.logits, own.logits, rtol=0, atol=1e-6)


def test_its_encoder_can_be_had_without_weights(llava, parts):
    assert load_encoder(recipe_for(llava)).fingerprint == parts.encoder.fingerprint


def test_a_plain_template_does_where_it_has_none(make_llava, tmp_path):
    make_llava(tmp_path / "llava", template=None)
    encoder = load_encoder(recipe_for(tmp_path / "llava"))
    encoded = encoder.encode(talk(tmp_path, "Which?", "Red.", pil_images=[1]))
    assert (encoded.input_ids == encoder.image_token_id).sum() == 16
    assert encoder.tokenizer.decode(encoded.trained_ids) == " Red.</s>"


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


@pytest.mark.parametrize("tuner", [None, "mma", "lora"])
def test_samples_packed_into_a_row_are_as_they_are_alone(parts, examples, tuner):
    model = tuned(parts, tuner).eval()
    encoded = [parts.encoder.encode(example) for example in examples]
    collate = Collator(0, load_images=parts.load_images)
    packed = logits_of(model, collate([encoded]))[0]
    alone = [logits_of(model, collate([one]))[0] for one in encoded]
    assert len(packed) == sum(map(len, encoded))
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=2e-5)
    shifted = logits_of(model, collate([encoded[::-1]]))[0][-len(encoded[0]) :]
    torch.testing.assert_close(shifted, alone[0], rtol=0, atol=2e-5)


def tuned(parts, tuner):
    """Put an adapter that does something into the model."""
    if tuner is None:
        return parts.model
    lora = LoraConfig(target_modules=["q_proj", "down_proj"])
    model = get_peft_model(parts.base, MMAConfig() if tuner == "mma" else lora)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return parts.with_model(model).model


@pytest.mark.parametrize("tuner", [None, "mma", "lora"])
def test_a_batch_without_images_never_runs_the_tower(parts, examples, tuner):
    model, base = tuned(parts, tuner), parts.base
    collate = Collator(0, load_images=parts.load_images)
    encoded = [parts.encoder.encode(example) for example in examples]
    ran = []
    base.model.vision_tower.register_forward_hook(lambda *_: ran.append(1))
    model(**collate([encoded[1], encoded[1]]), use_cache=False)
    assert (base.vision_passes, ran) == (0, [])
    model(**collate([[encoded[0], encoded[1]], [encoded[2]]]), use_cache=False)
    assert (base.vision_passes, ran) == (3, [1])
    generated = model.generate(
        input_ids=torch.tensor(encoded[0].input_ids[None].astype("int64")),
        **parts.load_images(encoded[0].images),
        max_new_tokens=3,
        min_new_tokens=3,
    )
    assert generated.shape[1] == len(encoded[0]) + 3
    assert base.vision_passes == 4  # at prefill alone


def test_a_copy_counts_for_itself(parts, examples):
    collate = Collator(0, load_images=parts.load_images)
    batch = collate([parts.encoder.encode(examples[0])])
    for other in (copy.deepcopy(parts.model), pickle.loads(pickle.dumps(parts.model))):
        other(**batch)
        assert (other.vision_passes, parts.base.vision_passes) == (1, 0)


def test_the_connector_has_a_name(parts, llava, tmp_path):
    name = connector_name(parts.base)
    assert name == "model.multi_modal_projector"
    trained = {n for n, p in parts.base.named_parameters() if p.requires_grad}
    projector = parts.base.get_submodule(name).named_parameters(prefix=name)
    assert trained == {n for n, _ in projector}
    assert connector_name(parts.base.model.language_model) is None


def test_a_graft_calls_it_connector(grafted):
    assert connector_name(grafted) == "connector"


def test_a_model_with_as_many_tokens_as_a_image_needs_is_refused(tmp_path, llava):
    from transformers import AutoConfig, LlavaConfig, PixtralVisionConfig

    config = AutoConfig.from_pretrained(llava)
    pixtral = PixtralVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    LlavaConfig(
        vision_config=pixtral, text_config=config.text_config, image_token_index=5
    ).save_pretrained(tmp_path)
    processor = load_model(ModelSection(language_model=str(llava))).processor
    processor.save_pretrained(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_encoder(recipe_for(tmp_path))
    assert str(caught.value) == (
        f"{tmp_path} is a vision-language model of type llava, whose images take more or fewer "
        "tokens by their size; this version trains and asks language models, grafts of them, "
        "LLaVA 1.5's kind, Qwen2-VL's and SmolVLM's with model.image_side: name a "
        "language model, and a vision_tower"
    )
