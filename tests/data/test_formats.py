"""ScienceQA's layout, tables, and the door to both."""

import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from varifocal.data.example import Example
from varifocal.data.loading import check_images, load_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection
from varifocal.recipe.prompt_formats import PROMPT_FORMATS


def load_scienceqa(folder, split=None, *, on_bad_record="fail", **how):
    source = FileSection(path=str(folder), format="scienceqa", split=split, **how)
    return load_source(source, on_bad_record=on_bad_record)


def load_table(file, columns=None, *, on_bad_record="fail", **how):
    source = FileSection(path=str(file), format="table", columns=columns or {}, **how)
    return load_source(source, on_bad_record=on_bad_record)


def answer_of(example):
    return example.messages[-1].text


def prompt_of(example):
    return example.messages[0].text


def test_a_question_with_a_image_becomes_a_conversation(scienceqa):
    example = load_scienceqa(scienceqa, "train")[0]
    assert example.images[0].path == scienceqa / "images" / "train" / "1" / "image.png"
    assert example.messages[0].content[0] is example.images[0]
    assert prompt_of(example) == (
        "Question: Will the magnets attract?\nContext: Two magnets lie side by side.\n"
        "Options: (A) attract (B) repel"
    )
    assert answer_of(example) == "repel"
    assert (example.choices, example.answer_index) == (("attract", "repel"), 1)
    assert (example.id, example.task, example.modality) == ("1", "QCM-A", 1)
    assert example.tags["subject"] == "natural science"
    assert example.tags["hint"] == "yes"


def test_a_split_keeps_its_order_and_none_takes_all(scienceqa):
    assert [example.id for example in load_scienceqa(scienceqa, "train")] == ["1", "2"]
    assert [example.id for example in load_scienceqa(scienceqa)] == ["1", "2", "3"]
    assert [example.id for example in load_scienceqa(scienceqa, max_examples=1)] == ["1"]
    assert [example.id for example in load_scienceqa(scienceqa, skills=["nouns"])] == ["2"]
    assert load_scienceqa(scienceqa, "val")[0].tags["split"] == "val"


def test_a_part_of_a_split_finds_its_images_and_doubles_nothing(scienceqa):
    splits = {"minitrain": ["1"], "train": ["1", "2"], "val": ["3"], "trainval": ["1", "2", "3"]}
    (scienceqa / "pid_splits.json").write_text(json.dumps(splits))
    (example,) = load_scienceqa(scienceqa, "minitrain")
    assert example.images[0].path == scienceqa / "images" / "train" / "1" / "image.png"
    assert example.tags["split"] == "train"
    assert sorted(example.id for example in load_scienceqa(scienceqa)) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("prompt_format", "answer_as", "answers", "option"),
    [
        ("QCM-A", "text", ["repel", "dog"], "repel"),
        ("QCM-A", "letter", ["The answer is B.", "The answer is B."], "The answer is B."),
        (
            "QCM-ALE",
            "letter",
            ["The answer is B. BECAUSE: Like poles repel. N faces N.", "The answer is B."],
            "The answer is B. BECAUSE:",
        ),
        (
            "QCM-ALE",
            "text",
            ["repel\nBECAUSE: Like poles repel. N faces N.", "dog"],
            "repel\nBECAUSE:",
        ),
    ],
)
def test_answers_in_each_format(scienceqa, prompt_format, answer_as, answers, option):
    examples = load_scienceqa(scienceqa, "train", prompt_format=prompt_format, answer_as=answer_as)
    assert [answer_of(example) for example in examples] == answers
    assert examples[0].options[1] == option
    for example in examples:
        assert answer_of(example).startswith(example.options[example.answer_index])


def test_captions_are_asked_of_images_that_have_one(scienceqa):
    (example,) = load_scienceqa(scienceqa, prompt_format="caption")
    assert (prompt_of(example), answer_of(example)) == (
        "Describe the picture.",
        "Two magnets, N facing N.",
    )
    assert example.choices == ()


def test_captions_are_also_read_from_the_official_file(scienceqa):
    (scienceqa / "captions.json").write_text(json.dumps({"captions": {"3": "A thermometer."}}))
    captions = load_scienceqa(scienceqa, prompt_format="caption")
    assert [answer_of(example) for example in captions] == [
        "Two magnets, N facing N.",
        "A thermometer.",
    ]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"choices": ...}, "'choices' must be a list of texts, not None"),
        ({"choices": "attract"}, "'choices' must be a list of texts"),
        ({"choices": ["attract", " "]}, "'choices' must be a list of texts"),
        ({"choices": ["attract"], "answer": 0}, "1 choices; 2 to 26 are allowed"),
        ({"answer": ...}, "'answer' is None; it must be an index from 0 to 1"),
        ({"answer": 2}, "'answer' is 2; it must be an index from 0 to 1"),
        ({"answer": -1}, "'answer' is -1"),
        ({"answer": True}, "'answer' is True"),
        ({"answer": "B"}, "'answer' is 'B'"),
        ({"question": ...}, "'question' is missing or empty"),
        ({"question": ["why"]}, r"'question' must be a text, not \['why'\]"),
        ({"hint": 3}, "'hint' must be a text, not 3"),
        ({"image": "other.png"}, r"no image '.*other\.png'"),
        ({"image": "../2/image.png"}, "leads out of the folder"),
        ({"image": "/etc/hostname"}, "leads out of the folder"),
        ({"image": "https://example.org/a.png"}, "is a URL"),
        ({"image": 5}, "the image's path is 5"),
        ({"split": "../images/train"}, "cannot be the name of a folder"),
        ({"split": 4}, "'split' must be a text, not 4"),
        ({"image": "a\0b"}, "no image"),
        ({"question": "half \ud83d a character"}, "half a character"),
    ],
)
def test_a_broken_record_is_named_or_skipped_and_counted(rewrite, change, said):
    folder = rewrite("1", **change)
    with pytest.raises(DataError, match=said) as caught:
        load_scienceqa(folder, "train")
    assert str(folder / "problems.json") in str(caught.value)
    assert "record '1'" in str(caught.value)
    examples = load_scienceqa(folder, "train", on_bad_record="skip")
    assert [example.id for example in examples] == ["2"]
    assert examples.skipped == [str(caught.value)]


