"""What each format's rows become, and how a format is told from the first of them."""

import base64
import json

import pytest
from PIL import Image as Pillow

from varifocal.data.example import Image
from varifocal.data.formats.registry import FORMATS
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection
from varifocal.recipe.data import FormatName


@pytest.fixture
def folder(tmp_path):
    for name, color in (("a.png", "red"), ("b.png", "blue")):
        Pillow.new("RGB", (6, 4), color).save(tmp_path / name)
    return tmp_path


def opened(folder, *rows, name="rows.jsonl", **asked):
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return open_source(FileSection(path=str(folder / name), **asked))


def seen(example):
    """Return the turns with the names of images in the place of images."""
    return [
        (
            message.role,
            *(part.path.name if isinstance(part, Image) else part for part in message.content),
        )
        for message in example.messages
    ]


def turns(*pairs, speaker="from", text="value"):
    return [{speaker: who, text: words} for who, words in pairs]


TALK = turns(("human", "<image>\nWhat?"), ("gpt", "red"), ("human", "Sure?"), ("gpt", "Yes."))
PLAIN = turns(("human", "Hello."), ("gpt", "Hello!"))
CHAT = turns(("user", "Hello."), ("assistant", "Hello!"), speaker="role", text="content")
SEEN = [
    ("user", "a.png", "\nWhat?"),
    ("assistant", "red"),
    ("user", "Sure?"),
    ("assistant", "Yes."),
]
SAID = [("user", "Hello."), ("assistant", "Hello!")]
SCIENCE = {"question": "Which floats?", "choices": ["iron", "wood"], "answer": 1, "hint": ""}


@pytest.mark.parametrize(
    ("name", "row", "expected", "task"),
    [
        ("llava", {"id": "7", "image": "a.png", "conversations": TALK}, SEEN, "llava"),
        ("llava", {"image": ["a.png"], "conversations": TALK}, SEEN, "llava"),
        ("llava", {"image": None, "conversations": PLAIN}, SAID, "llava"),
        ("sharegpt", {"conversations": PLAIN}, SAID, "sharegpt"),
        ("sharegpt", {"messages": PLAIN, "task": "greet"}, SAID, "greet"),
        (
            "sharegpt",
            {"system": "Be kind.", "conversations": PLAIN},
            [("system", "Be kind."), *SAID],
            "sharegpt",
        ),
        ("openai", {"messages": CHAT}, SAID, "openai"),
        ("openai", {"conversations": CHAT}, SAID, "openai"),
        (
            "openai",
            {
                "messages": [
                    {"role": "developer", "content": "Be kind."},
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "Compare ", "image_url": None},
                            {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}},
                            {"type": "image", "image": "b.png"},
                        ],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
                ]
            },
            [("system", "Be kind."), ("user", "Compare ", "a.png", "b.png"), ("assistant", "No.")],
            "openai",
        ),
        (
            "openai",
            {
                "images": ["b.png", "a.png"],
                "messages": [
                    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]},
                    {"role": "assistant", "content": "One."},
                    {"role": "user", "content": "And <image>?"},
                    {"role": "assistant", "content": "Two."},
                ],
            },
            [
                ("user", "b.png", "?"),
                ("assistant", "One."),
                ("user", "And ", "a.png", "?"),
                ("assistant", "Two."),
            ],
            "openai",
        ),
        (
            "alpaca",
            {"instruction": "Add.", "input": "1 and 2", "output": "3", "system": "Be brief."},
            [("system", "Be brief."), ("user", "Add.\n1 and 2"), ("assistant", "3")],
            "alpaca",
        ),
        (
            "alpaca",
            {"instruction": "More.", "input": "", "output": "c", "history": [["a", "b"]]},
            [("user", "a"), ("assistant", "b"), ("user", "More."), ("assistant", "c")],
            "alpaca",
        ),
        (
            "vision_flan",
            {"id": "7", "image": "a.png", "task_name": "PACS", "conversations": TALK},
            SEEN,
            "PACS",
        ),
        (
            "scienceqa",
            SCIENCE,
            [
                ("user", "Question: Which floats?\nOptions: (A) iron (B) wood"),
                ("assistant", "wood"),
            ],
            "QCM-A",
        ),
        (
            "table",
            {"question": "Why?", "answer": "So.", "image": "b.png", "task": "causes"},
            [("user", "b.png", "Why?"), ("assistant", "So.")],
            "causes",
        ),
        (
            "captions",
            {"file_name": "a.png", "text": "A red field."},
            [("user", "a.png", "Describe the picture."), ("assistant", "A red field.")],
            "captions",
        ),
        (
            "captions",
            {"image": "b.png", "captions": ["Blue.", "A field."]},
            [("user", "b.png", "Describe the picture."), ("assistant", "Blue.")],
            "captions",
        ),
    ],
)
def test_a_row_is_told_and_read(folder, name, row, expected, task):
    source = opened(folder, row)
    assert source.format_name == name
    (example,) = source
    assert seen(example) == expected
    assert example.task == task
    assert example.id == row.get("id", "line 1")
    assert example.source == str(folder / "rows.jsonl")


