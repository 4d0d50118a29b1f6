"""Layouts of public sets: each loads as it is, or a sentence says what to add and it loads."""

import gzip
import io
import json

import datasets
import pytest
from PIL import Image as Pillow

from varifocal.data.example import Image
from varifocal.data.loading import load_source
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection
from varifocal.recipe.strict_yaml import WrongKeyError


@pytest.fixture
def place(tmp_path):
    for name in ("a.png", "train_000042.png"):
        Pillow.new("RGB", (6, 4), "red").save(tmp_path / name)

    def place(content, name="a.jsonl", **asked):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_bytes(
            gzip.compress(text.encode()) if "gz" in name else text.encode()
        )
        return FileSection(path=str(tmp_path / name), **asked)

    return place


def said(example):
    """Return the turns with "*" in the place of each image."""
    return [
        "".join("*" if isinstance(part, Image) else part for part in message.content)
        for message in example.messages
    ]


BIRD = [{"role": "user", "content": "Name a bird."}]
WREN = [{"role": "assistant", "content": "Wren."}]
AS_THEY_ARE = {
    "TRL": ({"prompt": "Name a bird.", "completion": "Wren."}, ["Name a bird.", "Wren."]),
    "TRL's turns": ({"prompt": BIRD, "completion": WREN}, ["Name a bird.", "Wren."]),
    "TRL with an image": (
        {"prompt": "What?", "completion": "Red.", "image": "a.png"},
        ["*What?", "Red."],
    ),
    "TRL with a placed image": (
        {"prompt": "See <image>?", "completion": "Yes.", "images": ["a.png"]},
        ["See *?", "Yes."],
    ),
    "ms-swift": (
        {"query": "Tree?", "response": "Oak.", "history": [["Hi", "Hello"]], "system": "Be brief."},
        ["Be brief.", "Hi", "Hello", "Tree?", "Oak."],
    ),
    "ms-swift with images": (
        {"query": "<image>Two?", "response": "Yes.", "images": ["a.png"]},
        ["*Two?", "Yes."],
    ),
    "the Cauldron": (
        {
            "images": ["a.png"],
            "texts": [
                {"user": "Colour?", "assistant": "Red.", "source": "made"},
                {"user": "Sure?", "assistant": "Yes.", "source": "made"},
            ],
        },
        ["*Colour?", "Red.", "Sure?", "Yes."],
    ),
    "Dolly": (
        {"instruction": "When?", "context": "In 1901.", "response": "1901", "category": "qa"},
        ["When?\nIn 1901.", "1901"],
    ),
    "OpenOrca": (
        {"system_prompt": "Be kind.", "question": "Good day?", "response": "Good day to you."},
        ["Be kind.", "Good day?", "Good day to you."],
    ),
    "Flan": ({"inputs": "In German: day", "targets": "Tag"}, ["In German: day", "Tag"]),
    "P3": (
        {
            "inputs_pretokenized": "In German: day",
            "targets_pretokenized": "Tag",
            "inputs": [1],
            "targets": [2],
        },
        ["In German: day", "Tag"],
    ),
    "ARC of the hub": (
        {
            "question": "A metal?",
            "choices": {"text": ["2", "1"], "label": ["1", "2"]},
            "answerKey": "1",
        },
        ["Question: A metal?\nOptions: (A) 2 (B) 1", "2"],
    ),
    "ARC's own": (
        {
            "question": {
                "stem": "A metal?",
                "choices": [{"text": "tin", "label": "A"}, {"text": "wood", "label": "B"}],
            },
            "answerKey": "A",
        },
        ["Question: A metal?\nOptions: (A) tin (B) wood", "tin"],
    ),
    "SQuAD of the hub": (
        {
            "context": "Ice floats.",
            "question": "What floats?",
            "answers": {"text": ["Ice"], "answer_start": [0]},
        },
        ["Question: What floats?\nContext: Ice floats.", "Ice"],
    ),
    "StrategyQA": ({"question": "Do boats float?", "answer": True}, ["Do boats float?", "true"]),
    "LLaVA's captions": (
        {"id": "1", "image": "a.png", "blip_caption": "a field", "url": "-"},
        ["*Describe the picture.", "a field"],
    ),
}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_a_layout_loads_as_it_is(place, name, streaming):
    row, expected = AS_THEY_ARE[name]
    (example,) = load_source(place(row, streaming=streaming))
    assert said(example) == expected


