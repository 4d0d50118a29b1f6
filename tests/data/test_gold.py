"""Which choice a gold answer names, and how the integers of a whole source are understood."""

import json

import pytest

from varifocal.data import source as source_module
from varifocal.data.formats.gold import gold_index, settle_integers
from varifocal.data.loading import load_source
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection

PLACES = [
    (["1", "2", "3", "4"], 1),
    (["2", "4", "8", "1"], 2),
    (["wood", "iron"], 1),
]
VALUES = [(["4", "6", "8"], 8), (["2", "4", "8"], 2)]


@pytest.fixture
def load(tmp_path):
    def load(pairs, name="a.jsonl", on_bad_record="fail", **asked):
        rows = [{"question": "Which?", "choices": c, "answer": a} for c, a in pairs]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        section = FileSection(path=str(tmp_path / name), **asked)
        examples = load_source(section, on_bad_record=on_bad_record)
        return [one.messages[1].text for one in examples]

    return load


@pytest.mark.parametrize("streaming", [False, True])
def test_an_integer_beside_texts_is_an_index(load, streaming):
    assert load(PLACES, streaming=streaming) == ["2", "8", "iron"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(["4", "6", "8"], "8")], ["8"]),  # a text that equals a choice
        ([(["1", "2", "3"], "1"), (["wood", "iron"], 1)], ["1", "iron"]),
        ([([4, 6, 8], 8), ([2, 4, 8, 1], 2)], ["8", "2"]),  # numbers next to numbers
        ([([4, 6, 8], 1)], ["6"]),  # no choice is 1, so it is a place
        ([(["4", "6", "8"], 8)], ["8"]),  # no place is 8, and nothing contradicts it
        ([(["no", "yes"], True)], "True is none"),
        ([(["false", "true"], True)], ["true"]),
        ([(["wood", "iron"], 1.0)], "1.0 is none of .* answer_is: index"),
        ([(["wood", "iron"], "1")], "'1' is none of .* answer_is: index"),
        ([(["wood", "iron"], -1)], "-1 is none of the choices .* 0 to 1"),
        ([(["wood", "iron"], 5)], "5 is none of the choices .* 0 to 1"),
        ([(["wood", "iron"], "b")], "'b' is none"),
        ([(["wood", "iron"], "B")], ["iron"]),
    ],
)
def test_what_an_answer_looks_like_decides(load, pairs, expected, streaming):
    if isinstance(expected, list):
        assert load(pairs, streaming=streaming) == expected
        return
    with pytest.raises(DataError, match=expected) as caught:
        load(pairs, streaming=streaming)
    assert "a.jsonl: line 1" in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("on_bad_record", ["fail", "skip"])
@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            VALUES,
            "line 1 has answer 8 .* line 2 has answer 2 .*answer_is: index, index_from_1 or v",
        ),
        ([*PLACES, VALUES[0]], "line 4 has answer 8 .* line 3 has answer 1 .*answer_is"),
        ([(["a", "b", "c"], 1), (["a", "b", "c"], 3)], "line 2 .* answer_is: index_from_1"),
        ([([10, 2, 3], 2), ([4, 6, 9], 0)], "line 2 has answer 0 .* line 1 has answer 2"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused_and_not_skipped(
    load, pairs, said, on_bad_record, streaming
):
    with pytest.raises(DataError, match=said):
        load(pairs, on_bad_record=on_bad_record, streaming=streaming)


def test_one_index_out_of_range_is_that_records_fault(load):
    pairs = [(["a", "b", "c"], 0), (["a", "b", "c"], 3), (["a", "b", "c"], 2)]
    assert load(pairs, on_bad_record="skip") == ["a", "c"]


@pytest.mark.parametrize(
    ("answer_is", "pairs", "expected"),
    [
        ("index", PLACES, ["2", "8", "iron"]),
        ("index", [(["wood", "iron"], "1"), (["1", "0"], 1.0)], ["iron", "0"]),
        ("index_from_1", [(["a", "b", "c"], 1), (["3", "2", "1"], 3)], ["a", "1"]),
        ("value", VALUES, ["8", "2"]),
        ("letter", [(["B", "A"], "b"), (["x", "y"], "(B)")], ["A", "y"]),
        ("index", [(["wood", "iron"], "iron")], "'iron' is no index from 0 to below 2"),
        ("index", [(["wood", "iron"], True)], "True is no index"),
        ("index_from_1", [(["wood", "iron"], 0)], "0 is no index from 1 to 2"),
        ("value", [(["wood", "iron"], 1)], "1 is no text that equals one"),
        ("letter", [(["wood", "iron"], "iron")], "'iron' is no letter"),
    ],
)
def test_the_recipe_settles_it(load, answer_is, pairs, expected):
    if isinstance(expected, list):
        assert load(pairs, answer_is=answer_is) == expected
        return
    with pytest.raises(DataError, match=f"line 1: answer {expected}.*{answer_is}"):
        load(pairs, answer_is=answer_is)


def test_labels_name_their_choices():
    assert gold_index("2", ["2", "1"], "", labels=("1", "2")) == 1
    assert gold_index(1, ["2", "1"], "", labels=("1", "2")) == 0


def test_nothing_is_settled_without_an_integer():
    assert settle_integers([("a", "x", ["x", "y"]), ("b", True, ["x", "y"])]) is None


def test_what_a_long_source_means_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "_SCANS_SAVED_FROM", 2)
    path = tmp_path / "a.jsonl"

    def write(pairs):
        rows = [{"question": "Which?", "choices": c, "answer": a} for c, a in pairs]
        path.write_text("\n".join(map(json.dumps, rows)))

    def answers():
        found = open_source(FileSection(path=str(path)))
        return [one.messages[1].text for one in found]

    write(PLACES)
    assert answers() == ["2", "8", "iron"]
    with monkeypatch.context() as patch:
        seen = []
        whole = source_module.find_integers
        patch.setattr(
            source_module, "find_integers", lambda rows, asked: seen.append(1) or whole(rows, asked)
        )
        assert answers() == ["2", "8", "iron"]
        assert len(seen) == 1  # the first records alone
    write([([4, 6, 8], 8), ([2, 4, 8, 1], 2)])
    assert answers() == ["8", "2"]
