"""Generating with images: cache, padding, beams, samples, further turns."""

import pytest
import torch
from transformers import DynamicCache

IMAGE, V = 61, 5
WITH_IMAGE = [IMAGE] * V


def greedy_without_cache(model, ids, steps, **images):
    for _ in range(steps):
        logits = model(input_ids=ids, use_cache=False, **images).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids


@pytest.fixture
def conversation():
    return torch.tensor([[1, *WITH_IMAGE, 9, *WITH_IMAGE, 22, 7]])


def test_cached_decoding_equals_the_full_forward(grafted, images, conversation):
    expected = greedy_without_cache(grafted, conversation, 8, pixel_values=images[:2])
    grafted.vision_passes = 0
    got = grafted.generate(conversation, pixel_values=images[:2], max_new_tokens=8, do_sample=False)
    assert torch.equal(got, expected)
    assert grafted.vision_passes == 2  # at prefill, and never again
    features = grafted.see(images[:2])
    got = grafted.generate(conversation, image_features=features, max_new_tokens=8, do_sample=False)
    assert torch.equal(got, expected)
    uncached = grafted.generate(
        conversation, pixel_values=images[:2], max_new_tokens=8, do_sample=False, use_cache=False
    )
    assert torch.equal(uncached, expected)


def test_left_padding_changes_nothing(grafted, images, conversation):
    short, text = [1, *WITH_IMAGE, 4, 5], [2, 3, 4]
    width = conversation.shape[1]
    batch = torch.tensor(
        [conversation[0].tolist(), *([0] * (width - len(row)) + row for row in (short, text))]
    )
    mask = (batch != 0).long()
    got = grafted.generate(
        batch, attention_mask=mask, pixel_values=images[:3], max_new_tokens=6, do_sample=False
    )[:, width:]
    alone = [
        greedy_without_cache(grafted, conversation, 6, pixel_values=images[:2]),
        greedy_without_cache(grafted, torch.tensor([short]), 6, pixel_values=images[2:3]),
        greedy_without_cache(grafted, torch.tensor([text]), 6),
    ]
    assert torch.equal(got, torch.cat([row[:, -6:] for row in alone]))


@pytest.mark.parametrize("how", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_keep_each_rows_images_in_order(grafted, images, how):
    """Repeated one by one, two images of a row would change places with the row's copies."""
    rows = [[1, *WITH_IMAGE, 9, *WITH_IMAGE, 7], [2, *WITH_IMAGE, 9, *WITH_IMAGE, 8]]
    options = {"max_new_tokens": 5, "do_sample": False, **how}
    together = grafted.generate(torch.tensor(rows), pixel_values=images, **options)
    assert grafted.vision_passes == 4  # once an image, not once a beam
    word = grafted.get_input_embeddings()
    for index, row in enumerate(rows):  # the language model alone, on embeddings put together here
        first, second = grafted.encode_images(images[2 * index : 2 * index + 2])
        start, middle, end = (word(torch.tensor([token])) for token in (row[0], 9, row[-1]))
        embeds = torch.cat([start, first, middle, second, end])[None]
        copies = how.get("num_return_sequences", 1)
        expected = grafted.language_model.generate(inputs_embeds=embeds, **options)
        got = together[index * copies : (index + 1) * copies, len(row) :]
        assert torch.equal(got, expected)


def test_sampling_is_seeded(grafted, images, conversation):
    options = {"do_sample": True, "max_new_tokens": 6, "num_return_sequences": 4}
    draws = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        draws.append(grafted.generate(conversation, pixel_values=images[:2], **options))
    assert draws[0].shape == (4, conversation.shape[1] + 6)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_penalties_survive_a_placeholder_past_the_vocabulary(grafted, images, conversation):
    options = {"max_new_tokens": 8, "do_sample": False}
    penalties = {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    got = grafted.generate(conversation, pixel_values=images[:2], **options, **penalties)
    assert got.shape == (1, conversation.shape[1] + 8)
    assert got[0, conversation.shape[1] :].max() < IMAGE


def test_a_further_turn_continues_the_cache(grafted, images):
    """All images are given again with the whole conversation; only the new one is looked at."""
    first, options = [1, *WITH_IMAGE, 9], {"max_new_tokens": 4, "do_sample": False}
    cache = DynamicCache(config=grafted.config)
    answered = grafted.generate(
        torch.tensor([first]), pixel_values=images[:1], past_key_values=cache, **options
    )
    second = torch.cat([answered, torch.tensor([[8, *WITH_IMAGE, 12]])], dim=1)
    expected = greedy_without_cache(grafted, second, 4, pixel_values=images[:2])
    grafted.vision_passes = 0
    got = grafted.generate(second, pixel_values=images[:2], past_key_values=cache, **options)
    assert torch.equal(got, expected)
    assert grafted.vision_passes == 1


def test_marks_given_to_generate_are_extended(grafted, images):
    heard = []
    grafted.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: heard.append(kwargs), with_kwargs=True
    )
    ids = torch.tensor([[1, *WITH_IMAGE, 9], [1, 2, 3, 4, 5, 6, 7]])
    options = {"max_new_tokens": 3, "do_sample": False, "pixel_values": images[:1]}
    grafted.generate(ids, **options)
    assert [call["modality_ids"][:, -1].tolist() for call in heard] == [[1, 0]] * 3
    assert [call["modality_ids"].shape[1] for call in heard] == [7, 1, 1]
    heard.clear()
    marks = {
        "modality_ids": torch.tensor([[0] * 7, [1] * 7]),
        "segment_ids": torch.tensor([[0] * 5 + [1] * 2] * 2),
        "prompt_mask": torch.ones(2, 7, dtype=torch.bool),
    }
    grafted.generate(ids, **options, **marks)
    assert torch.equal(heard[0]["prompt_mask"], marks["prompt_mask"])
    for call in heard[1:]:
        assert call["modality_ids"].tolist() == [[0], [1]]
        assert call["segment_ids"].tolist() == [[1], [1]]
        assert call["prompt_mask"].tolist() == [[False], [False]]


def test_a_placeholder_in_the_vocabularys_padding_is_never_written(make_grafted, images):
    grafted = make_grafted(image=60)
    grafted.language_model.lm_head.weight.data[60] = 100 * grafted.language_model.lm_head.weight[4]
    grafted.language_model.lm_head.weight.data[59] = -grafted.language_model.lm_head.weight[60]
    ids = torch.tensor([[1, *[60] * V, 9]])
    logits = grafted(input_ids=ids, pixel_values=images[:1]).logits[0, -1]
    assert set(logits.topk(1).indices.tolist()) <= {59, 60}
    written = grafted.generate(ids, pixel_values=images[:1], max_new_tokens=20, do_sample=False)
    assert 60 not in written[0, ids.shape[1] :]