def test_of_a_prompt_that_is_a_conversation_only_the_completion_is_trained(place):
    prompt = [*BIRD, *WREN, {"role": "user", "content": "Another?"}]
    (example,) = load_source(place({"prompt": prompt, "completion": WREN}))
    answers = [message for message in example.messages if message.role == "assistant"]
    assert [message.is_trained for message in answers] == [False, True]


COSMOS = {"context": "She lit it.", "question": "Why?", "answer0": "Dark.", "answer1": "Noon."}
WITH_A_WORD = {
    "A-OKVQA": (
        {
            "image_id": 42,
            "question": "Colour?",
            "choices": ["red", "blue"],
            "correct_choice_idx": 1,
            "direct_answers": ["blue"] * 10,
        },
        "columns: {question: question, answer: correct_choice_idx, choices: choices, "
        "image: '{image_id:012d}.jpg'}",
        {"columns": {"answer": "correct_choice_idx", "image": "train_{image_id:06}.png"}},
        ["*Question: Colour?\nOptions: (A) red (B) blue", "blue"],
    ),
    "CosmosQA": (
        {**COSMOS, "label": "0"},
        "answer: label, choices: '{answer0}|{answer1}', context: context",
        {
            "columns": {"answer": "label", "choices": "{answer0}|{answer1}"},
            "answer_is": "index",
        },
        ["Question: Why?\nContext: She lit it.\nOptions: (A) Dark. (B) Noon.", "Dark."],
    ),
    "LaVIN": (
        {
            "all": [{"qid": "2", "instruction": "Colour?", "answer": "Red.", "image": "a.png"}],
            "train": [],
        },
        "name it: field: all or field: train",
        {"field": "all", "columns": {"question": "instruction"}},
        ["*Colour?", "Red."],
    ),
    "Super-NaturalInstructions": (
        {
            "Definition": ["Answer."],
            "Positive Examples": [],
            "Instances": [{"id": "1", "input": "Colour of snow?", "output": ["white"]}],
        },
        "name it: field: Instances",
        {"field": "Instances", "columns": {"question": "input", "answer": "output"}},
        ["Colour of snow?", "white"],
    ),
}


@pytest.mark.parametrize("name", WITH_A_WORD)
def test_a_layout_says_what_to_add_and_then_loads(place, name):
    content, needed, asked, expected = WITH_A_WORD[name]
    with pytest.raises(DataError) as caught:
        load_source(place(content, "a.json" if "field" in asked else "a.jsonl"))
    assert needed in str(caught.value)
    (example,) = load_source(place(content, "a.json" if "field" in asked else "a.jsonl", **asked))
    assert said(example) == expected


SQUAD = {
    "version": "1.1",
    "data": [{"title": "Ice", "paragraphs": [{"context": "", "qas": [{"question": "a"}]}]}],
}


@pytest.mark.parametrize(
    ("content", "asked", "expected"),
    [
        ([["What colour?", "blue", 0]], {}, "row 0 holds a list.*give its values names"),
        (
            {"info": {}, "questions": [{"question_id": 1}]},
            {},
            "two files: name the first by field",
        ),
        ({"info": {}, "annotations": [{"question_id": 1}]}, {}, "two files: name the first by f"),
        (SQUAD, {}, "say record_path: data.paragraphs.qas"),
        ({"data": [{"qas": 1}]}, {}, "name it: field: data"),
        (SQUAD, {"field": "data"}, "lie deeper, in paragraphs: say record_path: paragraphs.qas"),
        (SQUAD, {"field": "dta"}, "no list under field 'dta'.* did you mean 'data'"),
        (SQUAD, {"field": "version"}, "no list under field 'version'; its lists are data"),
        ({"a": 1}, {}, "holds an object, a list of objects is needed$"),
    ],
)
def test_what_has_to_be_written_anew_is_said(place, content, asked, expected):
    with pytest.raises(DataError, match=expected):
        load_source(place(content, "a.json", **asked))


def test_a_field_belongs_to_json():
    with pytest.raises((ValueError, WrongKeyError), match="belongs to a path that ends with"):
        FileSection(path="a.jsonl", field="data")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": BIRD, "completion": "Wren."}, "'completion' must be one"),
        ({"prompt": "", "completion": "Wren."}, "'prompt' is empty"),
        ({"query": "a", "response": "b", "history": ["c"]}, "no pair of texts"),
        ({"prompt": "a", "completion": ""}, "the answer in turn 2 is empty"),
        ({"texts": [{"user": "a", "assistant": "b"}, "c"]}, "'c', no object"),
        ({"prompt": "<image><image>?", "completion": "b", "image": "a.png"}, "2 placeholders"),
    ],
)
def test_a_broken_row_of_a_layout_is_a_sentence(place, row, expected):
    with pytest.raises(DataError, match=f"a.jsonl: line 1.*{expected}"):
        load_source(place(row))


