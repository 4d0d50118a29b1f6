"""What single rows do: splits, tags, parsers, measures, and files that are broken."""

import contextlib
import gzip
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from varifocal.data.example import Example, Message
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answer, Item
from varifocal.evaluation.benchmarks.classes import CIFAR_10, CIFAR_100, FASHION, read_idx
from varifocal.evaluation.benchmarks.registry import BENCHMARKS
from varifocal.evaluation.reference_scores import baselines_of

WRITTEN = [name for name, row in BENCHMARKS.items() if row.method == "generate"]


@pytest.fixture
def load(official_files, tmp_path):
    def load(name, split=None, folder=tmp_path):
        official_files[name](folder, 0)
        return list(BENCHMARKS[name].load(folder, split))

    return load


def item(name, references, group="", choices=(), **tags):
    example = Example((Message("user", ("?",)),), id=name, choices=choices)
    return Item(name, example, references, group, tags)


def said(pairs):
    """(item, parsed) -> answered."""
    return [(one, Answer(text="", parsed=parsed)) for one, parsed in pairs]


def by_name(name, answered):
    return {measure.name: measure for measure in BENCHMARKS[name].measure(answered)}


def test_a_part_of_mme_without_its_headline_has_no_baseline(load):
    items = [item for item in load("mme") if item.tags["subtask"] == "OCR"][:1]
    assert baselines_of(BENCHMARKS["mme"], items).majority is None


def test_race_is_scored_by_level_too(load):
    items = load("race")
    assert [one.tags["level"] for one in items] == ["middle"] * 2 + ["high"] * 2
    answers = [Answer(choice=0, parsed=one.example.choices[0]) for one in items]
    measures = by_name("race", list(zip(items, answers, strict=True)))
    assert {name: one.value for name, one in measures.items()} == {
        "accuracy": 50.0,
        "accuracy middle": 50.0,
        "accuracy high": 50.0,
    }


def test_hellaswag_shows_no_ending_and_takes_the_marks_out(load):
    one = load("hellaswag")[0]
    assert one.example.choices[2] == "eats soup."
    assert "soup" not in one.asked.messages[-1].text
    assert one.tags["source"] == "activitynet"


def test_hellaswag_begins_as_lm_eval_writes_it(load):
    # lm-eval's hellaswag/utils.py on paper: ctx_b gets a capital, " [title]" becomes ". ".
    texts = [one.asked.messages[-1].text.partition("\n")[2] for one in load("hellaswag")]
    assert texts == [
        "Roof shingle removal: A man sits on a roof. He",
        "Cars & Other Vehicles: How to wash a car. Find a place. Park it there.",
    ]


def test_ai2d_takes_the_diagrams_of_the_test_list(load):
    assert [one.id for one in load("ai2d")] == ["0.png-0", "0.png-1"]
    assert len(load("ai2d", "all")) == 4


def test_ai2d_shows_the_letters_where_a_question_goes_by_them(load):
    colours = [one.example.images[0].open().getpixel((4, 4)) for one in load("ai2d")]
    assert colours == [(255, 0, 0), (0, 0, 255)]


def test_ai2d_without_its_list_says_so(load, tmp_path):
    load("ai2d")
    (tmp_path / "ai2d_test_ids.csv").unlink()
    with pytest.raises(DataError, match=r"no ai2d_test_ids\.csv; with split 'all' none is needed"):
        list(BENCHMARKS["ai2d"].load(tmp_path, None))


def test_snli_ve_leaves_out_what_annotators_did_not_agree_on(load):
    assert [one.references for one in load("snli_ve")] == [("yes",), ("maybe",)]


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("B", "B"), ("Right", "B"), ("The answer is A.", "A"), ("both", None)],
)
def test_realworldqa_reads_a_letter_or_the_options_text(load, text, parsed):
    assert BENCHMARKS["realworldqa"].parse(text, load("realworldqa")[0]) == parsed


def test_realworldqa_reads_number_words_as_digits(load):
    row, one = BENCHMARKS["realworldqa"], load("realworldqa")[1]
    assert one.references == ("2",)
    assert [row.parse(text, one) for text in ("Two.", "2", "two cars")] == ["2", "2", "two cars"]


