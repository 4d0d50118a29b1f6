"""What `train` refuses before its first step: `launch`, `plan` and `data check` say the same."""

import json

import pytest

from varifocal.data.encoding.samples import NO_EXAMPLE, NO_IMAGE, NO_SOURCE
from varifocal.errors import VarifocalError
from varifocal.planning import estimate as estimating
from varifocal.recipe import load_recipe
from varifocal.training.launch import Launch, check_launch
from varifocal.training.train import run_training
from varifocal.training.usable import NOTHING_TRAINED, check_usable, why_refused

WORDS = {"alignment.type": "words", "alignment.steps": 2}


@pytest.fixture(scope="module")
def traced():
    """What `_one_trace` keeps."""
    return []


@pytest.fixture(autouse=True)
def _one_trace(monkeypatch, traced):
    """Trace a step for the first plan alone: what a step holds decides nothing here."""
    real = estimating._steps

    def steps(*arguments):
        traced[:] = traced or [real(*arguments)]
        return traced[0]

    monkeypatch.setattr(estimating, "_steps", steps)


def described(directory, *captions, name="captions.jsonl"):
    """Write image records with these captions; the path of the file."""
    lines = [
        json.dumps({"image": f"book/images/train/{number}/image.png", "caption": caption})
        for number, caption in enumerate(captions)
    ]
    (directory / name).write_text("".join(f"{line}\n" for line in lines))
    return str(directory / name)


def questions(directory, *records, name="questions.jsonl"):
    (directory / name).write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return str(directory / name)


def forget_captions(problems, splits):
    for problem in problems.values():
        problem.pop("caption", None)


def empty_test_split(place, rewrite, book):
    return {"data.evaluate": [{"path": str(book), "split": "test"}]}


def no_source(place, rewrite, book):
    return {"data.train": []}


def a_split_without_records(place, rewrite, book):
    return {"data.train": [{"path": str(book), "split": "val"}]}


def a_mixture_that_contradicts_itself(place, rewrite, book):
    source = {"path": str(book), "format": "scienceqa", "split": "train"}
    return {"data.train": [{**source, "weight": 1.0}, {**source, "name": "again"}]}


def a_stream_without_an_end(place, rewrite, book):
    path = questions(place, {"question": "Why?", "answer": "So."})
    return {"data.train": [{"path": path, "format": "table", "streaming": True}]}


def a_stream_that_is_to_be_counted(place, rewrite, book):
    stream = a_stream_without_an_end(place, rewrite, book)
    return {**stream, "training.max_steps": 2, "data.mixture.total": 5}


def an_alignment_without_captions(place, rewrite, book):
    rewrite(forget_captions)
    return {**WORDS, "alignment.text": "captions"}


def an_alignment_on_text(place, rewrite, book):
    path = questions(place, {"question": "Why?", "answer": "So."})
    return {**WORDS, "data.train": [{"path": path, "format": "table"}]}


def an_alignment_on_captions_without_images(place, rewrite, book):
    path = questions(place, {"question": "Why?", "answer": "So."})
    return {**WORDS, "data.captions": [{"path": path, "format": "table"}]}


def an_alignment_on_damaged_images(place, rewrite, book):
    (place / "damaged.png").write_bytes(b"<html>")
    path = questions(place, {"image": "damaged.png", "caption": "A red square."})
    return {
        **WORDS,
        "data.captions": [{"path": path, "format": "captions"}],
        "data.on_bad_record": "skip",
    }


def an_alignment_on_an_empty_file(place, rewrite, book):
    return {**WORDS, "data.captions": [{"path": questions(place), "format": "captions"}]}


def an_alignment_on_one_word(place, rewrite, book):
    path = described(place, "red", "red", "red")
    return {**WORDS, "data.captions": [{"path": path, "format": "captions"}]}


def an_alignment_that_is_not_saved(place, rewrite, book):
    return {**WORDS, "tuner": {"type": "lora", "train_connector": False}}


def nothing_trained(place, rewrite, book):
    return {"tuner": {"type": "none", "train_connector": False}}


def only_a_connector_that_is_not_there(place, rewrite, book):
    path = questions(place, {"question": "Why?", "answer": "So."})
    return {
        "tuner": {"type": "none"},
        "model.vision_tower": None,
        "model.connector": None,
        "training.connector_learning_rate": None,
        "data.train": [{"path": path, "format": "table"}],
    }


def questions_without_answers(place, rewrite, book):
    path = questions(place, {"question": "Why?"}, {"question": "How?"})
    return {
        "data.evaluate": [{"path": path, "format": "table"}],
        "data.on_bad_record": "skip",
    }