@pytest.mark.parametrize(
    ("row", "asked", "expected"),
    [
        (
            {"question": "a", "answer": "b", "facts": ["c"], "term": "d", "empty": ""},
            {},
            "facts, term",
        ),
        ({"question": "a", "answer": "b", "id": "1", "choices": "b|c", "task": "t"}, {}, ""),
        ({"q": "a", "answer": "b", "lie": "c"}, {"columns": {"question": "Is it? {q}"}}, "lie"),
        ({"messages": [*BIRD, *WREN], "rejected": "Cat."}, {}, "rejected"),
        ({"prompt": BIRD, "completion": WREN, "image": None, "score": 1}, {}, "score"),
        ({"question": {"stem": "a", "choices": ["b", "c"]}, "answerKey": "A"}, {}, ""),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_are_not_read_are_told(place, row, asked, expected, streaming):
    notes = open_source(place(row, streaming=streaming, **asked)).notes()
    assert [note.split("not read: ")[1] for note in notes] == ([expected] if expected else [])


def test_what_an_object_holds_in_addition_is_told(place):
    content = {"Definition": ["Answer."], "Instances": [{"question": "a", "answer": "b"}]}
    assert open_source(place(content, "a.json", field="Instances")).notes() == [
        "a.json: in addition to Instances the file holds Definition"
    ]


def test_two_lists_of_one_file_are_told_apart(place):
    row = {"question": "a", "answer": "b"}
    content = {"one": [row], "two": [{**row, "answer": "c"}]}
    one, two = (open_source(place(content, "a.json", field=name)) for name in ("one", "two"))
    assert one.fingerprint != two.fingerprint


TABLES = {
    "a.csv": ("question,answer\na;b,c\n", "a;b", ""),
    "b.csv": ('\ufeffquestion;answer\r\n"a;""b""";c\r\n', 'a;"b"', "semicolons"),
    "c.csv": ("question\tanswer\na;b\tc\n", "a;b", "tabs"),
    "d.tsv": ("question,answer\na;b,c\n", "a;b", "commas"),
    "e.csv": ('"question";"answer, short"\na;c\n', "a", "semicolons"),
    "f.tsv": ("question\tanswer\na\tc\n\n", "a", ""),
    "g.csv.gz": ("question;answer\na;c\n", "a", "semicolons"),
    "h.csv": ('\nquestion;"answer\nshort"\na;c\n', "a", "semicolons"),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("streaming", [False, True])
def test_what_separates_cells_is_found_out_and_told(place, name, streaming):
    text, expected, separator = TABLES[name]
    (short,) = [each for each in ("answer, short", "answer\nshort") if each in text] or [None]
    columns = {"answer": short} if short else None
    source = open_source(place(text, name, streaming=streaming, columns=columns))
    (example,) = source
    assert said(example) == [expected, "c"]
    told = [f"{name}: its cells are separated by {separator}, found out from its header"]
    assert source.notes() == (told if separator else [])


MIXED = [
    {"question": "a", "answer": 1},
    {"question": "b", "answer": "two"},
    {"question": "c", "answer": "001"},
    {"question": "d", "answer": "null"},
]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz", "a.csv.gz", "a.jsonl"])
@pytest.mark.parametrize("streaming", [False, True])
def test_packed_files_say_what_unpacked_ones_say(place, tmp_path, monkeypatch, name, streaming):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    text = {
        "csv": "question,answer\n"
        + "".join(f"{row['question']},{row['answer']}\n" for row in MIXED),
        "json": json.dumps(MIXED),
        "jsonl": "\ufeff" + "\r\n\r\n".join(map(json.dumps, MIXED)),
    }[name.split(".")[1]]
    examples = load_source(place(text, name, streaming=streaming))
    assert [one.messages[1].text for one in examples] == ["1", "two", "001", "null"]


def test_a_damaged_packed_file_is_named_as_the_user_has_it(place, tmp_path):
    section = place(json.dumps({"question": "a", "answer": "b"}) * 999, "a.jsonl.gz")
    whole = (tmp_path / "a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-20])
    for streaming in (False, True):
        with pytest.raises(DataError, match=r"a\.jsonl\.gz' cannot be"):
            load_source(section.model_copy(update={"streaming": streaming}))
    with pytest.raises(DataError, match=r"b\.csv\.gz: line 2 is not CSV") as caught:
        load_source(place('question,answer\n"a,b\n', "b.csv.gz"))
    assert "unpacked" not in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_several_types_in_parquet_are_what_was_saved(tmp_path, streaming):
    rows = [{"question": "a", "answer": {"text": ["b"]}}, {"question": "c", "answer": "d e"}]
    turns = [[*BIRD, *WREN], [{"role": "user", "content": [{"type": "text", "text": "x"}]}, *WREN]]
    saved = datasets.Dataset.from_list(
        [{**row, "messages": talk} for row, talk in zip(rows, turns, strict=True)],
        on_mixed_types="use_json",
    )
    saved.to_parquet(tmp_path / "a.parquet")
    section = FileSection(path=str(tmp_path / "a.parquet"), format="openai", streaming=streaming)
    first, second = load_source(section)
    assert (said(first), said(second)) == (["Name a bird.", "Wren."], ["x", "Wren."])


@pytest.mark.parametrize("streaming", [False, True])
def test_nulls_and_lists_of_images_in_parquet(tmp_path, streaming):
    file = io.BytesIO()
    Pillow.new("RGB", (6, 4), "red").save(file, "PNG")
    cell = {"bytes": file.getvalue(), "path": None}
    rows = [
        {"question": "a", "answer": "x", "images": [cell, cell], "choices": None},
        {"question": "b", "answer": "x", "images": None, "choices": ["x", "y"]},
        {"question": "c", "answer": "x", "images": [], "choices": ["y", "x"]},
    ]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    section = FileSection(path=str(tmp_path / "a.parquet"), streaming=streaming)
    examples = load_source(section)
    assert [len(one.images) for one in examples] == [2, 0, 0]
    assert [one.answer_index for one in examples] == [None, 0, 1]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_null_beside_a_filled_column(place, name):
    pair = [{"from": "human", "value": "Fish?"}, {"from": "gpt", "value": "Carp."}]
    rows = [
        {"conversations": None, "messages": [*BIRD, *WREN]},
        {"conversations": pair, "messages": None},
    ]
    text = "\n".join(map(json.dumps, rows)) if name == "a.jsonl" else json.dumps(rows)
    first, second = load_source(place(text, name))
    assert (said(first), said(second)) == (["Name a bird.", "Wren."], ["Fish?", "Carp."])


@pytest.mark.parametrize(
    ("key", "value", "formats"),
    [
        ("prompt_format", "QCM-ALE", "scienceqa"),
        ("use_captions", True, "scienceqa"),
        ("answer_as", "letter", "scienceqa or table"),
        ("instructions", "varied", "scienceqa or table"),
        ("answer_is", "index", "table"),
        ("columns", {"question": "human", "split": "part"}, "table"),
    ],
)
def test_a_key_that_the_format_would_pass_over_is_refused(tmp_path, key, value, formats):
    turns = [{"role": "user", "content": "Red?"}, {"role": "assistant", "content": "No."}]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": turns, "part": "train"}) + "\n")
    said = rf"rows.jsonl' is read as openai, and {key} belongs to the format {formats}; leave it"
    with pytest.raises(DataError, match=said):
        open_source(FileSection.model_validate({"path": str(file), "format": "openai", key: value}))
    columns = {"split": "part"}
    source = open_source(FileSection(path=str(file), columns=columns, split="train"))
    assert len(source) == 1


def test_names_are_for_rows_that_have_none(tmp_path):
    (tmp_path / "rows.jsonl").write_text('["Red?", "no"]\n{"question": "Red?", "answer": "no"}\n')
    names = ["question", "answer"]
    source = open_source(FileSection(path=str(tmp_path / "rows.jsonl"), column_names=names))
    assert source.example(0).messages[1].text == "no"
    with pytest.raises(DataError, match="line 2 has names of its own; leave column_names out"):
        source.example(1)
    table = datasets.Dataset.from_list([{"question": "Red?", "answer": "no"}])
    table.to_parquet(tmp_path / "rows.parquet")
    table.save_to_disk(tmp_path / "saved")
    (tmp_path / "images").mkdir()
    for place in ("rows.parquet", "saved", "images"):
        with pytest.raises(DataError, match=f"{place}' has names of its own; leave column_names"):
            open_source(FileSection(path=str(tmp_path / place), column_names=names))
    with pytest.raises(ValueError, match="names 'a' twice"):
        FileSection(path="rows.csv", column_names=["a", "b", "a"])
