"""The grafted model: what an image changes, and what it must not."""

import pytest
import torch
from transformers import DynamicCache

from varifocal.errors import ModelError
from varifocal.models import build_connector, build_tower, graft

IMAGE, V = 61, 5
WITH_IMAGE = [IMAGE] * V


def rows(*texts, pad=0):
    """Left-padded ids and mask [B, T]."""
    longest = max(map(len, texts))
    ids = torch.tensor([[pad] * (longest - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    return ids, mask


def test_text_never_runs_the_tower_and_is_the_bare_language_model(grafted, make_llama):
    ids, mask = rows([1, 5, 9, 22, 7], [1, 3, 8])
    bare = make_llama()
    for inputs in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": mask}):
        assert torch.equal(grafted(**inputs).logits, bare(**inputs).logits)
    empty = torch.empty(0, 3, 28, 28)
    assert torch.equal(grafted(input_ids=ids, pixel_values=empty).logits, bare(ids).logits)
    assert grafted.vision_passes == 0


def test_a_text_row_beside_an_image_row_is_the_bare_language_model(grafted, make_llama, images):
    ids, mask = rows([1, *WITH_IMAGE, 9, 22, 7], [1, 3, 8, 30])
    text = torch.where(ids == IMAGE, 4, ids)  # the same shapes, no image
    mixed = grafted(input_ids=ids, attention_mask=mask, pixel_values=images[:1]).logits
    bare = make_llama()(input_ids=text, attention_mask=mask).logits
    assert torch.equal(mixed[1], bare[1])
    assert not torch.equal(mixed[0], bare[0])
    assert grafted.vision_passes == 1


def test_visual_tokens_stand_at_their_placeholders(grafted, images):
    """Several images in one conversation, in two rows: against embeddings put together by hand."""
    ids, _ = rows([1, *WITH_IMAGE, 9, *WITH_IMAGE, 7], [2, 3, *WITH_IMAGE, 8, 10, 11, 12, 13, 14])
    logits = grafted(input_ids=ids, pixel_values=images[:3]).logits
    tokens = [grafted.connector(grafted.vision_tower(image[None]))[0] for image in images[:3]]
    word = grafted.get_input_embeddings()
    first = [word(torch.tensor([1])), tokens[0], word(torch.tensor([9])), tokens[1]]
    second = [word(torch.tensor([2, 3])), tokens[2], word(torch.tensor([8, 10, 11, 12, 13, 14]))]
    embeds = torch.stack([torch.cat([*first, word(torch.tensor([7]))]), torch.cat(second)])
    expected = grafted.language_model(inputs_embeds=embeds).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    swapped = grafted(input_ids=ids, pixel_values=images[[1, 0, 2]]).logits
    assert not torch.allclose(logits[0], swapped[0], atol=1e-3)
    torch.testing.assert_close(logits[1], swapped[1])


def test_an_image_row_does_not_see_its_batch_mates(grafted, images):
    alone = torch.tensor([[1, *WITH_IMAGE, 9, 22]])
    ids, mask = rows([1, 4, 5, *WITH_IMAGE, 6, 7], alone[0].tolist())
    batch = grafted(input_ids=ids, attention_mask=mask, pixel_values=images[[2, 1]]).logits
    expected = grafted(input_ids=alone, pixel_values=images[1:2]).logits
    torch.testing.assert_close(batch[1, -alone.shape[1] :], expected[0], rtol=1e-4, atol=1e-5)


def test_precomputed_features_equal_pixels(make_grafted, images):
    ids = torch.tensor([[1, *WITH_IMAGE, 9, *WITH_IMAGE]])
    grafted = make_grafted()
    features = grafted.see(images[:2])
    assert features.shape == (2, 16, 24)
    logits = grafted(input_ids=ids, image_features=features).logits
    assert torch.equal(logits, grafted(input_ids=ids, pixel_values=images[:2]).logits)


@pytest.mark.parametrize(
    ("ids", "num_images", "text"),
    [
        ([1, 5], 1, "0 image placeholders and 1 images were given, which take 5"),
        ([1, *WITH_IMAGE], 0, "5 image placeholders and 0 images"),
        ([1, *WITH_IMAGE[:3]], 1, "3 image placeholders and 1 images"),
        ([1, *WITH_IMAGE], 2, "5 image placeholders and 2 images were given, which take 10"),
    ],
)
def test_placeholders_and_images_must_match(grafted, images, ids, num_images, text):
    with pytest.raises(ModelError, match=text):
        grafted(input_ids=torch.tensor([ids]), pixel_values=images[:num_images])


def test_inputs_that_say_two_things(grafted, images):
    ids = torch.tensor([[1, *WITH_IMAGE]])
    embeds = torch.zeros(1, 6, 32)
    with pytest.raises(ModelError, match="either input_ids or inputs_embeds"):
        grafted(input_ids=ids, inputs_embeds=embeds)
    with pytest.raises(ModelError, match="images need input_ids"):
        grafted(inputs_embeds=embeds, pixel_values=images[:1])
    with pytest.raises(ModelError, match="either pixel_values or image_features"):
        grafted(input_ids=ids, pixel_values=images[:1], image_features=torch.zeros(1, 16, 24))


def test_parts_that_do_not_fit(make_llama, make_vit):
    tower = build_tower(make_vit("clip"))
    connector = build_connector({"hidden_dim": 8}, tower, 40)
    with pytest.raises(ModelError, match=r"maps width 24 to 40, but the tower gives 24 and .* 32"):
        graft(make_llama(), tower, connector, IMAGE)


def heard(grafted):
    """Collect the marks that go down to the language model's decoder, one dict a call."""
    calls = []
    names = ("modality_ids", "segment_ids", "prompt_mask")
    grafted.get_decoder().register_forward_pre_hook(
        lambda _module, _args, kwargs: calls.append({n: kwargs[n] for n in names if n in kwargs}),
        with_kwargs=True,
    )
    return calls


def test_modality_goes_down_by_row_by_segment_or_as_given(grafted, images):
    calls = heard(grafted)
    ids = torch.tensor([[3, *WITH_IMAGE, 4, 5, 6], [3, 4, 5, 6, 7, 8, 9, 10, 11]])
    grafted(input_ids=ids, pixel_values=images[:1], use_cache=False)
    assert calls[-1]["modality_ids"].tolist() == [[1] * 9, [0] * 9]

    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 0], [0, 1, 2, 3, 4, 5, 6, 7, 8]])
    packed = {"position_ids": positions, "use_cache": False}
    grafted(input_ids=ids, pixel_values=images[:1], **packed)
    assert calls[-1]["modality_ids"].tolist() == [[1] * 6 + [0] * 3, [0] * 9]

    segments = torch.tensor([[0] * 8 + [1], [0] * 9])
    grafted(input_ids=ids, pixel_values=images[:1], segment_ids=segments, **packed)
    assert calls[-1]["modality_ids"].tolist() == [[1] * 8 + [0], [0] * 9]
    assert torch.equal(calls[-1]["segment_ids"], segments)

    given, prompt = torch.ones_like(ids), ids > 4
    grafted(input_ids=ids, pixel_values=images[:1], modality_ids=given, prompt_mask=prompt)
    assert calls[-1]["modality_ids"] is given
    assert calls[-1]["prompt_mask"] is prompt
    assert "segment_ids" not in calls[-1]