def questions_of_two_kinds(place, rewrite, book):
    choice = {"question": "Which?", "choices": ["a", "b"], "answer": "a"}
    path = questions(place, choice, {"question": "Why?", "answer": "So."})
    return {"data.evaluate": [{"path": path, "format": "table"}]}


def a_schedule_that_its_library_refuses(place, rewrite, book):
    return {
        "training.lr_scheduler_type": "cosine_with_restarts",
        "training.lr_scheduler_kwargs": {"circles": 2},
    }


def examples_past_the_window(place, rewrite, book):
    return {"data.max_length": 4096, "data.row_length": 4096}


def text_alone_where_text_teaches_nothing(place, rewrite, book):
    path = questions(place, {"question": "Why?", "answer": "So."})
    return {"tuner.text_route": "base", "data.train": [{"path": path, "format": "table"}]}


def a_share_of_text_where_text_teaches_nothing(place, rewrite, book):
    return {"tuner.text_route": "base", "data.mixture.language_fraction": 0.5}


REFUSED = [
    (text_alone_where_text_teaches_nothing, NO_IMAGE),
    (a_share_of_text_where_text_teaches_nothing, "data.mixture.language_fraction trains on"),
    (examples_past_the_window, "data.max_length: 4,096 tokens, and"),
    (no_source, NO_SOURCE),
    (a_split_without_records, "split 'val' is empty"),
    (a_mixture_that_contradicts_itself, "give every source without epochs a weight"),
    (a_stream_without_an_end, "has no end; set training.max_steps"),
    (a_stream_that_is_to_be_counted, "data.mixture counts records"),
    (an_alignment_without_captions, "needs described images, and data.train has none"),
    (an_alignment_on_text, "and data.train has no caption and no answer about an image that"),
    (an_alignment_on_captions_without_images, "data.captions has none that can be read"),
    (an_alignment_on_damaged_images, "data.captions has none that can be read"),
    (an_alignment_on_an_empty_file, "questions.jsonl' has no row"),
    (an_alignment_on_one_word, "no word is shared by some descriptions"),
    (an_alignment_that_is_not_saved, "tuner.train_connector: false would not save it"),
    (nothing_trained, NOTHING_TRAINED),
    (only_a_connector_that_is_not_there, NOTHING_TRAINED),
    (empty_test_split, "split 'test' is empty"),
    (questions_without_answers, "there is nothing to score; name other records"),
    (questions_of_two_kinds, "1 of 2 questions have choices and 1 have none"),
    (a_schedule_that_its_library_refuses, "training.lr_scheduler_kwargs: "),
]


def settings(overrides):
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]


def options(overrides):
    return [word for each in settings(overrides) for word in ("--set", each)]


@pytest.mark.parametrize(("spoil", "words"), REFUSED, ids=[spoil.__name__ for spoil, _ in REFUSED])
def test_four_verbs_say_the_same(spoil, words, run, recipe_file, rewrite, book, tmp_path):
    overrides = spoil(tmp_path, rewrite, book)
    with pytest.raises(VarifocalError) as by_train:
        run_training(load_recipe(recipe_file, overrides), tmp_path / "run")
    sentence = str(by_train.value)
    assert words in sentence
    assert not (tmp_path / "run").exists()

    launched = Launch(str(recipe_file), tmp_path / "run", overrides=tuple(settings(overrides)))
    with pytest.raises(VarifocalError) as by_launch:
        check_launch(launched)
    assert str(by_launch.value) == sentence

    code, out, err = run("plan", recipe_file, "--device", "cpu", *options(overrides))
    assert code in (1, 2)
    assert sentence in " ".join((out + err).split())

    code, out, err = run("data", "check", recipe_file, *options(overrides))
    last = f"not usable: {sentence}", f"error: {sentence}"
    assert (code, (out or err).splitlines()[-1]) in enumerate(last, start=1)


def test_a_schedule_that_does_not_fit_is_known_where_the_steps_are(run, recipe_file):
    late = {"training.lr_scheduler_type": "polynomial", "training.warmup_steps": 99}
    with pytest.raises(VarifocalError) as by_train:
        run_training(load_recipe(recipe_file, late), recipe_file.parent / "run")
    code, out, _ = run("plan", recipe_file, "--device", "cpu", *options(late))
    assert code == 1
    assert f"does not start: {by_train.value}" in " ".join(out.split())
    code, out, _ = run("data", "check", recipe_file, *options(late))
    assert (code, out.splitlines()[-1]) == (1, f"not usable: {by_train.value}")


