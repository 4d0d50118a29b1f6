"""Cells of tables as people save them: images, choices, templates and placeholders."""

import base64
import io
import json

import pytest
from PIL import Image as Pillow

from varifocal.data.example import Image
from varifocal.data.formats.choices import read_choices
from varifocal.data.loading import load_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection


@pytest.fixture
def load(tmp_path):
    (tmp_path / "coco").mkdir()
    for name, color in (("a.png", "red"), ("b.png", "blue"), ("coco/000042.png", "green")):
        Pillow.new("RGB", (6, 4), color).save(tmp_path / name)

    def load(content, name="a.jsonl", **asked):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text)
        (example,) = load_source(FileSection(path=str(tmp_path / name), **asked))
        return example

    return load


def asked(example):
    """Return the user's turn, with the colour of each image in its place."""
    return [
        part.open().getpixel((0, 0)) if isinstance(part, Image) else part
        for part in example.messages[0].content
    ]


RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def png(color="red"):
    file = io.BytesIO()
    Pillow.new("RGB", (6, 4), color).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": "a.png", "question": "<image> What?"}, [RED, "What?"]),
        ({"image": "a.png", "question": "<image>\nWhat?"}, [RED, "What?"]),
        ({"image": "a.png", "question": "In <image>, what?"}, ["In ", RED, ", what?"]),
        ({"image": "a.png", "question": "What?"}, [RED, "What?"]),
        (
            {"images": ["a.png", "b.png"], "question": "<image> or <image>?"},
            [RED, " or ", BLUE, "?"],
        ),
        ({"images": ["a.png", "b.png"], "question": "What?"}, [RED, BLUE, "What?"]),
        ({"images": '["b.png", "a.png"]', "question": "What?"}, [BLUE, RED, "What?"]),
        ({"image_1": "a.png", "image_2": "b.png", "question": "Same?"}, [RED, BLUE, "Same?"]),
        ({"image_1": "a.png", "image_2": None, "question": "What?"}, [RED, "What?"]),
        ({"image": "a.png", "image_2": "b.png", "question": "Same?"}, [RED, BLUE, "Same?"]),
        ({"images": [], "question": "What?"}, ["What?"]),
        (
            {"image": "a.png", "question": "<image> What?", "choices": "red|blue"},
            [RED, "Question: What?\nOptions: (A) red (B) blue"],
        ),
        (
            {"image": "a.png", "question": "What?", "context": "Look: <image>"},
            ["Question: What?\nContext: Look: ", RED],
        ),
    ],
)
def test_images_stand_where_the_question_has_them(load, row, expected):
    assert asked(load({"answer": "red", **row})) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "<image> What?"}, "1 placeholders <image>, but 0 images"),
        ({"image": "a.png", "question": "<image><image>?"}, "2 placeholders <image>, but 1"),
        ({"image": "a.png", "question": "What?", "answer": "<image>"}, "in the answer"),
        ({"images": ["a.png"], "image_1": "b.png", "question": "?"}, "both 'images' and 'image_1'"),
    ],
)
def test_placeholders_and_images_that_disagree_are_told(load, row, said):
    with pytest.raises(DataError, match=f"a.jsonl: line 1.*{said}"):
        load({"answer": "red", **row})


@pytest.mark.parametrize(
    ("columns", "row", "expected"),
    [
        ({"image": "coco/{image_id:06}.png"}, {"image_id": 42}, [GREEN, "What?"]),
        ({"image": "coco/{image_id:06}.png"}, {"image_id": "42"}, [GREEN, "What?"]),
        ({"image": "coco/{image_id:06}.png"}, {"image_id": None}, ["What?"]),
        ({"image": "left|right"}, {"left": "a.png", "right": "b.png"}, [RED, BLUE, "What?"]),
        ({"image": "{l}.png|{r}.png"}, {"l": "a", "r": "b"}, [RED, BLUE, "What?"]),
        ({"image": "photos"}, {"photos": ["a.png", "b.png"]}, [RED, BLUE, "What?"]),
    ],
)
def test_an_image_may_be_a_template_or_several_columns(load, columns, row, expected):
    row = {"question": "What?", "answer": "red", **row}
    assert asked(load(row, columns=columns)) == expected


def test_a_templates_width_is_bounded(load):
    row = {"question": "What?", "answer": "red", "n": 1}
    with pytest.raises(DataError, match="wider than 99"):
        load(row, columns={"image": "{n:0999999999}"})


@pytest.mark.parametrize(
    "cell",
    ["red|blue", '["red", "blue"]', "['red', 'blue']", ["red", "blue"], {"text": ["red", "blue"]}],
)
def test_choices_are_read_as_people_write_them(load, cell):
    row = {"question": "Which?", "choices": cell, "answer": "blue"}
    assert load(row).choices == ("red", "blue")


def test_choices_may_stand_in_columns(load):
    row = {"question": "Why?", "answer0": "Dark.", "answer1": "Noon.", "label": "1"}
    columns = {"choices": "{answer0}|{answer1}", "answer": "label"}
    example = load(row, columns=columns, answer_is="index")
    assert (example.choices, example.answer_index) == (("Dark.", "Noon."), 1)


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ({"text": "red"}, "must be a list"),
        ({"text": ["a", "b"], "label": ["A"]}, "2 choices have 1 labels"),
        ([["a"], ["b"]], "a choice must be a text"),
        ("[" * 5000 + "]" * 5000, "2 to 26 choices"),
        ('["a"]', "2 to 26 choices"),
        ([None, "a"], "2 to 26 choices"),
    ],
)
def test_choices_that_cannot_be_read_are_a_sentence(cell, said):
    with pytest.raises(DataError, match=f"a.jsonl: line 1: .*{said}"):
        read_choices(cell, "a.jsonl: line 1")


def test_a_table_in_csv_with_json_in_its_cells(load):
    text = 'images,question,choices,answer\n"[""a.png"", ""b.png""]",Same?,"[""yes"", ""no""]",no\n'
    example = load(text, name="a.csv")
    assert asked(example)[:2] == [RED, BLUE]
    assert (example.choices, example.answer_index) == (("yes", "no"), 1)


@pytest.mark.parametrize("form", ["bare", "uri", "dict", "wrapped"])
def test_an_image_may_stand_in_a_cell_as_base64(load, form):
    text = base64.b64encode(png()).decode()
    if form == "wrapped":
        text = "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    cell = {"uri": f"data:image/png;base64,{text}", "dict": {"bytes": text}}.get(form, text)
    assert asked(load({"question": "What?", "answer": "red", "image": cell})) == [RED, "What?"]


def test_base64_of_no_image_is_named_by_its_start(load):
    cell = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode() + "*" * 100
    with pytest.raises(DataError, match=r"a\.jsonl: line 1: .* is not base64"):
        load({"question": "What?", "answer": "red", "image": cell})