def test_a_cached_row_keeps_its_modality(grafted, images):
    """A caller with a decoding loop of its own passes no marks at all."""
    calls = heard(grafted)
    ids = torch.tensor([[*WITH_IMAGE, 4], [3, 4, 5, 6, 7, 8]])
    cache = DynamicCache(config=grafted.config)
    grafted(input_ids=ids, pixel_values=images[:1], past_key_values=cache, use_cache=True)
    for token in (7, 8):
        grafted(input_ids=torch.full((2, 1), token), past_key_values=cache, use_cache=True)
        assert calls[-1]["modality_ids"].tolist() == [[1], [0]]
    grafted(input_ids=torch.tensor([[7], [8]]))
    assert calls[-1]["modality_ids"].tolist() == [[0], [0]]


def test_packed_rows_equal_their_samples_alone(make_grafted, images):
    grafted = make_grafted().double()
    samples = [[1, *WITH_IMAGE, 9, 22], [2, 7], [3, 4, *WITH_IMAGE, 8], [5]]
    ids = torch.tensor([[token for sample in samples for token in sample]])
    positions = torch.cat([torch.arange(len(sample)) for sample in samples])[None]
    packed = {"position_ids": positions, "use_cache": False}
    logits = grafted(input_ids=ids, pixel_values=images[:2].double(), **packed).logits[0]
    start, image = 0, 0
    for sample in samples:
        own = {"input_ids": torch.tensor([sample])}
        if IMAGE in sample:
            own["pixel_values"] = images[image : image + 1].double()
            image += 1
        alone = grafted(**own).logits[0]
        torch.testing.assert_close(logits[start : start + len(sample)], alone, rtol=1e-6, atol=1e-6)
        start += len(sample)