def test_no_example_that_is_short_enough_is_told_alike(run, recipe_file):
    short = {"data.max_length": 20, "data.overflow": "drop"}
    with pytest.raises(VarifocalError) as by_train:
        run_training(load_recipe(recipe_file, short), recipe_file.parent / "run")
    assert str(by_train.value) == NO_EXAMPLE
    code, _, err = run("plan", recipe_file, "--device", "cpu", *options(short))
    assert (code, err) == (2, f"error: {NO_EXAMPLE}\n")
    code, out, _ = run("data", "check", recipe_file, *options(short))
    assert (code, out.splitlines()[-1]) == (1, f"not usable: {NO_EXAMPLE}")


@pytest.mark.slow
def test_what_a_check_passes_is_planned_trained_and_scored(run, recipe_file, book, tmp_path):
    path = described(tmp_path, "red one", "red two", "blue one")
    overrides = {
        **WORDS,
        "training.max_steps": 1,
        "data.captions": [{"path": path, "format": "captions"}],
        "data.evaluate": [{"path": str(book), "split": "train"}],
    }
    assert run("data", "check", recipe_file, *options(overrides))[0] == 0
    assert run("plan", recipe_file, "--device", "cpu", *options(overrides))[0] == 0
    assert run("train", recipe_file, "--out", tmp_path / "run", *options(overrides))[0] == 0
    assert run("eval", tmp_path / "run")[0] == 0


def test_sources_elsewhere_are_passed_over_where_another_machine_trains(recipe, tmp_path):
    absent = {"data.evaluate": [{"path": str(tmp_path / "absent.jsonl")}]}
    page = recipe(absent, check_paths=False)
    check_usable(page, skip_absent=True)
    assert "absent.jsonl" in (why_refused(page) or "")


def test_images_of_questions_may_be_absent(recipe, tmp_path):
    path = questions(tmp_path, {"question": "Why?", "answer": "So.", "image": "absent.png"})
    check_usable(recipe({"data.evaluate": [{"path": path, "format": "table"}]}))


def test_examples_may_be_as_long_as_the_window(recipe):
    check_usable(recipe({"data.max_length": 2048, "data.row_length": 2048}))
    assert "set data.max_length to 2048 or less" in (
        why_refused(recipe({"data.max_length": 2049, "data.row_length": 2049})) or ""
    )


def test_an_image_may_stand_in_any_source_after_records_that_cannot_be_read(recipe, tmp_path):
    """Where text teaches nothing: a source that is streamed may hold one, too."""
    text = {"question": "Why?", "answer": "So."}
    plain = {"path": questions(tmp_path, text, {"question": ""}), "format": "table"}
    pictured = described(tmp_path, "A red square.")
    base = {"tuner.text_route": "base", "data.on_bad_record": "skip", "training.max_steps": 1}
    assert why_refused(recipe({**base, "data.train": [plain]})) == NO_IMAGE
    both = [plain, {"path": pictured, "format": "captions"}]
    check_usable(recipe({**base, "data.train": both}))
    check_usable(recipe({**base, "data.train": [{**plain, "streaming": True}]}))


def test_files_that_are_there_are_read_although_others_may_be_absent(recipe, tmp_path):
    questions(tmp_path, {"question": "Why?", "answer": "So."}, name="part-1.jsonl")
    several = {"data.train": [{"path": str(tmp_path / "part-*.jsonl"), "format": "table"}]}
    page = recipe({**several, "tuner.text_route": "base"}, check_paths=False)
    assert why_refused(page, skip_absent=True) == NO_IMAGE
    absent = {"data.train": [{"path": str(tmp_path / "other-*.jsonl"), "format": "table"}]}
    page = recipe({**absent, "tuner.text_route": "base"}, check_paths=False)
    assert why_refused(page, skip_absent=True) is None


def test_steps_are_held_against_the_schedule_where_they_are_known(recipe):
    late = {"training.lr_scheduler_type": "polynomial", "training.warmup_steps": 99}
    assert why_refused(recipe(late)) is None
    assert "training.warmup_steps: " in (why_refused(recipe(late), steps=50) or "")
    assert why_refused(recipe(late), steps=500) is None


def test_quantised_weights_are_not_tuned_whole(recipe):
    page = recipe({"model.quantization": "nf4", "tuner": {"type": "full"}})
    assert "quanti" in (why_refused(page) or "")
