"""transformers' Qwen-VL with images of one size: its tokens, positions, rows and answers."""

import copy

import numpy as np
import PIL.Image
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from varifocal.assemble import assemble
from varifocal.data.example import Example, Image, Message
from varifocal.data.rows.packing import Collator
from varifocal.errors import ModelError
from varifocal.evaluation.generation import greedy_answers
from varifocal.models import load_model
from varifocal.models.families.qwen_vl import positions_of_rows
from varifocal.models.likelihood import EncodedQuestion, score_options
from varifocal.prompts import load_encoder
from varifocal.recipe import DataSection, ModelSection, Recipe
from varifocal.training.flops import image_flops
from varifocal.tuners import MixLoraConfig, MMAConfig

SIDE = 112  # 8 x 8 patches, 4 x 4 tokens


def recipe_for(directory, side=SIDE):
    section = ModelSection(language_model=str(directory), dtype="float32", image_side=side)
    return Recipe(model=section)


def image(seed, width=40, height=28):
    """An image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


@pytest.fixture
def asked(tmp_path):
    """Makes a conversation: texts by turns, the images of these seeds before the first."""

    def talk(*texts, pil_images=(), choices=()):
        images = []
        for seed in pil_images:
            images.append(Image(path=tmp_path / f"{seed}.png"))
            image(seed).save(images[-1].path)
        turns = [
            Message("assistant" if number % 2 else "user", (*(() if number else images), text))
            for number, text in enumerate(texts)
        ]
        return Example(tuple(turns), choices=choices)

    return talk


@pytest.fixture
def parts(qwen_vl):
    return assemble(recipe_for(qwen_vl))


@pytest.fixture
def examples(asked):
    return [
        asked("Which colour?", "Red.", pil_images=[1]),
        asked("What comes after A?", "B."),
        asked("And these?", "Blue, green.", "Both?", "Yes.", pil_images=[2, 3]),
    ]


def tuned(parts, tuner):
    """Put an adapter that does something into the model."""
    if tuner is None:
        return parts.model
    names = ["q_proj", "down_proj"]
    config = {
        "lora": lambda: LoraConfig(target_modules=names, exclude_modules=r".*visual.*"),
        "mma": lambda: MMAConfig(vision_tower=False),
        "mixlora": lambda: MixLoraConfig(
            num_factors=4, rank=2, target_modules=names, exclude_modules=r".*visual.*"
        ),
    }[tuner]()
    model = get_peft_model(parts.base, config)
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return parts.with_model(model).model.eval()


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


def types_of(parts, ids):
    return (ids == parts.encoder.image_token_id).int()


def test_ids_are_those_of_the_template_with_its_frame_around_a_image(parts, asked):
    encoded = parts.encoder.encode(asked("Which?", pil_images=[1, 2]), with_answer=False)
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Which?"}]
    text = parts.processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert text.count("<|vision_start|><|image_pad|><|vision_end|>") == 2
    whole = text.replace("<|image_pad|>", "<|image_pad|>" * 16)
    theirs = parts.processor.tokenizer(whole, add_special_tokens=False).input_ids
    assert encoded.input_ids.tolist() == theirs


def test_an_image_keeps_its_shape_on_a_square_and_takes_one_number_of_tokens(parts):
    wide, tall = image(1, 300, 60), image(2, 20, 400)
    made = parts.processor.images([wide, tall])
    assert made["image_grid_thw"].tolist() == [[1, 8, 8]] * 2
    assert made["pixel_values"].shape == (2 * 64, 3 * 2 * 14 * 14)
    patches = made["pixel_values"].view(2, 64, -1)
    is_margin = (patches == patches[:, :1, :1]).flatten(2)
    assert is_margin[0, :4].float().mean() > 0.3  # above the wide image
    assert not is_margin[0, 28:36].all(-1).any()


def test_the_logits_are_those_of_transformers_own_positions(parts, asked):
    """One row as transformers lays it out, images and turns and all."""
    example = asked("And these?", "Blue.", "Both?", "Yes.", pil_images=[2, 3])
    batch = Collator(0, load_images=parts.load_images)([parts.encoder.encode(example)])
    ids = batch["input_ids"]
    theirs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": types_of(parts, ids),
        **{name: batch[name] for name in ("pixel_values", "image_grid_thw")},
    }
    own, theirs = logits_of(parts.model, batch), logits_of(parts.model, theirs)
    torch.testing.assert_close(own, theirs, rtol=0, atol=2e-5)
    plain = batch["position_ids"].expand(4, -1, -1)  # every image's token a place further
    moved = logits_of(parts.model, {**batch, "position_ids": plain})
    assert (moved - own).abs().max() > 1e-2


def test_positions_differ_from_each_other_as_transformers_have_them(parts, asked):
    example = asked("And these?", "Blue.", pil_images=[2, 3])
    ids = torch.tensor(parts.encoder.encode(example).input_ids[None].astype("int64"))
    grid = torch.tensor([[1, 8, 8]] * 2)
    theirs, _ = parts.model.model.get_rope_index(ids, types_of(parts, ids), grid)
    is_image = ids == parts.encoder.image_token_id
    own = positions_of_rows(torch.arange(ids.shape[1])[None], is_image, 16, 4)
    assert torch.equal(own[1:] - own[1:, :, -1:], theirs - theirs[:, :, -1:])
    assert own[1:, 0, -1].tolist() == [ids.shape[1] - 1] * 3


@pytest.mark.parametrize("tuner", [None, "lora", "mma", "mixlora"])
def test_samples_packed_into_a_row_are_as_they_are_alone(parts, examples, tuner):
    model = tuned(parts, tuner)
    encoded = [parts.encoder.encode(example) for example in examples]
    collate = Collator(0, load_images=parts.load_images)
    packed = logits_of(model, collate([encoded]))[0]
    alone = [logits_of(model, collate([one]))[0] for one in encoded]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=2e-4)
    mates = logits_of(model, collate([encoded[1], encoded[0], encoded[2]]))
    for row, one in enumerate([alone[1], alone[0], alone[2]]):
        torch.testing.assert_close(mates[row, : len(one)], one, rtol=0, atol=2e-4)


@pytest.mark.parametrize("tuner", [None, "mma"])
def test_an_answer_does_not_depend_on_batch_mates_and_is_the_full_forwards(parts, asked, tuner):
    model = tuned(parts, tuner)
    prompts = [
        parts.encoder.encode(asked("Which?", pil_images=[1]), with_answer=False),
        parts.encoder.encode(asked("What comes after the letter A?"), with_answer=False),
        parts.encoder.encode(asked("And these two?", pil_images=[2, 3]), with_answer=False),
    ]
    questions = [
        EncodedQuestion(one.input_ids, (np.array([1], np.int32),), one.modality, one.images)
        for one in prompts
    ]
    options = {"stop_ids": (), "max_new_tokens": 6}
    together = greedy_answers(model, questions, parts.load_images, **options)
    alone = [greedy_answers(model, [one], parts.load_images, **options)[0] for one in questions]
    assert together == alone
    for question, answer in zip(questions, alone, strict=True):
        ids = np.concatenate([question.prompt_ids, np.array(answer, np.int32)])
        mask = np.arange(len(ids)) < len(question.prompt_ids)
        whole = type(prompts[0])(ids, mask, question.modality, question.images)
        batch = Collator(0, load_images=parts.load_images)([whole])
        written = logits_of(model, batch)[0, len(question.prompt_ids) - 1 : -1].argmax(-1)
        assert written.tolist() == answer


def test_transformers_own_generate_still_counts_in_its_own_way(parts, asked):
    encoded = parts.encoder.encode(asked("Which?", pil_images=[1]), with_answer=False)
    question = EncodedQuestion(encoded.input_ids, (np.array([1], np.int32),), 1, encoded.images)
    ids = torch.tensor(encoded.input_ids[None].astype("int64"))
    written = parts.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=types_of(parts, ids),
        **parts.load_images(encoded.images),
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        eos_token_id=None,
    )
    options = {"stop_ids": (), "max_new_tokens": 6}
    ours = greedy_answers(parts.model, [question], parts.load_images, **options)[0]
    assert written[0, len(encoded) :].tolist() == ours


@pytest.mark.parametrize("tuner", ["lora"])
def test_options_in_one_row_score_as_on_rows_of_their_own(parts, asked, tuner):
    model = tuned(parts, tuner)
    example = asked("Which?", pil_images=[1, 2], choices=("red", "green", "very blue"))
    prompt, options = parts.encoder.encode_options(example)
    question = EncodedQuestion(prompt.input_ids, tuple(options), prompt.modality, prompt.images)
    scores = [
        score_options(model, [question], parts.load_images, tree=tree)[0] for tree in (True, False)
    ]
    torch.testing.assert_close(*map(torch.tensor, scores), rtol=0, atol=2e-4)
    assert len(set(scores[0])) == 3


def test_images_are_counted_and_a_batch_without_one_never_runs_the_tower(parts, examples):
    collate = Collator(0, load_images=parts.load_images)
    encoded = [parts.encoder.encode(example) for example in examples]
    ran = []
    parts.base.model.visual.register_forward_hook(lambda *_: ran.append(1))
    parts.model(**collate([encoded[1], encoded[1]]), use_cache=False)
    assert (parts.base.vision_passes, ran) == (0, [])
    parts.model(**collate([[encoded[0], encoded[1]], [encoded[2]]]), use_cache=False)
    assert (parts.base.vision_passes, ran) == (3, [1])


def test_a_copy_is_whole(parts, examples):
    batch = Collator(0, load_images=parts.load_images)([parts.encoder.encode(examples[2])])
    twin = copy.deepcopy(parts.model)
    before = logits_of(parts.model, batch)
    torch.nn.init.zeros_(twin.lm_head.weight)
    assert logits_of(twin, batch).abs().max() == 0
    assert torch.equal(logits_of(parts.model, batch), before)
    assert (parts.model.vision_passes, twin.vision_passes) == (4, 2)


def test_a_cache_does_not_go_on_with_images(parts, examples):
    batch = Collator(0, load_images=parts.load_images)([parts.encoder.encode(examples[0])])
    cache = parts.model(**batch, use_cache=True).past_key_values
    with pytest.raises(ModelError, match="with further images"):
        parts.model(**batch, past_key_values=cache)


def test_its_encoder_can_be_had_without_weights(qwen_vl, parts):
    assert load_encoder(recipe_for(qwen_vl)).fingerprint == parts.encoder.fingerprint


def test_a_named_chat_template_is_refused_since_images_stand_in_a_frame(qwen_vl):
    data = {"data": DataSection(chat_template="chatml")}
    with pytest.raises(ModelError, match=r"chatml does not write the tokens around an image of a "):
        load_encoder(recipe_for(qwen_vl).model_copy(update=data))


def test_a_side_is_asked_for_and_has_to_fit(qwen_vl, llava):
    with pytest.raises(ModelError, match=r"set model\.image_side, 448 for example"):
        assemble(recipe_for(qwen_vl, side=None))
    with pytest.raises(ModelError, match=r"100 is no multiple of 28.* take 84 or 112"):
        assemble(recipe_for(qwen_vl, side=100))
    with pytest.raises(ModelError, match=r"image_side belongs to a Qwen-VL.*type llava"):
        load_model(ModelSection(language_model=str(llava), image_side=112), meta=True)


def test_a_graft_has_no_side():
    page = {"language_model": "a/b", "vision_tower": "c/d", "image_side": 112}
    with pytest.raises(ValueError, match="belongs to a Qwen-VL"):
        ModelSection.model_validate(page)


def test_an_images_operations_are_those_that_torch_counts(parts):
    parts.model.set_attn_implementation("eager")  # whose products torch's counter knows
    seen = parts.processor.images([image(1)])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        parts.model.model.get_image_features(**seen)
    formula = image_flops(parts.model)
    assert formula.tower + formula.connector == counter.get_total_flops()