def test_pope_takes_the_mean_of_its_splits():
    cases = {  # gold, parsed -> F1 of 1, 2/3 and 0
        "random": [("yes", "yes"), ("no", "no")],
        "popular": [("yes", "yes"), ("no", "yes")],
        "adversarial": [("yes", None), ("no", "no")],
    }
    answered = said(
        (item(f"{split}-{n}", (gold,), split), parsed)
        for split, pairs in cases.items()
        for n, (gold, parsed) in enumerate(pairs)
    )
    found = by_name("pope", answered)
    assert found["f1"].value == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)
    assert found["f1"].low <= found["f1"].value <= found["f1"].high
    assert found["f1"].unparsed == 1
    assert found["f1 popular"].value == pytest.approx(200 / 3)
    assert found["recall adversarial"].value == 0.0
    assert found["yes ratio popular"].value == 100.0
    assert found["accuracy adversarial"].value == 50.0


def test_pope_needs_all_three_files_or_one_named_split(load, tmp_path):
    load("pope")
    (tmp_path / "coco_pope_popular.json").unlink()
    with pytest.raises(DataError, match=r"has no coco_pope_popular\.json"):
        list(BENCHMARKS["pope"].load(tmp_path, None))
    assert len(list(BENCHMARKS["pope"].load(tmp_path, "random"))) == 2
    with pytest.raises(DataError, match="no split 'rand' but random, popular, adversarial"):
        list(BENCHMARKS["pope"].load(tmp_path, "rand"))


@pytest.mark.parametrize(
    ("text", "right"),
    [("No.", True), ("no\nit is clear", True), ("not", False), ("no clouds", False)],
)
def test_gqa_matches_exactly(load, text, right):
    row, one = BENCHMARKS["gqa"], load("gqa")[0]
    answer = Answer(text, parsed=row.parse(text, one))
    assert row.credit(one, answer) == float(right)


def test_gqa_is_scored_by_kind(load):
    first, second = load("gqa")
    found = by_name("gqa", said([(first, "no"), (second, "man")]))
    assert {name: one.value for name, one in found.items()} == {
        "accuracy": 50.0,
        "accuracy binary": 100.0,
        "accuracy open": 0.0,
    }


def test_textvqa_gives_part_of_a_credit(load):
    row, (one,) = BENCHMARKS["textvqa"], load("textvqa")
    answer = Answer(text="A Toshiba!", parsed=row.parse("A Toshiba!", one))
    assert row.credit(one, answer) == pytest.approx(0.6)
    assert row.measure([(one, answer)])[0].value == pytest.approx(60.0)


def test_mme_sums_what_is_there():
    def pair(subtask, image, first, second):
        found = [
            item(f"{image}{n}", ("yes",), f"{subtask}/{image}", subtask=subtask) for n in (1, 2)
        ]
        return said(zip(found, (first, second), strict=True))

    answered = [
        *pair("OCR", "a", "yes", "yes"),
        *pair("OCR", "b", "yes", "no"),
        *pair("color", "c", "no", None),
        *pair("code_reasoning", "d", "yes", "yes"),
    ]
    found = by_name("mme", answered)
    # OCR: 3 of 4 and 1 of 2 images; colour: nothing; code: everything.
    assert found["OCR accuracy"].value == 75.0
    assert found["OCR accuracy+"].value == 50.0
    assert found["OCR (points of 200)"].value == pytest.approx(125.0)
    assert found["perception (points of 2000)"].value == pytest.approx(125.0)
    assert found["cognition (points of 800)"].value == pytest.approx(200.0)
    assert found["perception (points of 2000)"].unparsed == 1


def test_mme_cut_short_leaves_half_pairs_out_of_the_score(load, tmp_path):
    items = load("mme")
    assert {one.tags["subtask"] for one in items} == {"OCR", "artwork"}
    shallow = tmp_path / "MME_Benchmark_release_version"  # its first release
    (shallow / "MME_Benchmark").rename(tmp_path / "old")
    shallow.rmdir()
    assert [one.id for one in BENCHMARKS["mme"].load(tmp_path, None)] == [one.id for one in items]
    answered = said([(one, one.references[0]) for one in items[:3]])
    found = by_name("mme", answered)
    names = [name for name in found if name.endswith("(points of 200)")]
    assert len(names) == 1
    assert BENCHMARKS["mme"].main in found


