"""transformers' Idefics3 and SmolVLM, each image one tile: tokens, rows, answers and counts."""

import numpy as np
import PIL.Image
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from varifocal.assemble import assemble, is_vlm
from varifocal.data.example import Example, Image, Message
from varifocal.data.rows.packing import Collator
from varifocal.errors import ModelError
from varifocal.evaluation.generation import greedy_answers
from varifocal.models.likelihood import EncodedQuestion
from varifocal.recipe import ModelSection, Recipe
from varifocal.training.flops import image_flops

SIDE = 56  # 8 x 8 cells, 4 x 4 tokens


def recipe_for(directory, side=SIDE):
    section = ModelSection(language_model=str(directory), dtype="float32", image_side=side)
    return Recipe(model=section)


@pytest.fixture
def parts(smolvlm):
    return assemble(recipe_for(smolvlm))


@pytest.fixture
def asked(tmp_path):
    """Make a question with the images of these seeds before it, and its answer."""

    def make(question, answer=None, seeds=()):
        images = [Image(path=tmp_path / f"{seed}.png") for seed in seeds]
        for seed, image in zip(seeds, images, strict=True):
            pixels = np.random.default_rng(seed).integers(0, 256, (28, 40, 3), np.uint8)
            PIL.Image.fromarray(pixels).save(image.path)
        answers = [] if answer is None else [Message("assistant", (answer,))]
        return Example((Message("user", (*images, question)), *answers))

    return make


@pytest.fixture
def examples(asked):
    return [
        asked("Which colour?", "Red.", [1]),
        asked("What comes after A?", "B."),
        asked("And these?", "Blue, green.", [2, 3]),
    ]


def logits_of(model, batch):
    with torch.no_grad():
        return model(**batch, use_cache=False).logits


@pytest.mark.parametrize("smolvlm", ["Idefics3", "SmolVLM"], indirect=True)
def test_ids_pixels_and_logits_are_those_of_its_processor_without_splitting(parts, asked):
    encoded = parts.encoder.encode(asked("Which?", seeds=[1, 2]), with_answer=False)
    images = [image.open() for image in encoded.images]
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": "Which?"}]
    turns = [{"role": "user", "content": content}]
    text = parts.processor.apply_chat_template(turns, add_generation_prompt=True)
    theirs = parts.processor(text=[text], images=[images], return_tensors="pt")
    assert encoded.input_ids.tolist() == theirs["input_ids"][0].tolist()
    assert (encoded.input_ids == parts.encoder.image_token_id).sum() == 2 * 16
    batch = Collator(0, load_images=parts.load_images)([encoded])
    assert torch.equal(batch["pixel_values"][:, 0], theirs["pixel_values"][0])
    own, other = logits_of(parts.model, batch), logits_of(parts.model, theirs)
    torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


def test_packed_padded_and_batched_rows_are_as_they_are_alone(parts, examples):
    encoded = [parts.encoder.encode(example) for example in examples]
    collate = Collator(0, load_images=parts.load_images)
    alone = [logits_of(parts.model, collate([sample]))[0] for sample in encoded]
    packed = logits_of(parts.model, collate([encoded]))[0]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=0, atol=1e-4)
    batched = logits_of(parts.model, collate([encoded[1], encoded[0], encoded[2]]))
    for row, single in enumerate([alone[1], alone[0], alone[2]]):
        torch.testing.assert_close(batched[row, : len(single)], single, rtol=0, atol=1e-4)


def test_an_answer_does_not_depend_on_the_rest_of_its_batch(parts, asked):
    prompts = [
        parts.encoder.encode(asked(text, seeds=seeds), with_answer=False)
        for text, seeds in (
            ("Which?", [1]),
            ("After the letter A?", []),
            ("Two?", [2, 3]),
        )
    ]
    questions = [
        EncodedQuestion(each.input_ids, (np.array([1], np.int32),), each.modality, each.images)
        for each in prompts
    ]
    options = {"stop_ids": (), "max_new_tokens": 4}
    together = greedy_answers(parts.model, questions, parts.load_images, **options)
    alone = [
        greedy_answers(parts.model, [each], parts.load_images, **options)[0] for each in questions
    ]
    assert together == alone


def test_images_are_counted_and_a_batch_without_one_never_runs_the_tower(parts, examples):
    collate = Collator(0, load_images=parts.load_images)
    encoded = [parts.encoder.encode(example) for example in examples]
    ran = []
    parts.base.model.vision_model.register_forward_hook(lambda *_: ran.append(1))
    parts.model(**collate([encoded[1], encoded[1]]), use_cache=False)
    assert (parts.base.vision_passes, ran) == (0, [])
    parts.model(**collate([[encoded[0], encoded[1]], [encoded[2]]]), use_cache=False)
    assert (parts.base.vision_passes, ran) == (3, [1])


def test_an_images_operations_are_those_that_torch_counts(parts, examples):
    parts.model.set_attn_implementation("eager")  # whose products torch's counter knows
    pixels = parts.load_images(parts.encoder.encode(examples[0]).images)["pixel_values"]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        parts.model.model.get_image_features(pixels)
    formula = image_flops(parts.model)
    assert formula.tower + formula.connector == counter.get_total_flops()


def test_without_a_side_it_is_asked_as_it_is_and_trained_with_its_tiles_side_alone(smolvlm):
    assert is_vlm(smolvlm)
    with pytest.raises(ModelError, match=r"set model\.image_side, 56, so .* takes 16 tokens"):
        assemble(recipe_for(smolvlm, side=None))
    with pytest.raises(ModelError, match=r"image_side: 112 is not the side .* take 56"):
        assemble(recipe_for(smolvlm, side=112))
