"""`retention` and `compare --retention` on a tiny trained graft, whose base is known."""

import json
import shutil
from types import SimpleNamespace

import pytest

from varifocal.evaluation.predictions import find_predictions, read_predictions
from varifocal.evaluation.readings import TokenAsker
from varifocal.evaluation.retention_data import gather_material, scenes
from varifocal.evaluation.retention_texts import PROMPTS, PROSE
from varifocal.trained_weights import command_for
from varifocal.training.train import run_training

# peft 0.21 reads a name that transformers 5.23 has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")

MEASURES = [
    "perplexity",
    "questions right %",
    "answer tokens agreeing %",
    "answers the same %",
    "perplexity after an image",
    "answer tokens agreeing % after an image",
]


@pytest.fixture(scope="module")
def runs():
    """Tuner and its text route -> its run, trained by the first test that asks for it."""
    return {}


@pytest.fixture
def trained(runs, recipe, rewrite, book, tmp_path):
    """Train on the book's images and ask its texts: `trained("mma")` gives the run."""

    def split(problems, splits):
        plain = [pid for pid in splits["train"] if problems[pid]["image"] is None]
        splits["train"] = [pid for pid in splits["train"] if pid not in plain]
        splits["test"] = plain

    rewrite(split)

    def make(kind, **settings):
        name = "-".join([kind, *settings.values()])
        if name in runs:
            return runs[name]
        test = {"path": str(book), "format": "scienceqa", "split": "test"}
        page = recipe(
            {
                "tuner": {"type": kind, **settings},
                "data.evaluate": [test],
                "training.max_steps": 2,
            }
        )
        run_training(page, tmp_path / name)
        runs[name] = tmp_path / name
        return runs[name]

    return make


@pytest.fixture
def data(tmp_path):
    """Another task's questions and instructions, as --data takes them."""
    questions = tmp_path / "data" / "scienceqa-text"
    questions.mkdir(parents=True)
    problem = {"question": "Up?", "choices": ["yes", "no"], "answer": 0, "hint": "", "image": None}
    extra = {"subject": "natural science", "grade": "grade3", "lecture": "", "solution": ""}
    problems = {str(n): {**problem, **extra} for n in range(4)}
    (questions / "problems.json").write_text(json.dumps(problems))
    (questions / "pid_splits.json").write_text(json.dumps({"train": [], "val": list(problems)}))
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}."} for n in range(3)]
    (tmp_path / "data" / "alpaca").mkdir()
    (tmp_path / "data" / "alpaca" / "some.json").write_text(json.dumps(rows))
    return tmp_path / "data"


PARTS = ("text", "questions", "answers", "after-image")
HELD = {
    "perplexity": (1335.4105865290444, 1335.4105865290444, 1375.230278915991),
    "questions right %": (0.0, 0.0, 0.0),
    "answer tokens agreeing %": (100.0, 100.0, 88.88888888888889),
    "answers the same %": (100.0, 100.0, 0.0),
    "perplexity after an image": (9.332202045490936, 14.556640548875688, 14.701444645856826),
    "answer tokens agreeing % after an image": (100.0, 60.416666666666664, 58.333333333333336),
}
"""What MMA after two steps has had since commit c330290, base, off and on."""


def rows_of(root):
    page = json.loads((root / "eval" / "retention.json").read_text())
    return page, {row["name"]: row for row in page["rows"]}


def test_one_table_of_what_was_kept(run, trained, data):
    """Off is the base bit for bit; the base agrees with what it wrote; on has moved."""
    root = trained("mma")
    code, out, _ = run("retention", root, "--data", data, "--limit", 4)
    assert code == 0
    page, rows = rows_of(root)
    assert list(rows) == MEASURES
    assert [row["count"] for row in rows.values()] == [3, 4, 3, 3, 4, 4]
    for name, row in rows.items():
        # The off model has an image before the description; the base has the description alone.
        assert (row["off"] == row["base"]) == ("image" not in name)
        assert row["base"]["low"] <= row["base"]["value"] <= row["base"]["high"]
    assert rows["answers the same %"]["base"]["value"] == 100
    assert rows["perplexity"]["on"]["value"] != rows["perplexity"]["base"]["value"]
    for name, held in HELD.items():
        values = [rows[name][key]["value"] for key in ("base", "off", "on")]
        assert values == pytest.approx(held, rel=1e-4)
    assert page["command"] == f"varifocal retention {root} --data {data} --limit 4"
    assert "scienceqa-text, split val" in page["sources"]["questions"]
    assert "some.json" in page["sources"]["text"]
    assert page["sources"]["instructions"].endswith("some.json")
    assert not any("own task" in note for note in page["notes"])
    assert "mma, on: texts take its text route" in out
    assert "= base" in out
    assert "What was kept of the language model" in (root / "README.md").read_text()


