"""`tuner.text_route: base`: records without an image teach nothing and are left out of an epoch."""

import json

import pytest

from varifocal.assemble import assemble
from varifocal.data.source import Source
from varifocal.training.examples import load_training_data
from varifocal.training.train import run_training
from varifocal.training.usable import check_usable

BASE = {"tuner.text_route": "base"}
SENTENCE = "6 records without an image are left out: with tuner.text_route: base nothing is learned"


@pytest.fixture
def stream(tmp_path, book):
    """The settings of a stream: one record in three has an image."""
    record = {"question": "Which?", "choices": ["a", "b"], "answer": "a"}
    image = {**record, "image": str(next((book / "images").rglob("*.png")))}
    file = tmp_path / "stream.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in (record, image, record)))
    return {
        "data.train": [{"path": str(file), "format": "table", "streaming": True}],
        "training.max_steps": 1,
    }


@pytest.mark.parametrize("lazy", [False, True])
def test_an_epoch_holds_samples_with_images_alone(recipe, lazy):
    page = recipe({**BASE, "data.lazy": lazy})
    encoder = assemble(page).encoder
    data = load_training_data(page.data, encoder, images_only=True)
    rows = [data.rows[index] for index in range(len(data.rows))]
    assert {sample.modality for row in rows for sample in row} == {1}
    assert sum(len(row) for row in rows) == 9
    assert data.tally.num_text == 6
    (note,) = data.tally.notes()
    assert note.startswith(SENTENCE)
    whole = load_training_data(page.data, encoder)
    assert sum(len(whole.rows[index]) for index in range(len(whole.rows))) == 15
    assert whole.tally.num_text == 0


def test_a_stream_passes_text_over(recipe, stream):
    page = recipe({**BASE, **stream})
    data = load_training_data(page.data, assemble(page).encoder, num_rows=1, images_only=True)
    assert {sample.modality for sample in data.rows[0]} == {1}
    assert data.tally.num_text == 2


def test_much_text_before_an_image_is_not_read_through(recipe, book, tmp_path, monkeypatch):
    """Whether there is an image is asked of each source in turn: one of text may be huge."""
    text = {"question": "Which?", "choices": ["a", "b"], "answer": "a"}
    image = {**text, "image": str(next((book / "images").rglob("*.png")))}
    sources = []
    for name, records in {"text": [text] * 500, "image": [text, image]}.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(f"{json.dumps(each)}\n" for each in records))
        sources.append({"path": str(file), "format": "table"})
    page = recipe({**BASE, "data.train": sources})
    read, own = [], Source.example
    monkeypatch.setattr(Source, "example", lambda self, at: (read.append(at), own(self, at))[1])
    check_usable(page)
    assert read == [0, 0, 1, 1]


def test_train_plan_and_check_leave_it_out_and_say_so(run, recipe, recipe_file, tmp_path):
    options = ["--set", "tuner.text_route=base", "--set", "training.max_steps=1"]
    result = run_training(recipe({**BASE, "training.max_steps": 1}), tmp_path / "run")
    assert any(note.startswith(SENTENCE) for note in result.data_notes)
    page = json.loads((tmp_path / "run" / "data.json").read_text())
    assert page["num_text"] == 6
    assert {row["modality"] for row in page["realised"]} == {"image"}
    cost = json.loads((tmp_path / "run" / "cost.json").read_text())
    assert cost["tokens_text"] == 0
    assert cost["tokens"] > 0
    code, out, _ = run("data", "check", recipe_file, *options)
    assert code == 0
    assert f"usable: 9 of 15 records train; {SENTENCE}" in out.splitlines()[-1]
    code, out, _ = run("plan", recipe_file, "--device", "cpu", *options)
    assert code == 0
    assert SENTENCE in " ".join(out.split())
