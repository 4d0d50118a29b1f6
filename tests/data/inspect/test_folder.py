"""What `varifocal init` finds in a folder, and what it says where it cannot tell."""

import json

import pytest
from PIL import Image as Pillow

from varifocal.data.inspect.columns import DESCRIBE, WHICH_CLASS
from varifocal.data.inspect.folder import scan_folder
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection

NUM_IMAGES = 4


@pytest.fixture
def folder(tmp_path):
    """Four images below `photos/images`, and a way to write files next to them."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    for number in range(NUM_IMAGES):
        Pillow.new("RGB", (4, 4), (60 * number, 0, 0)).save(folder / "images" / f"{number}.png")

    def write(**files):
        for name, content in files.items():
            stem, _, ending = name.rpartition("_")
            path = folder / f"{stem}.{ending}"
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text)
        return folder

    return write


def table(header, *cells, separator=","):
    lines = [separator.join([f"{number}.png", *cells]) for number in range(NUM_IMAGES)]
    return "\n".join([header, *lines])


def examples(contents):
    """Read the rows as the recipe would."""
    places = {
        key: str(contents.folder / contents.train[key])
        for key in ("path", "image_folder")
        if key in contents.train
    }
    return list(open_source(FileSection.model_validate({**contents.train, **places})))


def test_odd_names_and_semicolons_are_matched_and_named(folder):
    text = table("Datei;Frage an das Bild;Ergebnis", "Was ist das?", "rot", separator=";")
    contents = scan_folder(folder(a_csv=text))
    assert contents.train == {
        "path": "a.csv",
        "image_folder": "images",
        "columns": {"question": "Frage an das Bild", "answer": "Ergebnis", "image": "Datei"},
    }
    assert contents.notes == [
        "column 'Datei' is read as the image",
        "column 'Frage an das Bild' is read as the question",
        "column 'Ergebnis' is read as the answer",
    ]
    first = examples(contents)[0]
    assert [message.text for message in first.messages] == ["Was ist das?", "rot"]
    assert (contents.kind, contents.num_rows, contents.num_images) == ("questions", 4, 4)


@pytest.mark.parametrize(
    ("files", "columns", "texts"),
    [
        ({"a_csv": table("image,question,answer", "What?", "red")}, None, ["What?", "red"]),
        (
            {"a_csv": table("x,y,z", "What is it?", "red")},
            {"question": "y", "answer": "z", "image": "x"},
            ["What is it?", "red"],
        ),
        (
            {"a_tsv": "file\tlabel\n" + "".join(f"{n}\tc{n % 2}\n" for n in range(4))},
            {
                "question": WHICH_CLASS,
                "answer": "label",
                "choices": "c0|c1",
                "image": "{file}.png",
            },
            [f"Question: {WHICH_CLASS}\nOptions: (A) c0 (B) c1", "c0"],
        ),
        (
            {"a_csv": table("photo,beschreibung", "A red square.")},
            {"question": DESCRIBE, "answer": "beschreibung", "image": "photo"},
            [DESCRIBE, "A red square."],
        ),
        (
            {
                "a_json": [
                    {"img": f"{n}.png", "q": "What?", "A": "red", "B": "blue", "answer": "B"}
                    for n in range(4)
                ]
            },
            {"question": "q", "choices": "{A}|{B}", "image": "img"},
            ["Question: What?\nOptions: (A) red (B) blue", "blue"],
        ),
    ],
)
def test_columns_are_told_by_their_names_and_their_content(folder, files, columns, texts):
    contents = scan_folder(folder(**files))
    assert contents.train.get("columns") == columns
    first = examples(contents)[0]
    assert [message.text for message in first.messages] == texts
    assert first.images[0].path.name == "0.png"


def test_captions_next_to_images_are_trained_on_or_aligned_with(folder):
    place = folder()
    for number in range(NUM_IMAGES):
        (place / "images" / f"{number}.txt").write_text("A square.")
    alone = scan_folder(place)
    assert (alone.kind, alone.train) == ("captions", {"path": ".", "format": "captions"})
    assert len(examples(alone)) == NUM_IMAGES
    both = scan_folder(folder(a_csv=table("image,question,answer", "What?", "red")))
    assert both.captions == {"path": "images", "format": "captions"}
    assert both.kind == "questions"


def test_splits_are_found_in_a_column_and_in_file_names(folder):
    lines = [f"{n}.png,What?,red,{'train' if n else 'test'}" for n in range(NUM_IMAGES)]
    by_column = scan_folder(folder(a_csv="\n".join(["image,question,answer,subset", *lines])))
    assert (by_column.train["split"], by_column.evaluate["split"]) == ("train", "test")
    assert len(examples(by_column)) == NUM_IMAGES - 1
    text = table("image,question,answer", "What?", "red")
    (by_column.folder / "a.csv").unlink()
    by_file = scan_folder(folder(my_train_csv=text, my_val_csv=text))
    assert (by_file.train["path"], by_file.evaluate["path"]) == ("my_train.csv", "my_val.csv")


def test_conversations_keep_their_own_format(folder):
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "red"}]
    page = [{"image": "images/0.png", "conversations": turns}]
    assert scan_folder(folder(a_json=page)).train == {"path": "a.json", "format": "llava"}


def test_a_few_broken_rows_are_counted_and_many_refused(folder):
    rows = "\n".join(f"{n % 4}.png,What?,{'red' if n else ''}" for n in range(20))
    contents = scan_folder(folder(a_csv=f"image,question,answer\n{rows}"))
    assert contents.num_broken == 1
    assert "1 row cannot be read and will be skipped: " in contents.notes[-1]
    rows = "\n".join(f"{n % 4}.png,What?," for n in range(4))
    with pytest.raises(DataError, match="answer"):
        scan_folder(folder(a_csv=f"image,question,answer\n{rows}\n0.png,What?,red"))


@pytest.mark.parametrize(
    ("files", "questions", "expected"),
    [
        ({}, None, "holds 4 images and no questions; add a CSV, JSON or parquet file"),
        ({}, "b.csv", "no file "),
        (
            {"a_csv": "image,question,answer\n0.png,What?,red\n00.png,What?,red"},
            None,
            "names an image that is not in '{folder}/images', first '00.png' in line 3; did you "
            "mean '0.png'?; add what is missing, or take its rows out",
        ),
        (
            {
                "a_csv": table("image,question,answer", "What?", "red"),
                "b_csv": table("image,question,answer", "Why?", "red"),
            },
            None,
            "holds 2 files that could be the questions, 'a.csv', 'b.csv'; name one after",
        ),
        (
            {"a_csv": table("image,question,size,weight", "What?", "1", "2")},
            None,
            "has no column that looks like the answer but image, question, size, weight; say which "
            "it is with --columns answer=NAME",
        ),
    ],
)
def test_what_cannot_be_told_is_one_sentence(folder, files, questions, expected):
    place = folder(**files)
    with pytest.raises(DataError) as error:
        scan_folder(place, None if questions is None else place / questions)
    assert expected.format(folder=place) in str(error.value)


def test_an_empty_folder_and_none_are_said(tmp_path):
    with pytest.raises(DataError, match="holds neither images nor questions"):
        scan_folder(tmp_path)
    with pytest.raises(DataError, match="no folder"):
        scan_folder(tmp_path / "nosuch")


def test_columns_that_are_named_are_taken(folder):
    place = folder(a_csv=table("image,question,size,weight", "What?", "1", "2"))
    contents = scan_folder(place, None, {"answer": "weight"})
    assert [message.text for message in examples(contents)[0].messages] == ["What?", "2"]
    with pytest.raises(DataError, match=r"no column 'wight' .* did you mean 'weight'"):
        scan_folder(place, None, {"answer": "wight"})