def test_a_stopped_call_goes_on_and_every_line_shows_what_was_read(run, trained, data, monkeypatch):
    """The second call asks what the first did not; a third asks nothing, and gives the same."""
    root, asked = trained("mma"), []
    shutil.rmtree(root / "eval", ignore_errors=True)
    options = ("retention", root, "--data", data, "--limit", 2)
    score = TokenAsker.score

    def counted(self, prompts, normalisation):
        if len(asked) == 4:
            asked.append("stopped")
            raise KeyboardInterrupt
        asked.append(len(prompts))
        return score(self, prompts, normalisation)

    monkeypatch.setattr(TokenAsker, "score", counted)
    run(*options)
    assert asked == [2, 2, 2, 2, "stopped"]  # all of the base's, and the texts of off
    assert not (root / "eval" / "retention.json").exists()
    assert run(*options)[0] == 0
    assert asked[5:] == [2, 2, 2, 2, 2]
    first = rows_of(root)
    assert run(*options)[0] == 0
    assert len(asked) == 10
    assert rows_of(root) == first
    suites = find_predictions(root / "eval" / "retention")
    assert sorted(suites) == sorted(
        ["base-writes", "base-describes"]
        + [f"{n}-{p}" for n in ("base", "off", "on") for p in PARTS]
    )
    line = read_predictions(suites["off-answers"]).lines["2"]
    assert "Say 1." in line.question
    assert (line.credit, line.answer) == (1.0, line.gold)
    assert command_for(suites["off-answers"]) == f"varifocal retention {root}"
    code, out, _ = run("compare", *[root / "eval" / "retention"] * 2)
    assert code == 0
    assert "on-answers" in out


def test_text_that_is_left_to_the_base_has_lost_nothing(run, trained, data):
    """Every line of text is the base's; what comes after an image went through the adapter."""
    root = trained("mma", text_route="base")
    code, out, _ = run("retention", root, "--data", data, "--limit", 2)
    assert code == 0
    _, rows = rows_of(root)
    assert list(rows) == MEASURES
    for name, row in rows.items():
        if "image" not in name:
            assert row["on"] == row["off"] == row["base"]
    after = rows["perplexity after an image"]
    assert after["on"]["value"] != after["off"]["value"]
    assert "mma, on: texts run the base model (tuner.text_route: base)" in " ".join(out.split())


def test_without_data_the_run_has_what_it_takes(run, trained):
    """Its own text questions, which is said, and the package's instructions."""
    root = trained("full")
    code, out, _ = run("retention", root, "--limit", 2)
    assert code == 0
    page, rows = rows_of(root)
    assert [row["count"] for row in rows.values()] == [2, 2, 2, 2, 2, 2]
    assert page["sources"]["text"] == "2 paragraphs of prose that come with varifocal"
    assert page["sources"]["after an image"] == "2 drawn images with their true descriptions"
    assert page["sources"]["instructions"] == "2 plain instructions that come with varifocal"
    assert "what comes from data.evaluate is the run's own task" in out
    assert "tuner 'full' has no adapter to switch off" in out


def test_text_of_ones_own_and_what_was_trained_on(run, trained, data, tmp_path):
    (tmp_path / "words.txt").write_text("Some words. " * 60)  # 720 tokens: windows of 256
    root = trained("mma")
    told = ("--data", data / "scienceqa-text", "--text", tmp_path / "words.txt", "--limit", 3)
    code, _, _ = run("retention", root, *told)
    assert code == 0
    page, rows = rows_of(root)
    assert rows["perplexity"]["count"] == 3
    assert page["sources"]["text"].endswith("words.txt, windows of 256 tokens")


def test_a_training_source_is_not_held_out(recipe, data):
    section = {"path": str(data / "alpaca"), "format": "alpaca"}
    page = recipe({"data.train": [section]})
    encoder = SimpleNamespace(max_length=160, encode=len)
    found = gather_material(page, encoder, data, data / "alpaca" / "some.json", 0)
    assert (
        found.notes
        == [f"{data}/alpaca/some.json is a training source of this run: it is not held out"] * 2
    )