def test_an_id_that_is_listed_but_absent_is_named_or_skipped(scienceqa):
    (scienceqa / "pid_splits.json").write_text(json.dumps({"train": ["2", "9"]}))
    with pytest.raises(DataError, match=r"record '9' is missing, but pid_splits\.json lists it"):
        load_scienceqa(scienceqa, "train")
    assert len(load_scienceqa(scienceqa, "train", on_bad_record="skip").skipped) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"split": "tran"}, r"no split 'tran' but train, val, test; did you mean 'train'\?"),
        ({"split": "test"}, r"pid_splits\.json': split 'test' is empty"),
        ({"skills": ["noun"]}, r"no skill 'noun'; did you mean 'nouns'\?"),
        ({"split": "val", "skills": ["nouns"]}, "no record in split 'val'"),
        (
            {"skills": ["nouns"], "prompt_format": "caption"},
            "no record with image and caption in any split",
        ),
    ],
)
def test_a_choice_that_leaves_nothing_is_a_sentence(scienceqa, arguments, said):
    with pytest.raises(DataError, match=said):
        load_scienceqa(scienceqa, **arguments)


def test_a_split_whose_every_record_is_absent(scienceqa):
    (scienceqa / "pid_splits.json").write_text(json.dumps({"train": ["8", "9"]}))
    with pytest.raises(DataError, match="none of the 2 ids of split 'train' is in problems"):
        load_scienceqa(scienceqa, "train", on_bad_record="skip")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", r"problems\.json' is not JSON: .* at line 1"),
        (b"[]", "holds a list, an object"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (None, r"no file '.*problems\.json'; did you mean 'problem\.json'\?"),
    ],
)
def test_a_file_that_is_no_json_is_a_sentence(scienceqa, content, said):
    (scienceqa / "problems.json").rename(scienceqa / "problem.json")
    if content is not None:
        (scienceqa / "problems.json").write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_scienceqa(scienceqa, "train")


def test_a_byte_order_mark_does_no_harm(scienceqa):
    path = scienceqa / "problems.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_scienceqa(scienceqa)) == 3


ROWS = [
    {"id": "a", "sentence": "There is a tower.", "label": "true", "picture": "p.png"},
    {"id": "b", "sentence": "There is a box.", "label": False, "picture": None},
]
COLUMNS = {
    "question": "True of the image? {sentence}",
    "answer": "label",
    "choices": "true|false",
    "image": "picture",
}


@pytest.fixture
def table(scienceqa):
    shutil.copy(scienceqa / "images" / "train" / "1" / "image.png", scienceqa / "p.png")
    path = scienceqa / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n")
    return path


def test_a_table_with_mapped_columns(table):
    first, second = load_table(table, COLUMNS)
    assert prompt_of(first) == (
        "Question: True of the image? There is a tower.\nOptions: (A) true (B) false"
    )
    assert (answer_of(first), first.answer_index, first.modality) == ("true", 0, 1)
    assert (answer_of(second), second.answer_index, second.modality) == ("false", 1, 0)
    assert (first.id, second.id) == ("a", "b")


def test_a_table_answers_with_letters_too(table):
    assert answer_of(load_table(table, COLUMNS, answer_as="letter")[1]) == "The answer is B."


def test_csv_tsv_and_json_say_the_same(tmp_path):
    row = {"question": "Why, oh why?", "answer": "So.", "id": "1", "split": "train"}
    (tmp_path / "a.csv").write_text('question,answer,id,split\n"Why, oh why?",So.,1,train\n')
    (tmp_path / "a.tsv").write_text("question\tanswer\tid\tsplit\nWhy, oh why?\tSo.\t1\ttrain\n")
    (tmp_path / "a.json").write_text(json.dumps([row]))
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    for name in ("a.csv", "a.tsv", "a.json", "a.jsonl"):
        (example,) = load_table(tmp_path / name)
        assert (prompt_of(example), answer_of(example)) == ("Why, oh why?", "So."), name
        assert example.choices == ()
        assert example.tags == {"split": "train"}


