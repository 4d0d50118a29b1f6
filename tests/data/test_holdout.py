"""`data.holdout`: no image is on both sides, whatever reads the rows."""

import io
import json
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from varifocal.data import holdout
from varifocal.data.holdout import find_held_out, holdout_keys, is_held_out
from varifocal.data.loading import find_captions
from varifocal.data.source import open_source
from varifocal.errors import DataError, RecipeError
from varifocal.recipe import load_recipe
from varifocal.recipe.data import DataSection

NUM_IMAGES = 12
QUESTIONS = ("What colour?", "Which shape?")


def png(number):
    file = io.BytesIO()
    Pillow.new("RGB", (4, 4), (20 * number, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path):
    """Images, and two questions to each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(NUM_IMAGES):
        (folder / f"{number}.png").write_bytes(png(number))
    return tmp_path


def rows():
    return [
        {"image": f"photos/{number}.png", "question": question, "answer": f"{number}"}
        for question in QUESTIONS
        for number in range(NUM_IMAGES)
    ]


def write_csv(folder):
    lines = [";".join(row.values()) for row in rows()]
    (folder / "a.csv").write_text("\n".join(["image;question;answer", *lines]))
    return {"path": "a.csv"}


def write_lines(folder):
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows())))
    return {"path": "a.jsonl"}


def write_llava(folder):
    page = [
        {
            "image": row["image"],
            "conversations": [
                {"from": "human", "value": f"<image>\n{row['question']}"},
                {"from": "gpt", "value": row["answer"]},
            ],
        }
        for row in rows()
    ]
    (folder / "a.json").write_text(json.dumps(page))
    return {"path": "a.json"}


def write_parquet(folder):
    table = [{**row, "image": (folder / row["image"]).read_bytes()} for row in rows()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), folder / "a.parquet")
    return {"path": "a.parquet"}


def write_captions(folder):
    for number in range(NUM_IMAGES):
        (folder / "photos" / f"{number}.txt").write_text(f"{number}")
    return {"path": "photos"}


def write_shard(folder):
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(NUM_IMAGES):
            page = {"question": QUESTIONS[0], "answer": f"{number}"}
            for name, content in (("png", png(number)), ("json", json.dumps(page).encode())):
                member = tarfile.TarInfo(f"{number}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return {"path": "a.tar"}


WRITERS = [write_csv, write_lines, write_llava, write_parquet, write_captions, write_shard]


def sides(folder, *sources, holdout=0.4):
    page = {
        "model": {"language_model": "smollm2-135m-instruct"},
        "data": {"root": str(folder), "train": list(sources), "holdout": holdout},
    }
    data = load_recipe(page).data
    return [
        [example for section in side for example in open_source(section)]
        for side in (data.train, data.evaluate)
    ]


def keys(examples):
    return {key for example in examples for key in holdout_keys(example)}


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))
def test_both_sides_have_all_rows_and_no_image_is_on_both(photos, write):
    source = write(photos)
    whole = list(open_source(DataSection(train=[source]).train[0], root=photos))
    trained, scored = sides(photos, source)
    assert trained
    assert scored
    assert len(trained) + len(scored) == len(whole)
    assert keys(trained) | keys(scored) == keys(whole)
    assert len(keys(whole)) == NUM_IMAGES
    assert not keys(trained) & keys(scored)


def test_another_seed_holds_out_others_and_the_same_the_same(photos):
    source = write_csv(photos)
    first = [keys(sides(photos, source, holdout={"share": 0.4, "seed": 1})[1]) for _ in range(2)]
    other = keys(sides(photos, source, holdout={"share": 0.4, "seed": 2})[1])
    assert first[0] == first[1] != other


def test_rows_that_are_added_move_no_image(photos):
    source = write_csv(photos)
    before = [keys(side) for side in sides(photos, source)]
    text = (photos / "a.csv").read_text().splitlines()
    (photos / "photos" / "new.png").write_bytes(png(0))
    (photos / "a.csv").write_text("\n".join([text[0], "photos/new.png;What?;red", *text[1:]]))
    for old, new in zip(before, (keys(side) for side in sides(photos, source)), strict=True):
        assert new - old <= {"photos/new.png"}
        assert old <= new


def test_an_image_of_two_sources_is_on_one_side(photos):
    table, lines = write_csv(photos), write_lines(photos / "photos")
    trained, scored = sides(photos, table, {"path": f"photos/{lines['path']}", "image_folder": "."})
    assert not keys(trained) & keys(scored)
    assert len(keys(trained) | keys(scored)) == NUM_IMAGES


def test_a_row_without_an_image_is_held_out_by_its_question(photos):
    lines = [{"question": f"What is {n % 20}?", "answer": f"{n}"} for n in range(60)]
    (photos / "text.jsonl").write_text("\n".join(map(json.dumps, lines)))
    trained, scored = sides(photos, {"path": "text.jsonl"})
    asked = [{example.messages[0].text for example in side} for side in (trained, scored)]
    assert not asked[0] & asked[1]
    assert len(scored) == 3 * len(asked[1])


def test_the_share_is_that_of_the_images():
    count = sum(is_held_out(f"a/{number}.png", 0.1, seed=3) for number in range(10_000))
    assert abs(count - 1000) < 4 * (10_000 * 0.1 * 0.9) ** 0.5


@given(
    st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), max_size=40),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_rows_of_several_images_share_none_across_the_sides(images, share, seed):
    rows = [tuple(map(str, row)) for row in images]
    held_out = find_held_out(rows, share, seed)
    by_side = {side: set() for side in (False, True)}
    for row, side in zip(rows, held_out.tolist(), strict=True):
        by_side[side] |= set(row)
    assert not by_side[False] & by_side[True]
    order = sorted(range(len(rows)), key=lambda number: rows[number])
    again = find_held_out([rows[number] for number in order], share, seed)
    assert again.tolist() == held_out[order].tolist()


def test_the_alignment_sees_no_image_that_is_scored(photos):
    captions = write_captions(photos)
    page = {"train": [write_csv(photos)], "captions": [captions], "holdout": 0.4}
    data = load_recipe(
        {
            "model": {"language_model": "smollm2-135m-instruct"},
            "data": {"root": str(photos), **page},
        }
    ).data
    described = {f"photos/{image.path.name}" for image, _ in find_captions(data)}
    scored = keys(example for section in data.evaluate for example in open_source(section))
    assert described
    assert scored
    assert not described & scored
    assert len(described | scored) == NUM_IMAGES


def test_sides_of_many_rows_are_read_from_the_cache(photos, monkeypatch, tmp_path):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(holdout, "_SAVED_FROM", 5)
    source = write_csv(photos)
    first = [keys(side) for side in sides(photos, source)]
    monkeypatch.setattr(holdout, "find_held_out", None)  # a second search would fail
    assert [keys(side) for side in sides(photos, source)] == first


def test_a_side_without_rows_says_what_to_change(photos):
    with pytest.raises(DataError, match=r"of 24 rows none is held out .* raise the share"):
        sides(photos, write_csv(photos), holdout=1e-9)
    with pytest.raises(DataError, match=r"none is trained on .* lower the share"):
        sides(photos, write_csv(photos), holdout=0.9999999)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"holdout": 1}, "data.holdout.share: 1.0 was given; it should be less than 1"),
        ({"holdout": 0.1, "evaluate": [{"path": "."}]}, "data.holdout: data.evaluate has what"),
        ({"holdout": 0.1, "train": []}, "data.holdout: data.train names no source"),
        (
            {"holdout": 0.1, "train": [{"path": ".", "streaming": True}]},
            "data.train[0].streaming: data.holdout divides this source, too; leave it out here",
        ),
        ({"holdout": {"shares": 0.1}}, "data.holdout.shares: unknown key; did you mean 'share'?"),
    ],
)
def test_what_contradicts_a_holdout_is_a_sentence(changes, expected):
    page = {
        "model": {"language_model": "smollm2-135m-instruct"},
        "data": {"train": [{"path": "."}], **changes},
    }
    with pytest.raises(RecipeError) as error:
        load_recipe(page)
    assert expected in str(error.value)


def test_the_written_recipe_is_read_back_as_it_is(photos):
    source = {**write_csv(photos), "epochs": 2.0, "max_examples": 10}
    page = {"model": {"language_model": "smollm2-135m-instruct"}}
    recipe = load_recipe({**page, "data": {"root": str(photos), "train": [source], "holdout": 0.4}})
    assert recipe.data.evaluate[0].max_examples == 4
    assert recipe.data.evaluate[0].epochs is None
    (photos / "again.yaml").write_text(recipe.dump_yaml())
    assert load_recipe(photos / "again.yaml").data == recipe.data
