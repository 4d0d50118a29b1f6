"""`data make mlan`: its sets as they lie on disks, counts by share and seed, and what is absent."""

import json

import pytest
from PIL import Image as Pillow
from typer.testing import CliRunner

from varifocal.cli.commands import app
from varifocal.data.loading import load_source
from varifocal.data.mlan import SETS, make_mlan
from varifocal.errors import DataError
from varifocal.recipe import FileSection

CHOICES = [{"label": "A", "text": "tin"}, {"label": "B", "text": "wood"}]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def squad(number):
    qas = [
        {"id": f"s{n}", "question": f"What is {n}?", "answers": [{"text": f"it {n}"}]}
        for n in range(number)
    ]
    return json.dumps({"version": "1.1", "data": [{"paragraphs": [{"context": "C", "qas": qas}]}]})


def vqa(number):
    asked = [
        {"image_id": n % 2, "question": f"Colour {n}?", "question_id": n} for n in range(number)
    ]
    answers = [
        {
            "question_id": n,
            "multiple_choice_answer": f"red {n}",
            "answers": [{"answer": f"red {n}"}],
        }
        for n in range(number)
    ]
    return json.dumps({"questions": asked}), json.dumps({"annotations": answers})


@pytest.fixture
def data(tmp_path):
    """Every set in the layout of its official files; the smaller ones have three questions."""
    root = tmp_path / "data"
    stem = {"question": {"stem": "A metal?", "choices": CHOICES}, "answerKey": "A"}
    cosmos = {"context": "Dark.", "question": "Why lit?", "label": "1"}
    cosmos |= {f"answer{n}": f"reason {n}" for n in range(4)}
    asked, answers = vqa(30)
    aokvqa = {"question": "Colour?", "choices": ["red", "blue"], "correct_choice_idx": 1}
    files = {
        "squad/train-v1.1.json": squad(40),
        "strategyqa/strategyqa_train.json": json.dumps(
            [{"qid": "q", "question": "Do boats float?", "answer": True, "facts": ["f"]}] * 3
        ),
        "commonsenseqa/train_rand_split.jsonl": lines([stem] * 3),
        "cosmosqa/train.csv": "id,context,question,answer0,answer1,answer2,answer3,label\n"
        + "1,Dark.,Why lit?,reason 0,reason 1,reason 2,reason 3,1\n" * 3,
        "arc/ARC-Challenge-Train.jsonl": lines([stem] * 2),
        "arc/ARC-Easy-Train.jsonl": lines([stem]),
        "vqa/v2_OpenEnded_mscoco_train2014_questions.json": asked,
        "vqa/v2_mscoco_train2014_annotations.json": answers,
        "aokvqa/aokvqa_v1p0_train.json": json.dumps([aokvqa | {"image_id": 7}] * 3),
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name in ("train2014/COCO_train2014_%012d.jpg", "train2017/%012d.jpg"):
        for number in (0, 1, 7):
            image = root / "coco" / (name % number)
            image.parent.mkdir(parents=True, exist_ok=True)
            Pillow.new("RGB", (4, 4), "red").save(image)
    return root


def mix(data, out, **changes):
    return make_mlan(out, data, **{"text_share": 0.5, "total": 40, "seed": 0, **changes})


@pytest.mark.parametrize(
    ("share", "text", "images"), [(0.5, 20, 20), (0.875, 28, 4), (1.0, 40, 0), (0.0, 0, 20)]
)
def test_the_share_is_the_share_and_small_sets_give_all_they_have(
    data, tmp_path, share, text, images
):
    total = text + images
    mixture = mix(data, tmp_path / "out", text_share=share, total=total)
    taken = {name: taken for name, (taken, _) in mixture.counts.items()}
    small = 3 if text else 0
    assert taken == {
        "squad": text - 4 * small,
        **dict.fromkeys(("strategyqa", "commonsenseqa", "cosmosqa", "arc"), small),
        "vqav2": max(images - 3, images - images // 2),
        "aokvqa": min(3, images // 2),
    }
    rows = json.loads(mixture.file.read_text())
    assert sum("image" in row for row in rows) == images
    assert len({row["id"] for row in rows}) == len(rows) == total
    assert mixture.absent == ()


def test_the_file_is_read_as_the_authors_files_are(data, tmp_path):
    mixture = mix(data, tmp_path / "out")
    source = FileSection(path=str(mixture.file), format="mlan", image_folder=str(data))
    rows = json.loads(mixture.file.read_text())
    examples = load_source(source)
    assert len(examples) == 40
    answers = {
        row["id"].split("-")[0]: example.messages[-1].text
        for row, example in zip(rows, examples, strict=True)
    }
    assert answers.pop("squad").startswith("it ")
    assert answers.pop("vqav2").startswith("red ")
    letters = {"commonsenseqa": "A", "arc": "A", "cosmosqa": "B", "aokvqa": "B"}
    assert answers == {"strategyqa": "yes", **letters}
    for row, example in zip(rows, examples, strict=True):
        asked = row["conversations"][0]["value"]
        assert asked.startswith("<image>\n") == ("image" in row)
        assert [image.path for image in example.images] == (
            [data / row["image"]] if "image" in row else []
        )
        if row["id"].startswith("strategyqa"):
            assert "yes or no" in asked
        if row["id"].startswith("cosmosqa"):
            assert "Dark." in asked
            assert all(f"reason {n}" in asked for n in range(4))


def test_a_seed_gives_the_same_file_and_another_one_another(data, tmp_path):
    texts = [
        mix(data, tmp_path / str(n), seed=seed).file.read_bytes()
        for n, seed in enumerate((3, 3, 4))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_more_of_a_set_leaves_the_others_draws_alone(data, tmp_path):
    def ids(share, total, name, out):
        rows = json.loads(mix(data, tmp_path / out, text_share=share, total=total).file.read_text())
        return {row["id"] for row in rows if row["id"].startswith("vqav2")}

    assert ids(0.0, 10, "a", "a") == ids(0.5, 20, "b", "b")


def test_absent_sets_are_named_with_where_they_come_from(data, tmp_path):
    (data / "squad/train-v1.1.json").rename(data / "elsewhere.json")
    mixture = mix(data, tmp_path / "out", text_share=0.5, total=20)
    assert [each.name for each in mixture.absent] == ["squad"]
    with pytest.raises(DataError) as caught:
        mix(data, tmp_path / "more", text_share=1.0, total=50)
    assert "has 12 questions without images and 50 are wanted; lower --total" in str(caught.value)
    assert "squad as squad/train-v1.1.json, from https://rajpurkar" in str(caught.value)
    with pytest.raises(DataError, match="has 33 questions with an image and 90 are wanted"):
        mix(data, tmp_path / "more", text_share=0.0, total=90)
    assert not (tmp_path / "more").exists()


def test_the_command_prints_counts_and_what_is_absent(data, tmp_path):
    (data / "arc/ARC-Easy-Train.jsonl").unlink()
    (data / "arc/ARC-Challenge-Train.jsonl").unlink()
    out = tmp_path / "out"
    command = ["data", "make", "mlan", str(out), "--data", str(data), "--text-share", "0.5"]
    result = CliRunner().invoke(app, [*command, "--total", "20"])
    assert result.exit_code == 0, result.output
    words = [line.split() for line in result.output.splitlines()]
    assert ["squad", "3", "40"] in words or ["squad", "2", "40"] in words
    assert ["all", "20", "82"] in words
    assert "absent: arc, from https://allenai.org/data/arc" in result.output
    again = CliRunner().invoke(app, [*command, "--total", "20"])
    assert again.exit_code != 0
    assert "is there already" in str(again.exception or again.output)


def test_a_missing_image_is_a_sentence(data, tmp_path):
    (data / "coco/train2017/000000000007.jpg").unlink()
    with pytest.raises(DataError, match=r"aokvqa_v1p0_train.json.*000000000007.jpg"):
        mix(data, tmp_path / "out")


def test_the_sets_are_those_of_the_papers_code():
    languages = [each.name for each in SETS if each.images is None]
    assert languages == ["squad", "strategyqa", "commonsenseqa", "cosmosqa", "arc"]
    assert [each.name for each in SETS if each.images] == ["vqav2", "aokvqa"]