def test_captions_are_scored_as_a_corpus(load):
    items = load("coco_captions")
    found = by_name("coco_captions", said([(items[0], "A cat on a mat 0."), (items[1], None)]))
    assert 0 < found["CIDEr (x100)"].value < 1000
    # All 6 n-grams of the one caption match, the other's words are missing: penalty exp(1 - 9/6).
    assert found["BLEU-4"].value == pytest.approx(100 * np.exp(1 - 9 / 6), abs=1e-4)
    assert found["BLEU-4"].unparsed == 1


def test_classes_have_their_names(load, tmp_path):
    assert (len(CIFAR_10), len(CIFAR_100), len(FASHION)) == (10, 100, 10)
    assert list(CIFAR_100) == sorted(CIFAR_100)
    assert [one.references for one in load("cifar10")] == [("cat",), ("ship",)]
    assert load("cifar100")[0].references == ("cockroach",)
    assert [one.references for one in load("mnist")] == [("5",), ("8",)]
    assert load("fashion_mnist")[1].references == ("bag",)


def test_pixels_are_those_of_the_files(load, tmp_path):
    image = np.asarray(load("mnist")[1].example.images[0].open())
    np.testing.assert_array_equal(image[..., 0], np.arange(16, 32).reshape(4, 4))
    planes = np.stack([np.full((32, 32), 1), np.full((32, 32), 2), np.arange(1024).reshape(32, 32)])
    record = bytes([3]) + planes.astype(np.uint8).tobytes()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "test_batch.bin").write_bytes(record)
    (one,) = BENCHMARKS["cifar10"].load(tmp_path / "c", None)
    assert np.asarray(one.example.images[0].open())[5, 7].tolist() == [1, 2, 5 * 32 + 7]
    digit = np.asarray(load("digits", folder=tmp_path / "d")[0].example.images[0].open())
    assert digit.shape == (8, 8, 3)
    assert digit[2, 0, 0] == 255  # the seventeenth pixel is 16


def test_broken_idx_files_are_refused(tmp_path):
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1]))
    with pytest.raises(DataError, match=r"cut off or too long: its header says \(9,\)"):
        read_idx(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no IDX file of unsigned bytes"):
        read_idx(file)
    file.write_bytes(gzip.compress(b"x" * 99)[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_idx(file)


@given(st.binary(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_bytes_are_an_array_or_an_error(tmp_path, content):
    file = tmp_path / "any"
    file.write_bytes(b"\0\0\x08" + content)
    with contextlib.suppress(DataError):
        assert read_idx(file).dtype == np.uint8


BROKEN = {
    "race": ("test/high/12.txt", {"answers": ["A"]}, "'questions', 'options' and 'answers' differ"),
    "boolq": ("dev.jsonl", {"answer": "yes"}, "'answer' must be true or false, not 'yes'"),
    "hellaswag": ("hellaswag_val.jsonl", {"label": 4}, "'label' must be 0 to 3, not 4"),
    "openbookqa": ("Data/Main/test.jsonl", {"answerKey": "E"}, "'E', none of A, B, C, D"),
    "pope": ("coco_pope_random.json", {"label": "maybe"}, "must be yes or no, not 'maybe'"),
    "vsr": ("data/splits/random/test.jsonl", {"image": "no.jpg"}, "no image 'no.jpg'"),
    "snli_ve": ("snli_ve_test.jsonl", {"gold_label": "true"}, "'gold_label' must be 0 to 2"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_record_is_named_with_its_file(name, load, tmp_path):
    file, change, message = BROKEN[name]
    load(name)
    path = tmp_path / file
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps(json.loads(first) | change), *others]) + "\n")
    with pytest.raises(DataError, match=message) as error:
        list(BENCHMARKS[name].load(tmp_path, None))
    assert path.name in str(error.value)


def test_a_line_without_a_tab_is_no_question_of_mme(load, tmp_path):
    load("mme")
    file = next(tmp_path.rglob("OCR/0001.txt"))
    file.write_text("Is it? Yes\n")
    with pytest.raises(DataError, match="a tab and Yes or No are needed"):
        list(BENCHMARKS["mme"].load(tmp_path, None))


@pytest.mark.parametrize("name", WRITTEN)
@given(text=st.text(max_size=60))
@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None
)
def test_a_parser_never_fails(name, text):
    choices = ("Left", "Right")
    for one in (item("1", ("A",), choices=choices), item("2", ("red",))):
        parsed = BENCHMARKS[name].parse(text, one)
        assert parsed is None or (isinstance(parsed, str) and parsed)
