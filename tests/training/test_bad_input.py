"""What a user can get wrong on the way into `train` and `open_run`: one sentence, nothing lost."""

import json
import os

import pytest
import torch

from varifocal.assemble import open_run
from varifocal.errors import DataError, ModelError, RunError
from varifocal.run import RunDirectory
from varifocal.training.train import run_training

ONE = {"training.max_steps": 1}
SKIP = {**ONE, "data.on_bad_record": "skip"}


@pytest.fixture
def fails(recipe, tmp_path):
    """Train and return the sentence; no run may be left that a mended try would stumble over."""

    def fails(error, overrides=()):
        with pytest.raises(error) as caught:
            run_training(recipe({**ONE, **dict(overrides)}), tmp_path / "run")
        assert "\n" not in str(caught.value)
        RunDirectory.create(tmp_path / "run")
        return str(caught.value)

    return fails


def written(tmp_path):
    return json.loads((tmp_path / "run" / "training.json").read_text())


# Splits


def test_an_empty_split(fails, book):
    text = fails(DataError, {"data.train": [{"path": str(book), "split": "val"}]})
    assert text == f"'{book / 'pid_splits.json'}': split 'val' is empty"


def test_a_split_that_is_not_there(fails, book):
    text = fails(DataError, {"data.train": [{"path": str(book), "split": "trian"}]})
    assert "no split 'trian'" in text
    assert "did you mean 'train'?" in text


def test_a_split_that_lists_a_record_that_is_not_there(fails, book, rewrite, recipe, tmp_path):
    rewrite(lambda problems, splits: splits["train"].append("99"))
    assert "'99'" in fails(DataError)
    assert len(run_training(recipe(SKIP), tmp_path / "run").skipped) == 1


def test_no_source(fails):
    assert fails(DataError, {"data.train": []}) == (
        "data.train names no source; there is nothing to train on"
    )


# Images


def break_missing(path):
    path.unlink()


def break_truncated(path):
    path.write_bytes(path.read_bytes()[:60])


def break_empty(path):
    path.write_bytes(b"")


def break_text(path):
    path.write_text("<html>404</html>")


@pytest.mark.parametrize("damage", [break_missing, break_truncated, break_empty, break_text])
def test_a_bad_image_stops_or_is_skipped_and_reported(fails, recipe, image_file, tmp_path, damage):
    damage(image_file("4"))
    text = fails(DataError)
    assert str(image_file("4")) in text
    assert "record '4'" in text
    result = run_training(recipe(SKIP), tmp_path / "run")
    assert result.skipped == [text]
    assert written(tmp_path)["skipped"] == [text]


def test_a_bad_image_is_skipped_by_the_alignment_too(recipe, image_file, tmp_path):
    break_truncated(image_file("4"))
    aligned = {"alignment.type": "words", "alignment.steps": 2}
    assert len(run_training(recipe({**SKIP, **aligned}), tmp_path / "run").skipped) == 1


def test_all_images_bad(fails, rewrite, image_file):
    def only_images(problems, splits):
        splits["train"] = ["0", "1"]

    rewrite(only_images)
    for pid in ("0", "1"):
        break_missing(image_file(pid))
    text = fails(DataError, {"data.on_bad_record": "skip"})
    assert "no" in text


# Lengths


def long_question(problems, splits):
    problems["12"]["hint"] = "Listen. " * 40


def test_a_sample_over_the_limit(fails, recipe, rewrite, tmp_path):
    rewrite(long_question)
    text = fails(DataError)
    assert "record '12' takes" in text
    assert "max_length is 160; raise max_length, or set overflow to 'drop'" in text

    result = run_training(recipe({**ONE, "data.overflow": "drop"}), tmp_path / "dropped")
    assert result.dropped == [text.partition(";")[0] + " (overflow: drop)"]
    assert result.skipped == []

    result = run_training(recipe({**ONE, "data.overflow": "truncate_prompt"}), tmp_path / "cut")
    assert (result.num_cut, result.dropped) == (1, [])


