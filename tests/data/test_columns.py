"""Columns of a table by paths into cells, by templates and by labels of choices."""

import json

import pytest
from PIL import Image as Pillow

from varifocal.data.example import Image
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection


@pytest.fixture
def source(tmp_path):
    """Open two rows, or more, as a table."""
    (tmp_path / "val").mkdir()
    for name in ("COCO_val2014_000000000042.png", "COCO_val2014_000000000007.png"):
        Pillow.new("RGB", (6, 4), "red").save(tmp_path / "val" / name)

    def source(rows, **asked):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return open_source(FileSection(path=str(tmp_path / "a.jsonl"), **asked))

    return source


def said(example):
    return [
        "".join(part.path.name if isinstance(part, Image) else part for part in message.content)
        for message in example.messages
    ]


SQUAD = [
    {"question": "What floats?", "context": "Ice floats.", "answers": {"text": ["Ice", "ice"]}},
    {"question": "What sinks?", "context": "Iron sinks.", "answers": {"text": ["Iron"]}},
]
LABELLED = [
    {"stem": "A metal?", "options": {"text": ["tin", "wood"], "key": ["1", "2"]}, "gold": "2"},
    {"stem": "A tree?", "options": {"text": ["oak", "tin"], "key": ["1", "2"]}, "gold": "1"},
]
LISTED = [
    {"stem": "A metal?", "options": [{"t": "tin", "k": "x"}, {"t": "wood", "k": "y"}], "gold": "x"},
    {"stem": "A tree?", "options": [{"t": "tin", "k": "x"}, {"t": "oak", "k": "y"}], "gold": "y"},
]
FEW = [
    {"question": "Is it?", "A": "yes", "B": "no", "C": "perhaps", "answer": "C"},
    {"question": "Which?", "A": "tin", "B": "oak", "C": "", "answer": "B"},
]
COCO = [
    {"question": "Colour?", "image_id": 42, "meta": {"split": "val"}, "answer": "red"},
    {"question": "Size?", "image_id": 7, "meta": {"split": "val"}, "answer": "small"},
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (
            SQUAD,
            {"answer": "answers.text.0"},
            [
                ["Question: What floats?\nContext: Ice floats.", "Ice"],
                ["Question: What sinks?\nContext: Iron sinks.", "Iron"],
            ],
        ),
        (
            LABELLED,
            {
                "question": "stem",
                "choices": "options.text",
                "choice_labels": "options.key",
                "answer": "gold",
            },
            [
                ["Question: A metal?\nOptions: (A) tin (B) wood", "wood"],
                ["Question: A tree?\nOptions: (A) oak (B) tin", "oak"],
            ],
        ),
        (
            LISTED,
            {
                "question": "stem",
                "choices": "options.t",
                "choice_labels": "options.k",
                "answer": "gold",
            },
            [
                ["Question: A metal?\nOptions: (A) tin (B) wood", "tin"],
                ["Question: A tree?\nOptions: (A) tin (B) oak", "oak"],
            ],
        ),
        (
            FEW,
            {"choices": "{A}|{B}|{C}"},
            [
                ["Question: Is it?\nOptions: (A) yes (B) no (C) perhaps", "perhaps"],
                ["Question: Which?\nOptions: (A) tin (B) oak", "oak"],
            ],
        ),
        (
            COCO,
            {"image": "{meta.split}/COCO_val2014_{image_id:012d}.png"},
            [
                ["COCO_val2014_000000000042.pngColour?", "red"],
                ["COCO_val2014_000000000007.pngSize?", "small"],
            ],
        ),
    ],
)
def test_columns_lead_to_what_is_meant(source, rows, columns, expected, streaming):
    assert [said(one) for one in source(rows, columns=columns, streaming=streaming)] == expected


def test_all_answers_stand_below_a_path(source):
    first, second = source(SQUAD, columns={"answers": "answers.text"})
    assert (first.answers, said(first)[1]) == (("Ice", "ice"), "Ice")
    assert (second.answers, said(second)[1]) == ((), "Iron")


def test_a_whole_name_with_a_dot_comes_before_a_path(source):
    rows = [{"question": "a", "x.y": "name", "x": {"y": "path"}}]
    (example,) = source(rows, columns={"answer": "x.y"})
    assert said(example)[1] == "name"


def test_a_split_may_lie_below_a_path(source):
    rows = [*COCO, {**COCO[0], "meta": {"split": "test"}, "answer": "blue"}]
    (example,) = source(rows, split="test", columns={"split": "meta.split"})
    assert said(example)[1] == "blue"


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (SQUAD, {"answer": "answers.txt"}, "no column 'answers.txt'.*did you mean 'answers.text'"),
        (SQUAD, {"answer": "anwers.text.0"}, "did you mean 'answers.text'"),
        (SQUAD, {"answer": "answers.text.9"}, "no column 'answers.text.9' for answer"),
        (LISTED, {"question": "stem", "answer": "options.q"}, "did you mean 'options"),
        (COCO, {"image": "{image_ix:012d}.png"}, "no column 'image_ix'.*did you mean 'image_id'"),
        (FEW, {"choices": "{A}|{B}|{Z}"}, "no column 'Z' for choices"),
        (SQUAD, {"answer": "nswer"}, "no column 'nswer' for answer"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(source, rows, columns, expected):
    with pytest.raises(DataError, match=expected):
        source(rows, columns=columns).example(0)


def test_columns_that_a_path_reads_are_not_told_as_unread(source):
    rows = [{**row, "facts": "tin is soft"} for row in LABELLED]
    columns = {
        "question": "stem",
        "choices": "options.text",
        "choice_labels": "options.key",
        "answer": "gold",
    }
    assert source(rows, columns=columns).notes() == [
        "a.jsonl: as table, these columns are not read: facts"
    ]