def test_mlan_has_to_be_named(folder):
    row = {"id": "squad_7", "conversations": PLAIN}
    (example,) = opened(folder, row, format="mlan")
    assert (seen(example), example.task, example.id) == (SAID, "mlan", "squad_7")


def test_every_format_of_the_recipe_is_there():
    assert {*FORMATS, "auto"} == set(FormatName.__args__)


def test_several_images_stand_where_their_placeholders_do(folder):
    talk = turns(("human", "Is <image> like <image>"), ("gpt", "No."), ("human", "<image>?"))
    (example,) = opened(folder, {"image": ["a.png", "b.png", "a.png"], "conversations": talk})
    assert seen(example) == [
        ("user", "Is ", "a.png", " like ", "b.png"),
        ("assistant", "No."),
        ("user", "a.png", "?"),
    ]


def test_an_image_inside_the_record_is_decoded(folder):
    content = (folder / "b.png").read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    (example,) = opened(folder, {"image": uri, "conversations": TALK})
    assert example.images == (Image(data=content),)


def test_images_are_read_from_the_folder_that_is_named(folder):
    (folder / "pictures").mkdir()
    (folder / "a.png").rename(folder / "pictures" / "a.png")
    row = {"image": "a.png", "conversations": TALK}
    assert isinstance(next(iter(opened(folder, row))), DataError)
    (example,) = opened(folder, row, image_folder=str(folder / "pictures"))
    assert example.images[0].path == folder / "pictures" / "a.png"


def test_turns_in_columns_are_read_too(folder):
    columns = {"from": ["human", "gpt"], "value": ["Hello.", "Hello!"]}
    (example,) = opened(folder, {"conversations": columns}, format="sharegpt")
    assert seen(example) == SAID


def test_a_first_record_that_is_broken_does_not_hide_the_format(folder):
    (folder / "a.jsonl").write_text('{"conv\n' + json.dumps({"conversations": PLAIN}))
    source = open_source(FileSection(path=str(folder / "a.jsonl")))
    assert source.format_name == "sharegpt"
    assert isinstance(next(iter(source)), DataError)


def test_an_unknown_format_says_what_was_seen_and_what_can_be_named(folder):
    with pytest.raises(DataError) as caught:
        opened(folder, {"frage": "a", "antwort": "b"})
    said = str(caught.value)
    assert "its first record has frage, antwort; map its columns" in said
    assert "or name its format" in said
    assert all(name in said for name in FORMATS)
    assert "columns: {question:" in said


def test_captions_of_coco(folder):
    (folder / "captions.json").write_text(
        json.dumps(
            {
                "info": {"year": 2014, "note": "[,]"},
                "annotations": [
                    {"id": 1, "image_id": 9, "caption": "Red."},
                    {"id": 2, "image_id": 8, "caption": "Blue."},
                    {"id": 3, "image_id": 9, "caption": "A field."},
                ],
                "images": [{"id": 9, "file_name": "a.png"}, {"id": 8, "file_name": "b.png"}],
            }
        )
    )
    source = open_source(FileSection(path=str(folder / "captions.json")))
    assert source.format_name == "captions"
    assert [(one.images[0].path.name, one.messages[1].text) for one in source] == [
        ("a.png", "Red."),
        ("b.png", "Blue."),
        ("a.png", "A field."),
    ]


def test_captions_of_an_imagefolder(folder):
    (folder / "metadata.csv").write_text("file_name,text\na.png,Red.\nb.png,Blue.\n")
    source = open_source(FileSection(path=str(folder)))
    assert [seen(one)[0][1] for one in source] == ["a.png", "b.png"]


def test_captions_in_texts_beside_the_images(folder):
    (folder / "a.txt").write_text("Red.\n")
    (folder / "more").mkdir()
    Pillow.new("RGB", (6, 4)).save(folder / "more" / "c.jpg")
    (folder / "more" / "c.txt").write_text("Black.")
    source = open_source(FileSection(path=str(folder)))
    red, missing, black = source
    assert (red.id, red.messages[1].text) == ("a.png", "Red.")
    assert "image b.png has no caption 'b.txt'" in str(missing)
    assert (black.id, black.messages[1].text) == ("more/c.jpg", "Black.")


def test_instructions_are_worded_by_seed(folder):
    row = {**SCIENCE, "id": "7"}
    plain, *worded = (
        next(iter(opened(folder, row, instructions=instructions))).messages[0].text
        for instructions in ("plain", "varied", "varied")
    )
    assert plain not in worded
    assert worded[0] == worded[1]
    section = FileSection(path=str(folder / "rows.jsonl"), instructions="varied")
    texts = {next(iter(open_source(section, seed))).messages[0].text for seed in range(20)}
    assert len(texts) > 3