def test_every_sample_over_the_limit(fails):
    text = fails(DataError, {"data.max_length": 20, "data.overflow": "drop"})
    assert text.startswith("there is no example to train on: all were skipped or dropped; look at")


# Models


def test_nothing_to_train(fails):
    assert fails(RunError, {"tuner": {"type": "none", "train_connector": False}}) == (
        "tuner: nothing is trained; set tuner.type or tuner.train_connector"
    )


def test_images_for_a_model_without_eyes(fails):
    text = fails(DataError, {"model.vision_tower": None, "model.connector": None})
    assert "has an image, but the model has no vision tower" in text


def test_a_language_model_without_eyes_learns_from_text(recipe, rewrite, tmp_path):
    rewrite(lambda problems, splits: splits.update(train=[str(n) for n in range(9, 15)]))
    page = recipe({**ONE, "model.vision_tower": None, "model.connector": None})
    result = run_training(page, tmp_path / "run")
    assert "connector" not in result.trained_parameters
    _, parts = open_run(tmp_path / "run")
    assert (parts.features, parts.load_images) == (None, None)


# Reading a run back


@pytest.fixture
def trained(recipe, tmp_path, new_language):
    """A run on a language model that may be changed."""
    new_language(tmp_path / "language")
    page = recipe({**ONE, "model.language_model": str(tmp_path / "language")})
    run_training(page, tmp_path / "run")
    return RunDirectory(tmp_path / "run")


def test_a_run_is_read_back_as_it_was_trained(trained, recipe):
    page, parts = open_run(trained.root)
    assert page.provenance is not None
    assert page.provenance.base_fingerprint == parts.fingerprint
    assert not any(p.requires_grad for p in parts.model.parameters())
    assert not parts.model.training
    assert parts.features is None  # the tower is adapted, its features move


def test_a_base_that_changed_on_disk(trained, tmp_path, new_language):
    new_language(tmp_path / "language", seed=1)
    with pytest.raises(ModelError) as caught:
        open_run(trained.root)
    text = str(caught.value)
    assert text.startswith(f"the adapter in '{trained.adapter}' was trained on a base with content")
    assert str(tmp_path / "language") in text
    assert text.endswith("or train again")


def test_an_adapter_in_the_recipe_of_another_base(trained, tmp_path, new_language):
    new_language(tmp_path / "other", hidden_size=16)
    page = trained.recipe.read_text().replace(str(tmp_path / "language"), str(tmp_path / "other"))
    trained.recipe.write_text(page)
    with pytest.raises(ModelError, match="was trained on a base with content hash"):
        open_run(trained.root)


def test_an_unchanged_base_that_was_only_touched(trained, tmp_path):
    os.utime(tmp_path / "language" / "model.safetensors")
    open_run(trained.root)


# Images by their table


def test_a_frozen_tower_looks_at_every_image_once(recipe, tmp_path):
    frozen = recipe({"tuner.adapt_vision_tower": False})
    first = run_training(frozen, tmp_path / "first")
    assert first.vision_passes == 9
    second = run_training(frozen, tmp_path / "second")
    assert second.vision_passes == 0  # known from the run before
    assert second.loss == first.loss
    _, parts = open_run(tmp_path / "first")
    assert len(parts.features) == 9


def test_an_adapted_tower_looks_in_every_epoch(recipe, tmp_path):
    assert run_training(recipe(), tmp_path / "run").vision_passes == 2 * 9


def test_features_and_pixels_train_alike(recipe, tmp_path, monkeypatch):
    """The table is a short cut, not another method."""
    frozen = recipe({**ONE, "tuner.adapt_vision_tower": False})
    table = run_training(frozen, tmp_path / "table")
    monkeypatch.setattr("varifocal.models.families.grafted.BaseTunerLayer", torch.nn.Module)
    pixels = run_training(frozen, tmp_path / "pixels")
    assert (table.vision_passes > 0, pixels.vision_passes > 0) == (True, True)
    assert pixels.loss == pytest.approx(table.loss, rel=1e-6)