def test_loss_is_the_next_tokens_and_logits_can_be_chosen(grafted, images):
    ids = torch.tensor([[1, *WITH_IMAGE, 9, 22, 7]])
    labels = torch.tensor([[-100] * 6 + [9, 22, 7]])
    output = grafted(input_ids=ids, pixel_values=images[:1], labels=labels)
    expected = torch.nn.functional.cross_entropy(output.logits[0, 5:8], labels[0, 6:])
    torch.testing.assert_close(output.loss, expected)
    keep = torch.tensor([5, 7])
    kept = grafted(input_ids=ids, pixel_values=images[:1], logits_to_keep=keep).logits
    torch.testing.assert_close(kept, output.logits[:, keep])


def losses_and_gradients(grafted, images):
    grafted.train()
    ids = torch.tensor([[1, *WITH_IMAGE, 9, 22], [2, 3, 4, 5, 6, 7, 8, 9]])
    labels = torch.where(ids == IMAGE, -100, ids)
    loss = grafted(input_ids=ids, pixel_values=images[:1], labels=labels, use_cache=False).loss
    loss.backward()
    return loss, {n: p.grad for n, p in grafted.named_parameters() if p.grad is not None}


def test_gradient_checkpointing_changes_nothing(make_grafted, images):
    loss, gradients = losses_and_gradients(make_grafted(), images)
    saving = make_grafted()
    # renamed in transformers 5.21
    name = "activation_checkpointing_enable"
    enable = getattr(saving, name, None) or saving.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    assert saving.get_decoder().layers[0].gradient_checkpointing
    assert saving.vision_tower.model.encoder.layers[0].gradient_checkpointing
    same, recomputed = losses_and_gradients(saving, images)
    assert torch.equal(loss, same)
    assert gradients.keys() == recomputed.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, recomputed[name], msg=name)


def test_a_frozen_tower_builds_no_graph_until_something_in_it_trains(grafted, images):
    grafted.vision_tower.requires_grad_(False)
    assert not grafted.see(images).requires_grad
    assert not grafted.see(images.clone().requires_grad_()).requires_grad  # no graph, whatever
    assert grafted.encode_images(images).requires_grad  # the connector trains
    adapter = grafted.vision_tower.model.encoder.layers[0].mlp.fc1.weight
    adapter.requires_grad_(True)
    grafted.encode_images(images).sum().backward()
    assert adapter.grad is not None
    assert adapter.grad.abs().max() > 0


def test_bfloat16_language_model_float32_connector(make_grafted, images):
    grafted = make_grafted()
    grafted.language_model.bfloat16()
    grafted.vision_tower.bfloat16()
    ids = torch.tensor([[1, *WITH_IMAGE, 9]])
    logits = grafted(input_ids=ids, pixel_values=images[:1]).logits
    assert logits.dtype == torch.bfloat16
    assert grafted.encode_images(images[:1]).dtype == torch.float32
    expected = make_grafted()(input_ids=ids, pixel_values=images[:1]).logits
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.3)


# peft 0.21 asks by the name that transformers 5.21 deprecated
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
def test_a_tuner_of_peft_wraps_it(grafted, images):
    peft = pytest.importorskip("peft")
    ids = torch.tensor([[1, *WITH_IMAGE, 9]])
    before = grafted(input_ids=ids, pixel_values=images[:1]).logits
    config = peft.LoraConfig(
        target_modules=r"language_model.*q_proj|vision_tower.*fc1",
        modules_to_save=["connector"],
        r=2,
    )
    wrapped = peft.get_peft_model(grafted, config)
    assert torch.equal(wrapped(input_ids=ids, pixel_values=images[:1]).logits, before)
    wrapped(input_ids=ids, pixel_values=images[:1]).logits.sum().backward()
    graded = {n for n, p in wrapped.named_parameters() if p.grad is not None}
    trained = {n for n, p in wrapped.named_parameters() if p.requires_grad}
    last_block = {n for n in trained if "encoder.layers.7" in n}  # after the feature layer, -2
    assert graded == trained - last_block
    assert any("connector" in name for name in graded)
    generated = wrapped.generate(input_ids=ids, pixel_values=images[:1], max_new_tokens=3)
    assert generated.shape == (1, 10)
