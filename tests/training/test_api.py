"""The Python API: a recipe as a dict, a run as an object, a model that answers, and its data."""

import json

import PIL.Image
import pytest

import varifocal as vf
from varifocal.assemble import open_run
from varifocal.data.example import Image, Message
from varifocal.serving.engine import Engine


@pytest.fixture
def sections(parts, book):
    """A recipe as a dict: four steps on the book, scored on it."""
    source = {"path": book, "format": "scienceqa", "split": "train"}
    return {
        "name": "tiny",
        "seed": 5,
        "model": {
            "language_model": parts / "language",
            "vision_tower": parts / "clip",
            "connector": {"hidden_dim": 16, "num_tokens": 4, "num_global_tokens": 1},
            "dtype": "float32",
        },
        "tuner": {"type": "mma", "router_temperature": 1.0},
        "data": {"train": [source], "evaluate": [source], "max_length": 160, "row_length": 320},
        "training": {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1},
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_dict_is_trained_scored_asked_and_shown(sections, here, image_file):
    told = []
    trained = vf.train(sections, progress=lambda stage, *_: told.append(stage))
    assert "train" in told
    assert trained == vf.Run("runs/tiny")
    assert str(trained) == "runs/tiny"
    assert trained.result["steps"] == len(trained.metrics) == 4
    assert trained.recipe.tuner.type == "mma"
    assert (here / "runs" / "tiny" / "README.md").is_file()
    assert trained.scores == []
    scores = vf.evaluate(trained)
    assert [one.measure for one in scores if one.main] == ["average"]
    assert scores == trained.scores
    written = json.loads((here / "runs/tiny/eval/book-train.json").read_text())
    assert {one["name"]: one["count"] for one in written["measures"]}["IMG"] == 9
    page = trained._repr_html_()
    assert "<polyline" in page
    assert "book-train" in page
    answers_as_the_run(trained, image_file("0"))
    with pytest.raises(vf.RunError, match="holds a run already"):
        vf.train(sections)


def answers_as_the_run(run, pil_image):
    _, parts = open_run(run.root)
    engine = Engine(parts.model, parts.encoder, parts.load_images)
    shown = Message("user", (Image(path=pil_image), "Which?"))
    expected, plain = engine.answer([shown]), engine.answer([Message("user", ("Which?",))])
    assert expected != plain
    model = vf.load(run)
    for image in (pil_image, str(pil_image), pil_image.read_bytes(), PIL.Image.open(pil_image)):
        assert model.ask("Which?", [image]) == expected
    assert "".join(model.stream("Which?", [pil_image])) == expected
    content = [{"type": "image", "image": pil_image}, {"type": "text", "text": "Which?"}]
    asked = ["Which?", [{"role": "user", "content": content}], [shown]]
    assert model.generate(asked * 4) == [plain, expected, expected] * 4
    chat = model.chat()
    assert chat.ask("Which?", [pil_image]) == expected
    again = [shown, Message("assistant", (expected,)), Message("user", ("Why?",))]
    assert chat.ask("Why?") == engine.answer(again)
    for wrong, sentence in (
        ({"images": pil_image.name}, "a single one in brackets"),
        ({"images": [3]}, "not a int"),
        ({"temperature": -1}, "temperature must be at least 0"),
        ({"temprature": 1}, "unexpected keyword"),
    ):
        with pytest.raises(vf.DataError, match=sentence):
            model.ask("Which?", **wrong)
    with pytest.raises(vf.DataError, match="does not exist"):
        model.stream("Which?", ["nowhere.png"])  # before the first piece is asked for
    engine.close()
    model.close()


def test_a_run_needs_a_name_or_a_place(sections, here):
    del sections["name"]
    with pytest.raises(vf.RecipeError, match="no name for its run directory"):
        vf.train(sections)
    assert not (here / "runs").exists()
    with pytest.raises(vf.RunError, match="no run directory"):
        vf.Run(here)


def test_a_plan_of_a_dict_is_the_commands(sections, here, run, recipe_file):
    planned = vf.plan(sections, "cpu", num_devices=1)
    assert planned.steps == 4
    code, out, _ = run("plan", recipe_file, "--device", "cpu", "--json")
    assert code in (0, 1)
    of_file = vf.plan(recipe_file, "cpu").page()
    assert json.loads(json.dumps(of_file)) == json.loads(out)


def test_data_is_iterated_with_images_and_text(sections, book):
    data = vf.datasets(sections)
    assert list(data) == ["train", "evaluate"]
    train = data["train"]
    assert (len(train), len(list(train)), len(train[3:5])) == (15, 15, 2)
    assert [example.id for example in train] == [str(n) for n in range(15)]
    first = train[0]
    assert first.images[0].open().size == (28, 28)
    assert "Which colour?" in first.messages[0].text
    assert first.messages[-1].role == "assistant"
    doubled = {"data.train[0].epochs": 2.0}
    assert len(vf.datasets(sections, overrides=doubled)["train"]) == 30


def test_a_broken_record_is_named_or_skipped(book, rewrite):
    rewrite(lambda problems, splits: problems["2"].pop("choices"))
    options = {"format": "scienceqa", "split": "train"}
    with pytest.raises(vf.DataError, match="2"):
        list(vf.dataset(book, **options))
    data = vf.dataset(book, on_bad_record="skip", **options)
    assert len(data) == 15
    assert len(list(data)) == 14
    assert len(data.skipped) == 1
    with pytest.raises(vf.RecipeError, match=r"splt: unknown key; did you mean 'split'\?"):
        vf.dataset(book, splt="train")


def test_a_stream_is_iterated_without_a_length(tmp_path):
    rows = [{"question": f"What is {n}?", "answer": str(n)} for n in range(3)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stream = vf.dataset(file, streaming=True)
    assert [example.messages[-1].text for example in stream] == ["0", "1", "2"]
    assert not hasattr(stream, "__len__")


def test_a_run_in_a_notebook_escapes_every_text(tmp_path):
    root = tmp_path / "<b>run"
    (root / "eval").mkdir(parents=True)
    (root / "recipe.yaml").write_text("model: {language_model: '<i>'}\nprovenance: {}\n")
    assert "<b>" not in vf.Run(root)._repr_html_()  # of a recipe that cannot be read, too
    line = {"id": "<u>", "question": "<script>", "options": ["<s>", "b"], "gold": ["<s>"]}
    line |= {"choice": 1, "parsed": "b", "correct": 0.0, "columns": ["IMG"]}
    (root / "eval" / "a.predictions.jsonl").write_text(json.dumps(line) + "\n")
    score = {"name": "average", "value": 0.0, "low": 0.0, "high": 1.0, "count": 1, "unparsed": 0}
    page = {"main": "average", "measures": [score], "protocol": "<em>"}
    (root / "eval" / "a.json").write_text(json.dumps(page))
    metrics = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1}]
    (root / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in metrics))
    shown = vf.Run(root)._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "&lt;b&gt;run" in shown
    assert not any(tag in shown for tag in ("<script", "<b>", "<u>", "<s>", "<em>", "<i>", "nan"))


def test_two_runs_are_compared(tmp_path):
    for name, answer in (("a", 0), ("b", 1)):
        root = tmp_path / name / "eval"
        root.mkdir(parents=True)
        line = {"id": "1", "question": "?", "options": ["x", "y"], "gold": ["x"]}
        line |= {"choice": answer, "parsed": "xy"[answer], "correct": float(answer == 0)}
        (root / "s.predictions.jsonl").write_text(json.dumps(line) + "\n")
    found = vf.compare(tmp_path / "a", tmp_path / "b", out=tmp_path / "out")
    assert [suite.suite for suite in found.suites] == ["s"]
    assert found.suites[0].pairs[0].kind == "lost"
    written = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert written["suites"][0]["shared"] == 1
    assert (tmp_path / "out" / "compare.html").is_file()
