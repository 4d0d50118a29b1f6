"""Hugging Face directories give the same questions as the official files.

Columns and files are those of the data sets' cards; lm-eval's and lmms-eval's tasks read the same
ones (race, openbookqa, hellaswag, super_glue/boolq; pope, gqa, mme, ai2d, realworldqa, textvqa,
scienceqa, coco_cap). lmms-lab's sets are also to be had as lmms-lab-encoder's.
"""

import datasets
import PIL.Image
import pytest

from varifocal.errors import DataError
from varifocal.evaluation.benchmarks.registry import BENCHMARKS
from varifocal.evaluation.benchmarks.scienceqa import columns_of

IMAGE = datasets.Image()
RED = PIL.Image.new("RGB", (8, 8), "red")


def table(path, rows, **features):
    """Write rows as parquet, the named columns as other types than guessed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = datasets.Dataset.from_list(rows)
    if features:
        data = data.cast(datasets.Features({**data.features, **features}))
    data.to_parquet(str(path))


def race(folder):
    row = {
        "example_id": "high12.txt",
        "article": "Ann has a red kite. It flies high.",
        "answer": "A",
        "question": "What has Ann?",
        "options": ["a kite", "a cat", "a hat", "a car"],
    }
    table(folder / "all" / "test-00000-of-00001.parquet", [row])
    table(folder / "high" / "test-00000-of-00001.parquet", [row, row])


def openbookqa(folder):
    choices = {"text": ["a magnet", "a cup", "a book", "a leaf"], "label": list("ABCD")}
    row = {"id": "8-0", "question_stem": "Iron is drawn by", "choices": choices, "answerKey": "A"}
    table(folder / "additional" / "test-00000-of-00001.parquet", [row, row])
    table(folder / "main" / "test-00000-of-00001.parquet", [row])


def boolq(folder):
    row = {"question": "is the sky red", "answer": True, "passage": "It is blue."}
    row["question"], row["answer"] = "is the sky blue", False
    table(folder / "data" / "validation-00000-of-00001.parquet", [row])


def hellaswag(folder):
    row = {
        "ind": 24,
        "activity_label": "Roof shingle removal",
        "ctx_a": "A man sits on a roof.",
        "ctx_b": "he",
        "ctx": "A man sits on a roof. he",
        "endings": ["sings.", "rips up tiles.", "eats [step] soup.", "sleeps."],
        "source_id": "activitynet~v_-JhWjGDPHMY",
        "label": "2",
    }
    table(folder / "data" / "validation-00000-of-00001.parquet", [row])


def realworldqa(folder):
    tail = "Please answer directly with only the letter of the correct option and nothing else."
    listed = f"Which way is the car?\n\nA. Left\nB. Right\n{tail}"
    row = {"question": listed, "answer": "A", "image": RED}
    for part in (0, 1):
        table(folder / "data" / f"test-0000{part}-of-00002.parquet", [row], image=IMAGE)


def ai2d(folder):
    row = {
        "question": "What eats the fly?",
        "options": ["frog", "fly", "fish", "fox"],
        "answer": "0",
        "image": RED,
    }
    table(folder / "data" / "test-00000-of-00001.parquet", [row], image=IMAGE)


def _pope_row(split):
    return {
        "id": "0",
        "question_id": "1",
        "question": "Is there a snowboard in the image?",
        "answer": "yes",
        "image_source": "COCO_val2014_000000310196",
        "image": RED,
        "category": split,
    }


def pope(folder):
    for split in ("adversarial", "popular", "random"):
        file = folder / "Full" / f"{split}-00000-of-00001.parquet"
        table(file, [_pope_row(split)], image=IMAGE)


def gqa(folder):
    row = {
        "id": "201307251",
        "imageId": "n161313",
        "question": "Is it overcast?",
        "answer": "no",
        "fullAnswer": "No, it is clear.",
        "types": {"detailed": "weather", "semantic": "global", "structural": "verify"},
    }
    name = "testdev-00000-of-00001.parquet"
    table(folder / "testdev_balanced_instructions" / name, [row])
    pil_image = {"id": "n161313", "image": RED}
    table(folder / "testdev_balanced_images" / name, [pil_image], image=IMAGE)


def textvqa(folder):
    row = {
        "image_id": "003a8ae2ef43b901",
        "question_id": 34602,
        "question": "what is the brand of this camera?",
        "image": RED,
        "answers": ["nokia"] * 8 + ["toshiba"] * 2,
    }
    table(folder / "data" / "validation-00000-of-00001.parquet", [row], image=IMAGE)


def vsr(folder):
    row = {"image": RED, "caption": "The bear is in front of the person.", "label": 0}
    row["relation"] = "in front of"
    table(folder / "data" / "test-00000-of-00001.parquet", [row], image=IMAGE)


def snli_ve(folder):
    labels = datasets.ClassLabel(names=["entailment", "neutral", "contradiction"])
    row = {"image": RED, "premise": "Two women.", "hypothesis": "0 women hug.", "label": 0}
    file = folder / "data" / "test-00000-of-00001.parquet"
    table(file, [row], image=IMAGE, label=labels)


def cifar10(folder):
    row = {"img": RED, "label": 3}
    table(folder / "plain_text" / "test-00000-of-00001.parquet", [row], img=IMAGE)


def cifar100(folder):
    row = {"img": RED, "fine_label": 24, "coarse_label": 0}
    table(folder / "cifar100" / "test-00000-of-00001.parquet", [row], img=IMAGE)


def mnist(folder):
    row = {"image": RED.convert("L"), "label": 5}
    table(folder / "mnist" / "test-00000-of-00001.parquet", [row], image=IMAGE)


def mme(folder):
    asked = "Is it in Italian? Please answer yes or no."
    row = {"question_id": "OCR/0001.png", "image": RED, "question": asked, "answer": "Yes"}
    row["category"] = "OCR"
    table(folder / "data" / "test-00000-of-00001.parquet", [row], image=IMAGE)


def coco_captions(folder):
    row = {"image": RED, "caption": ["A cat on a mat 0.", "The cat sits."], "cocoid": 391180}
    table(folder / "data" / "test-00000-of-00001.parquet", [row], image=IMAGE)


def scienceqa(folder):
    row = {
        "image": RED,
        "question": "Which attracts?",
        "choices": ["iron", "wood", "a stone"],
        "answer": 0,
        "hint": "",
        "task": "closed choice",
        "grade": "grade3",
        "subject": "natural science",
        "topic": "physics",
        "category": "Magnets",
        "skill": "Magnets",
        "lecture": "",
        "solution": "",
    }
    rows = [row, row | {"image": None, "hint": "Metals shine."}]
    table(folder / "data" / "test-00000-of-00001.parquet", rows, image=IMAGE)


WRITERS = {
    "scienceqa": (scienceqa, 0),
    "race": (race, 2),  # the official fixture's third question: RACE-H comes second there
    "openbookqa": (openbookqa, 0),
    "boolq": (boolq, 0),
    "hellaswag": (hellaswag, 0),
    "realworldqa": (realworldqa, 0),
    "ai2d": (ai2d, 0),
    "pope": (pope, 0),
    "gqa": (gqa, 0),
    "textvqa": (textvqa, 0),
    "vsr": (vsr, 0),
    "snli_ve": (snli_ve, 0),
    "cifar10": (cifar10, 0),
    "cifar100": (cifar100, 0),
    "mnist": (mnist, 0),
    "fashion_mnist": (mnist, 0),
    "mme": (mme, None),  # another order: the official fixture's OCR is after artwork
    "coco_captions": (coco_captions, 0),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_hugging_face_directory_asks_what_the_official_files_ask(name, tmp_path, official_files):
    row, (write, place) = BENCHMARKS[name], WRITERS[name]
    official_files[name](tmp_path / "official", 0)
    write(tmp_path / "table")
    official = list(row.load(tmp_path / "official", None))
    found = list(row.load(tmp_path / "table", None))
    expected = official[place] if place is not None else official[-2]
    assert text(found[0]) == text(expected)
    assert found[0].references == expected.references
    assert found[0].example.choices == expected.example.choices
    assert found[0].group == expected.group
    assert [image.open().mode for image in found[0].example.images] == ["RGB"] * len(
        expected.example.images
    )


def text(item):
    return item.asked.messages[-1].text


def test_all_shards_and_one_configuration_are_read(tmp_path):
    realworldqa(tmp_path / "realworldqa")
    items = list(BENCHMARKS["realworldqa"].load(tmp_path / "realworldqa", None))
    assert len({item.id for item in items}) == len(items) == 2
    race(tmp_path / "race")
    assert len(list(BENCHMARKS["race"].load(tmp_path / "race", None))) == 1


def test_pope_in_one_table_has_its_splits_in_a_column(tmp_path):
    rows = [_pope_row(split) for split in ("adversarial", "random")]
    table(tmp_path / "data" / "test-00000-of-00001.parquet", rows, image=IMAGE)
    load = BENCHMARKS["pope"].load
    assert [item.group for item in load(tmp_path, None)] == ["adversarial", "random"]
    assert [item.group for item in load(tmp_path, "random")] == ["random"]


def test_scienceqa_in_a_table_has_ids_columns_and_questions_without_images(tmp_path):
    scienceqa(tmp_path)
    (tmp_path / "data").rename(tmp_path / "ScienceQA-FULL")  # lmms-lab/ScienceQA
    first, second = BENCHMARKS["scienceqa"].load(tmp_path, None)
    assert first.id != second.id
    assert second.example.images == ()
    assert columns_of(second.example) == ("NAT", "TXT", "G1-6", "average")


def test_boolq_of_super_glue_has_labels(tmp_path):
    rows = [{"question": "is it", "passage": "It is.", "idx": n, "label": n} for n in (0, 1)]
    table(tmp_path / "boolq" / "validation-00000-of-00001.parquet", rows)
    assert [one.references for one in BENCHMARKS["boolq"].load(tmp_path, None)] == [
        ("no",),
        ("yes",),
    ]


def test_captions_with_a_row_each_come_together_by_image(tmp_path):
    rows = [
        {"image": RED, "cocoid": coco, "sentences": {"tokens": ["a"], "raw": raw, "sentid": 1}}
        for coco, raw in ((7, "A cat."), (8, "A dog."), (7, "The cat sits."))
    ]
    table(tmp_path / "data" / "test-00000-of-00001.parquet", rows, image=IMAGE)
    found = {one.id: one.references for one in BENCHMARKS["coco_captions"].load(tmp_path, None)}
    assert found == {"7": ("A cat.", "The cat sits."), "8": ("A dog.",)}


def test_a_test_split_that_is_missing_is_not_replaced_by_another(tmp_path):
    table(tmp_path / "data" / "val-00000-of-00001.parquet", [{"cocoid": 1, "caption": ["A."]}])
    with pytest.raises(DataError, match="holds neither"):
        list(BENCHMARKS["coco_captions"].load(tmp_path, None))


def test_a_saved_data_set_is_read(tmp_path):
    rows = [{"img": RED, "label": 3}]
    data = datasets.Dataset.from_list(rows).cast_column("img", IMAGE)
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "cifar10"))
    (item,) = BENCHMARKS["cifar10"].load(tmp_path / "cifar10", None)
    assert item.references == ("cat",)


@pytest.mark.parametrize("name", [*WRITERS, "digits"])
def test_a_folder_without_the_data_says_what_is_needed(name, tmp_path):
    with pytest.raises(DataError, match="holds neither") as error:
        list(BENCHMARKS[name].load(tmp_path, None))
    assert "Hugging Face directory" in str(error.value)