def test_tables_of_several_runs_stand_together(run, trained, data):
    mma, full = trained("mma"), trained("full")
    for root in (mma, full):
        if not (root / "eval" / "retention.json").is_file():  # this test alone
            assert run("retention", root, "--data", data, "--limit", 2)[0] == 0
    code, out, _ = run("compare", mma, full, "--retention")
    assert code == 0
    names = [out.index("perplexity"), out.index("mma ("), out.index("full (")]
    assert names == sorted(names)


@pytest.mark.parametrize("option", ["--suite=pope", "--out=x", "--any-prompt"])
def test_compare_refuses_what_its_table_of_text_skills_would_not_heed(run, option):
    code, _, err = run("compare", "a", "b", "--retention", option)
    assert code != 0
    assert f"leave out {option.partition('=')[0]}" in err


def test_what_is_missing_is_said(run, trained, tmp_path):
    root = trained("mma")
    _, _, err = run("retention", root, "--data", tmp_path / "nowhere")
    assert "--data: no folder" in err
    (tmp_path / "empty").mkdir()
    _, _, err = run("retention", root, "--data", tmp_path / "empty")
    assert "has neither scienceqa-text/problems.json nor alpaca/*.json" in err
    (tmp_path / "new").mkdir()
    _, _, err = run("compare", tmp_path / "new", root, "--retention")
    assert f"make it with: varifocal retention {tmp_path}/new" in " ".join(err.split())


def test_a_missing_image_does_not_stop_what_asks_no_images(run, trained, data):
    """It is counted and named: the record with it is not among the questions without images."""
    file = data / "scienceqa-text" / "problems.json"
    problems = json.loads(file.read_text())
    problems["1"]["image"] = "lost.png"
    file.write_text(json.dumps(problems))
    root = trained("mma")
    code, out, _ = run("retention", root, "--data", data)
    assert code == 0
    page, rows = rows_of(root)
    assert (rows["questions right %"]["count"], page["records_left_out"]) == (3, 0)
    (note,) = [one for one in page["notes"] if "image is missing" in one]
    assert "1 record, the first" in note
    assert "lost.png" in note
    assert "lost.png" in "".join(out.split())


@pytest.mark.parametrize("part", ["question", "instruction", "text"])
def test_a_bad_record_is_named_or_left_out_and_counted(run, trained, data, tmp_path, part):
    """A question without its answer, an instruction without a text, a row of text without it."""
    file = damage(data, tmp_path, part)
    root, more = trained("mma"), ("--data", data, "--text", tmp_path / "text.jsonl")
    code, _, err = run("retention", root, *more)
    assert code == 2
    assert file.name in "".join(err.split())
    assert "--on-bad-record skip" in " ".join(err.split())
    code, out, err = run("retention", root, *more, "--on-bad-record", "skip")
    assert code == 0
    page, rows = rows_of(root)
    counts = {"text": 3, "question": 4, "instruction": 3}
    counts[part] -= 1
    assert [row["count"] for row in rows.values()][:3] == list(counts.values())
    assert page["records_left_out"] == len(page["left_out"]) == 1
    assert file.name in page["left_out"][0]
    assert "left out as bad: 1 record, the first" in " ".join(out.split())
    assert f"left out: {page['left_out'][0]}" in err


def damage(data, tmp_path, part):
    """Write three rows of text; break one record of a part, and return its file."""
    text = [{"text": f"Some words, {n}."} for n in range(3)]
    files = {
        "question": data / "scienceqa-text" / "problems.json",
        "instruction": data / "alpaca" / "some.json",
        "text": tmp_path / "text.jsonl",
    }
    if part == "question":
        problems = json.loads(files[part].read_text())
        problems["1"]["answer"] = 7
        files[part].write_text(json.dumps(problems))
    elif part == "instruction":
        rows = json.loads(files[part].read_text())
        rows[1]["output"] = None
        files[part].write_text(json.dumps(rows))
    else:
        text[1] = {"words": "none"}
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, text)))
    return files[part]


def test_scenes_are_all_different_and_described():
    asked = [parts.content for scene in scenes(9) for parts in scene.messages]
    assert len({scene[0].fingerprint() for scene in asked}) == 9
    assert all(isinstance(scene[1], str) and len(scene[1]) > 60 for scene in asked)


def test_the_prompts_and_the_prose_are_all_different():
    assert len(set(PROMPTS)) == len(PROMPTS)
    assert len(set(PROSE)) == len(PROSE)
    assert all(300 < len(paragraph) < 500 for paragraph in PROSE)
