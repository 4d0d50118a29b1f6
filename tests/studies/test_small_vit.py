"""The small ViT: what it is taught, that it goes on where it stopped, and what is shipped."""

import numpy as np
import pytest
import torch
from studies.small_vit import PAD, UNKNOWN, Pretraining, Vocabulary, batch_of
from studies.small_vit_probe import balanced, features, images_of, score, towers

from studies import small_vit, small_vit_probe
from varifocal.errors import RunError
from varifocal.models.names import find_source
from varifocal.models.packaged_weights import packaged_directory


def test_descriptions_become_words_and_sets():
    vocabulary = Vocabulary(["A red box.", "It is three o'clock."])
    tokens = vocabulary.encode(["A red cat.", "Red"])
    assert tokens.shape == (2, 5)
    assert (tokens[0, 3], tokens[1, 3]) == (UNKNOWN, PAD)
    sets = vocabulary.sets(tokens)
    assert sets.sum(dim=1).tolist() == [2.0, 1.0]
    assert sets.shape == (2, len(vocabulary))


def test_a_steps_images_are_its_own_and_always_the_same():
    pixels, texts = batch_of(3, 2, ["shapes", "clock"])
    again, same = batch_of(3, 2, ["shapes", "clock"])
    other, _ = batch_of(4, 2, ["shapes", "clock"])
    assert torch.equal(pixels, again)
    assert texts == same
    assert texts[1].startswith("A round clock.")
    assert not torch.equal(pixels, other)


@pytest.fixture
def tiny(monkeypatch):
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 56}
    monkeypatch.setattr(small_vit, "SHAPE", small_vit.SHAPE | sizes)
    monkeypatch.setattr(small_vit, "NUM_COLLECTED", 1)


def test_a_stopped_training_ends_with_the_weights_of_an_unbroken_one(tiny, tmp_path):
    unbroken = Pretraining(4)
    for _ in range(4):
        unbroken.step(2)
    first = Pretraining(4)
    first.step(2), first.step(2)
    first.keep(tmp_path / "state.pt")
    second = Pretraining(4)
    second.go_on(tmp_path / "state.pt")
    second.step(2), second.step(2)
    for one, other in zip(unbroken.tower.parameters(), second.tower.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_probe_tells_features_that_say_a_word_from_those_that_do_not():
    random = torch.Generator().manual_seed(0)
    has = torch.tensor([0.0, 1.0]).repeat(20)
    noise = torch.randn(40, 30, generator=random)
    telling = noise + 3 * has[:, None]
    assert balanced(telling, has, telling, has) > 95
    others = torch.randn(40, 30, generator=random)
    assert 20 < balanced(noise, has, others, has) < 80
    words = [{"a", "red"} if one else {"a", "blue"} for one in has]
    assert score(telling, words, telling, words) > 95
    assert score(telling, [{"a"}] * 40, telling, [{"a"}] * 40) is None


def test_a_stopped_probe_goes_on_and_refuses_the_scores_of_another_call(tmp_path, monkeypatch):
    drawn = []

    def pil_images(skill, split, count):
        drawn.append((skill, split, count))
        return [], []

    monkeypatch.setattr(small_vit_probe, "images_of", pil_images)
    monkeypatch.setattr(small_vit_probe, "image_skills", lambda: ["clock"])
    monkeypatch.setattr(small_vit_probe, "towers", lambda vit, _: {vit: (None, None)})
    monkeypatch.setattr(small_vit_probe, "features", lambda *_: None)
    monkeypatch.setattr(small_vit_probe, "score", lambda *_: 61.23)
    for _ in range(2):
        assert small_vit_probe.probe(tmp_path, "mine", 8, 4) == {"clock": {"mine": 61.2}}
    assert drawn == [("clock", "train", 8), ("clock", "test", 4)]
    for other in (("theirs", 8, 4), ("mine", 9, 4), ("mine", 8, 5)):
        with pytest.raises(RunError, match=r"scores.json holds scores of {'vit': 'mine', 'train'"):
            small_vit_probe.probe(tmp_path, *other)
    (tmp_path / "scores.json").write_text('{"clock": {"sciencebook-vit": 70.0}}')
    with pytest.raises(RunError, match="an older probe"):
        small_vit_probe.probe(tmp_path, "mine", 8, 4)


def test_the_columns_are_called_by_the_encoders_names(tmp_path):
    own = tmp_path / "my-vit"
    own.symlink_to(packaged_directory("sciencebook-vit"))
    assert list(small_vit_probe.towers(str(own))) == ["untrained ViT", str(own)]


def test_the_shipped_vit_tells_images_apart_that_it_never_saw():
    encoders = towers("sciencebook-vit")
    tower, processor = encoders["sciencebook-vit"]
    pil_images, words = images_of("concentrations", "train", 30)
    others, other_words = images_of("concentrations", "test", 20)
    given = processor(images=pil_images[:1], return_tensors="pt")["pixel_values"]
    taught = small_vit.normalised([np.asarray(pil_images[0])])
    torch.testing.assert_close(given, taught, rtol=0, atol=1e-5)
    assert find_source("sciencebook-vit").stat().st_size < 8e6
    assert tower.feature_layer == -1
    scores = {}
    for name in ("sciencebook-vit", "untrained ViT"):
        own, new = (features(*encoders[name], each) for each in (pil_images, others))
        scores[name] = score(own, words, new, other_words)
    assert scores["sciencebook-vit"] > 75 > scores["untrained ViT"]