@pytest.mark.parametrize("answer", ["wood", "B", "(B)", "B.", 1])
def test_an_answer_is_a_choice_its_letter_or_its_index(tmp_path, answer):
    row = {"question": "Which floats?", "choices": ["iron", "wood"], "answer": answer}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert load_table(tmp_path / "a.jsonl")[0].answer_index == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r"line 2 is not JSON"),
        ("[1]", "line 2 holds a list, an object"),
        ('{"sentence": "x", "picture": null}', "has no column 'label' for answer"),
        ('{"sentence": "", "label": "true", "picture": null}', "column 'sentence' is empty"),
        ('{"sentence": "x", "label": "maybe", "picture": null}', "'maybe' is none of the choices"),
        ('{"sentence": "x", "label": {}, "picture": null}', "answer must be a text or a number"),
        ('{"sentence": "x", "label": "true", "picture": "q.png"}', "no image"),
        ('{"sentence": "x", "label": "true", "picture": "../p.png"}', "leads out of the folder"),
    ],
)
def test_a_broken_row_is_named_or_skipped_and_counted(table, line, said):
    table.write_text(json.dumps(ROWS[0]) + "\n" + line)
    with pytest.raises(DataError, match=said) as caught:
        load_table(table, COLUMNS)
    assert str(caught.value).startswith(str(table))
    assert "line 2" in str(caught.value)
    examples = load_table(table, COLUMNS, on_bad_record="skip")
    assert len(examples) == 1
    assert examples.skipped == [str(caught.value)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("question,answer\na\n", "line 2 has not the header's 2 columns"),
        ("question,answer\na,b,c\n", "line 2 has not the header's 2 columns"),
        ("question,answer,answer\na,b,c\n", "the header has column 'answer' twice"),
        ('question,answer\n"a,b\n', "line 2 is not CSV"),
        ("question,answer\n", "has no row"),
        ("", "has no row"),
    ],
)
def test_csv_that_cannot_be_read_is_a_sentence(tmp_path, content, said):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=said):
        load_table(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"qestion": "sentence"}, r"column 'qestion' is none of .*; did you mean 'question'\?"),
        ({**COLUMNS, "question": "{sentense}"}, r"'sentense' .*; did you mean 'sentence'\?"),
        ({**COLUMNS, "question": "{sentence"}, r"template '\{sentence'"),
        ({**COLUMNS, "question": "{sentence.__class__}"}, "has no column 'sentence.__class__'"),
        ({**COLUMNS, "answer": "lable"}, r"no column 'lable' .*; did you mean 'label'\?"),
    ],
)
def test_a_wrong_mapping_is_a_sentence(table, columns, said):
    with pytest.raises(DataError, match=said):
        load_table(table, columns)


def test_a_source_is_detected(scienceqa, table):
    source = FileSection(path=scienceqa.name, split="train")
    assert len(load_source(source, root=scienceqa.parent)) == 2
    assert len(load_source(FileSection(path=str(table), columns=COLUMNS))) == 2
    with pytest.raises(DataError, match="holds neither records nor images"):
        load_source(FileSection(path=str(scienceqa / "images")))
    with pytest.raises(DataError, match=r"no file or folder .*; did you mean 'rows\.jsonl'\?"):
        load_source(FileSection(path="row.jsonl"), root=scienceqa)


def test_images_can_be_checked_before_the_training(scienceqa):
    path = scienceqa / "images" / "train" / "1" / "image.png"
    path.write_bytes(path.read_bytes()[:50])
    examples = load_scienceqa(scienceqa)
    with pytest.raises(DataError, match=r"record '1': image '.*image\.png' cannot be decoded"):
        check_images(examples)
    checked = check_images(examples, "skip")
    assert [example.id for example in checked] == ["2", "3"]
    assert len(checked.skipped) == 1


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=True)
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)
records = st.fixed_dictionaries(
    {},
    optional={
        key: json_values | st.sampled_from(["a", ["a", "b"], 0, "image.png", "../x"])
        for key in ("question", "choices", "answer", "hint", "image", "lecture", "skill", "caption")
    },
)
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def outcome(load):
    """Return the example, or the sentence that says why there is none."""
    try:
        return load()
    except DataError as error:
        return str(error)


@quick
@given(record=records | json_values, prompt_format=st.sampled_from(PROMPT_FORMATS))
def test_any_record_gives_an_example_or_a_sentence(scienceqa, record, prompt_format):
    (scienceqa / "problems.json").write_text(json.dumps({"1": record}))
    (scienceqa / "pid_splits.json").write_text('{"train": ["1"]}')
    said = outcome(lambda: load_scienceqa(scienceqa, prompt_format=prompt_format)[0])
    assert isinstance(said, Example) or str(scienceqa) in said


@quick
@given(
    row=st.dictionaries(st.sampled_from(["question", "answer", "choices", "image"]), json_values)
)
def test_any_row_gives_an_example_or_a_sentence(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    said = outcome(lambda: load_table(tmp_path / "a.jsonl")[0])
    assert isinstance(said, Example) or str(tmp_path) in said
