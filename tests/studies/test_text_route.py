"""The text-route study: easy-VQA as its package has it, its sums, and once all of it in small."""

import json

import pytest
from PIL import Image
from studies.easy_vqa import KINDS, installed, write_easy_vqa
from studies.retention_frontier import QUICK, QUICK_SECONDS, Study
from studies.text_route import SEEDS, Route, gathered, table

from varifocal.data.loading import load_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection


@pytest.fixture
def package(tmp_path):
    """Data as the package has them: several questions an image, not all kinds of each."""
    data = tmp_path / "package"
    for split in ("train", "test"):
        (data / split / "images").mkdir(parents=True)
        questions = []
        for image in range(8):
            colour = "blue" if image % 2 else "red"
            Image.new("RGB", (64, 64), colour).save(data / split / "images" / f"{image}.png")
            questions += [
                ["what color is the shape?", colour, image],
                ["is there a circle?", "yes", image],
                ["is there a triangle?", "no", image],
            ]
            if image != 3:
                questions.append(["what shape is in the image?", "circle", image])
        (data / split / "questions.json").write_text(json.dumps(questions))
    return data


def test_easy_vqa_asks_its_kinds_in_turn_and_says_what_the_image_shows(tmp_path, package):
    out = tmp_path / "easy-vqa"
    write_easy_vqa(package, out, {"train": 4, "test": 2})
    section = FileSection(path=str(out), format="scienceqa", split="train")
    examples = list(load_source(section))
    problems = json.loads((out / "problems.json").read_text())
    train = [problems[example.id] for example in examples]
    assert [one["choices"] for one in train] == 2 * [list(each) for each in KINDS.values()]
    answers = [one["choices"][one["answer"]] for one in train]
    assert answers == ["circle", "blue", "circle", "red"]
    captions = [one["caption"] for one in train]
    assert captions == [f"A {colour} circle." for colour in ("red", "blue", "red", "red")]
    assert "train-3" not in problems  # nobody asks for its shape
    assert "train-4" in problems
    assert train[1]["question"] == "What color is the shape?"
    assert all(example.images for example in examples)
    assert sum(one["split"] == "test" for one in problems.values()) == 2


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("studies.easy_vqa.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install --no-deps easy-vqa==1\.0"):
        installed()


def measured(right):
    return {"right": right, "questions": 160, "steps": 50}


def test_routes_are_compared_seed_by_seed():
    trained = {0: measured(60.0), 1: measured(50.0), 2: measured(70.0), 3: measured(90.0)}
    base = {1: measured(51.0), 0: measured(58.0), 2: measured(70.0)}
    sets = gathered(
        {
            "sciencebook": {"trained": trained, "base": base},
            "easy-vqa": {"trained": {0: measured(1.0)}, "base": {}},
        }
    )
    assert sets.keys() == {"sciencebook"}
    assert sets["sciencebook"]["seeds"] == [0, 1, 2]
    assert sets["sciencebook"]["trained"]["values"] == [60.0, 50.0, 70.0]
    assert sets["sciencebook"]["difference"]["values"] == [-2.0, 1.0, 0.0]
    line = table({"sets": sets}).splitlines()[2]
    assert line.startswith("| sciencebook | 3 | 50 | 160 | 60.0 (")
    assert "| -0.3 (" in line


@pytest.mark.slow
def test_the_whole_study_in_small(tmp_path, package):
    pytest.importorskip("gguf")
    route = Route(Study(tmp_path / "out", QUICK, [0], QUICK_SECONDS), small=True)
    (tmp_path / "out").mkdir()
    route.run(package)
    page = json.loads((tmp_path / "out" / "text-route.json").read_text())
    assert page["sets"].keys() == SEEDS.keys()
    assert page["sets"]["easy-vqa"]["questions"] == 2
    assert page["sets"]["sciencebook"]["questions"] == 4
    assert page["sets"]["sciencebook"]["steps"] == [1]
