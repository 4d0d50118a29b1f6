"""Rows inside of rows, rows joined with another file, rows without names; both ways of reading."""

import json

import pytest
from PIL import Image as Pillow

from varifocal.data.example import Image
from varifocal.data.source import open_source
from varifocal.errors import DataError, RecipeError
from varifocal.recipe import FileSection, load_recipe


@pytest.fixture
def source(tmp_path):
    """Open the first of some files."""
    for name in ("COCO_val2014_000000000042.png", "0.png", "1.png"):
        Pillow.new("RGB", (6, 4), "red").save(tmp_path / name)

    def source(files, **asked):
        for name, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / name).write_text(text)
        section = FileSection.model_validate({"path": next(iter(files)), **asked})
        return open_source(section, root=tmp_path)

    return source


def said(example):
    return [
        "".join(part.path.name if isinstance(part, Image) else part for part in message.content)
        for message in example.messages
    ]


def question(text, answer, number):
    return {"id": number, "question": text, "answers": [{"text": answer, "answer_start": 0}]}


SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "Ice",
            "paragraphs": [
                {"context": "Ice floats.", "qas": [question("What floats?", "Ice", "1")]},
                {"context": "Ice melts.", "qas": []},
            ],
        },
        {
            "title": "Iron",
            "paragraphs": [{"context": "Iron sinks.", "qas": [question("What sinks?", "Iron", 2)]}],
        },
    ],
}
SQUAD_SAYS = [
    ["Question: What floats?\nContext: Ice floats.", "Ice"],
    ["Question: What sinks?\nContext: Iron sinks.", "Iron"],
]
NATURAL = {
    "Definition": ["Answer with one word."],
    "Positive Examples": [{"input": "Colour of coal?", "output": "black"}],
    "Instances": [
        {"id": "1", "input": "Colour of snow?", "output": ["white"]},
        {"id": "2", "input": "Colour of blood?", "output": ["red", "crimson"]},
    ],
}
VQA = {
    "questions.json": {
        "info": {},
        "questions": [
            {"image_id": 42, "question": "What colour?", "question_id": 42000},
            {"image_id": 42, "question": "Is it red?", "question_id": 42001},
        ],
    },
    "annotations.json": {
        "info": {},
        "annotations": [
            {"question_id": 42001, "answers": [{"answer": "yes"}] * 9 + [{"answer": "no"}]},
            {"question_id": 42000, "answers": [{"answer": "red"}] * 10},
        ],
    },
}
JOIN = {"path": "annotations.json", "field": "annotations", "key": "question_id"}
EASY = [["What colour?", "red", 0], ["Is it red?", "no", 1]]
EASY_SAYS = [["0.pngWhat colour?", "red"], ["1.pngIs it red?", "no"]]
NAMED = {
    "column_names": ["question", "answer", "image_id"],
    "columns": {"image": "{image_id}.png"},
}
LAYOUTS = {
    "SQuAD's file": ({"a.json": SQUAD}, {"record_path": "data.paragraphs.qas"}, SQUAD_SAYS),
    "SQuAD's file by its field": (
        {"a.json": json.dumps(SQUAD, indent=1)},
        {"field": "data", "record_path": "paragraphs.qas"},
        SQUAD_SAYS,
    ),
    "a task of Super-NaturalInstructions": (
        {"a.json": json.dumps(NATURAL, indent=1)},
        {
            "record_path": "Instances",
            "columns": {"question": "{Definition.0}\n{input}", "answer": "output"},
        },
        [
            ["Answer with one word.\nColour of snow?", "white"],
            ["Answer with one word.\nColour of blood?", "red"],
        ],
    ),
    "VQAv2's two files": (
        VQA,
        {
            "field": "questions",
            "join": JOIN,
            "columns": {"image": "COCO_val2014_{image_id:012d}.png"},
        },
        [
            ["COCO_val2014_000000000042.pngWhat colour?", "red"],
            ["COCO_val2014_000000000042.pngIs it red?", "yes"],
        ],
    ),
    "easy-VQA": ({"a.json": EASY}, NAMED, EASY_SAYS),
    "easy-VQA by line": ({"a.jsonl": "\n".join(map(json.dumps, EASY))}, NAMED, EASY_SAYS),
    "CSV without a header": ({"a.csv": "What colour?,red,0\nIs it red?,no,1\n"}, NAMED, EASY_SAYS),
    "keys of two names, a table's texts and numbers": (
        {
            "a.csv": "question,number\nWhat colour?,1\nIs it red?,2\n",
            "b.jsonl": '{"id": 2, "answer": "no"}\n{"id": 1, "answer": "red"}',
        },
        {"join": {"path": "b.jsonl", "key": "number", "key_there": "id"}},
        [["What colour?", "red"], ["Is it red?", "no"]],
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_of_several_parts_loads_by_keys(source, name, streaming):
    files, asked, expected = LAYOUTS[name]
    opened = source(files, streaming=streaming, **asked)
    assert [said(one) for one in opened] == expected
    if not streaming:
        assert [said(opened.example(number)) for number in (1, 0)] == expected[::-1]


def test_all_answers_of_a_joined_row_are_there(source):
    _, second = source(VQA, field="questions", join=JOIN)
    assert second.answers == ("yes",) * 9 + ("no",)


def test_a_row_without_its_other_half_is_a_broken_record(source):
    files = {**VQA, "annotations.json": {"annotations": VQA["annotations.json"]["annotations"][1:]}}
    for streaming in (False, True):
        first, second = source(files, field="questions", join=JOIN, streaming=streaming)
        assert said(first) == ["What colour?", "red"]
        assert "no row of" in str(second)
        assert "annotations.json' has question_id 42001" in str(second)


@pytest.mark.parametrize(
    ("files", "asked", "expected"),
    [
        ({"a.json": SQUAD}, {"record_path": "data.paragraph.qas"}, "did you mean 'paragraphs'"),
        ({"a.json": SQUAD}, {"record_path": "version"}, "'version'.*holds no list of objects"),
        ({"a.json": SQUAD}, {"field": "data"}, "say record_path: paragraphs.qas"),
        ({"a.json": [{"rows": []}]}, {"record_path": "rows"}, "no row under record_path 'rows'"),
        (VQA, {"field": "questions", "join": {**JOIN, "key": "question_ix"}}, "did you mean"),
        (VQA, {"field": "questions", "join": {**JOIN, "field": "annotation"}}, "did you mean"),
        (VQA, {"field": "questions", "join": {**JOIN, "path": "b.json"}}, "no file or folder"),
        (VQA, {}, "field: questions.*join: {path: ..., field: annotations, key: question_id}"),
        (
            dict(reversed(VQA.items())),
            {
                "field": "annotations",
                "join": {"path": "questions.json", "field": "questions", "key": "image_id"},
            },
            "image_id 42 twice, in row 0 and row 1",
        ),
        ({"a.json": EASY}, {}, "row 0 holds a list.*column_names"),
        ({"a.json": EASY}, {"column_names": ["question", "answer"]}, "has 3 values, but.* has 2"),
        ({"a.csv": "a,b,c\n"}, {"column_names": ["question", "answer"]}, "not column_names' 2"),
    ],
)
def test_what_is_wrong_with_parts_is_a_sentence(source, files, asked, expected):
    with pytest.raises(DataError, match=f"(?s){expected}"):
        source(files, **asked).example(0)


def test_the_digest_knows_both_files_and_what_was_asked(source):
    asked = {"field": "questions", "join": JOIN}
    digests = [source(VQA, **asked).fingerprint]
    other = {**VQA["annotations.json"], "info": 1}
    digests.append(source({**VQA, "annotations.json": other}, **asked).fingerprint)
    digests.append(source({"a.json": EASY}, **NAMED).fingerprint)
    names = ["answer", "question", "image_id"]
    digests.append(source({"a.json": EASY}, **{**NAMED, "column_names": names}).fingerprint)
    assert len(set(digests)) == 4


def test_a_joined_file_starts_where_its_source_does(tmp_path, source):
    files = {"a.csv": "question,answer,n\nRed?,no,1\n", "b.jsonl": '{"n": 1, "more": "x"}\n'}
    joined = {"path": "a.csv", "join": {"path": "b.jsonl", "key": "n"}}
    source(files, join=joined["join"])
    page = {
        "model": {"language_model": "lm"},
        "data": {"root": str(tmp_path), "train": [joined], "evaluate": []},
    }
    (section,) = load_recipe(page).data.train
    assert section.join.path == str(tmp_path / "b.jsonl")
    before = open_source(section).fingerprint
    (tmp_path / "b.jsonl").rename(tmp_path / "c.jsonl")
    moved = section.model_copy(
        update={"join": section.join.model_copy(update={"path": str(tmp_path / "c.jsonl")})}
    )
    assert open_source(moved).fingerprint == before
    with pytest.raises(RecipeError, match=r"data.train\[0\].join.path: no file 'b.jsonl'"):
        load_recipe(page)
