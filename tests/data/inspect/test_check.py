"""Checking data: every kind of finding, what a run would do with it, memory that does not grow."""

import gc
import json
import weakref

import pytest
from PIL import Image as Images

from varifocal.data.encoding.samples import NO_SOURCE, UsableSamples
from varifocal.data.example import Example, Message
from varifocal.data.inspect import check as check_module
from varifocal.data.inspect.check import check_data
from varifocal.data.rows.packing import PackedDataset
from varifocal.data.source import Source, open_source
from varifocal.recipe import DataSection, FileSection

IMAGE_TOKEN = "<|image|>"
PER_IMAGE = 4


def talk(question, answer, image=None, **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **more}


GOOD = [
    talk("<image>What is it?", "It is red.", "red.png", id="a"),
    talk("<image>What is it?", "It is blue.", "blue.png", id="b"),
    talk("Is a pole a magnet?", "No, it is not.", id="c"),
]


def check(section, encoder, eyes=True, **options):
    return check_data(section, encoder(section, eyes), num_workers=0, **options)


def found(report):
    return [(one["kind"], one["side"], one["record"]) for one in all_findings(report)]


def all_findings(report):
    return [json.loads(line) for line in report.findings.lines()]


# Findings


@pytest.mark.parametrize(
    ("record", "kind", "words"),
    [
        ("{oops", "broken", "line 4 is not JSON"),
        (talk("Bad <|im_end|> token", "Yes."), "broken", "control token '<|im_end|>'"),
        (talk("<image>Nothing there?", "Yes."), "placeholders", "1 placeholders <image>, but 0"),
        (talk("Nowhere?", "Yes.", "red.png"), "placeholders", "0 placeholders <image>, but 1"),
        (talk(f"A {IMAGE_TOKEN} typed", "Yes."), "placeholders", "image placeholder"),
        (talk("<image>Torn?", "Yes.", "torn.png"), "picture", "torn.png' is damaged"),
        (talk("<image>Lost?", "Yes.", "lost.png"), "picture", "no image"),
        (talk("Silent?", " "), "no_answer", "the answer in turn 2 is empty"),
        ({"conversations": GOOD[2]["conversations"][:1]}, "no_answer", "its last turn is the user"),
        (talk("Long? " * 200, "Yes."), "too_long", "tokens, max_length is 400: the run would stop"),
        (talk("Is a  pole a magnet?", "No, it is not."), "duplicate", "as record 2"),
        (talk("Other?", "Yes.", id="b"), "duplicate_id", "the same id as record 1"),
    ],
)
def test_each_kind_is_found_with_file_and_index(section, encoder, record, kind, words):
    data = section([*GOOD, record])
    report = check(data, encoder)
    assert found(report) == [(kind, "train", 3)]
    (finding,) = report.findings.first[kind]
    assert finding.file == data.train[0].path
    assert str(data.train[0].path) in finding.text
    assert words in finding.text
    assert report.findings.count(kind) == 1


def test_good_records_give_no_finding(section, encoder):
    report = check(section(GOOD), encoder)
    assert found(report) == []
    assert report.verdict.is_usable
    assert report.verdict.sentence == "usable: 3 of 3 records train"


def test_an_image_is_refused_by_a_model_without_eyes(section, encoder):
    report = check(section(GOOD), encoder, eyes=False)
    assert found(report) == [("no_eyes", "train", 0), ("no_eyes", "train", 1)]


def test_doubles_are_found_across_sources_and_ids_only_within(section, encoder):
    again = talk("<image>What is it?", "It is red.", "red.png", id="z")
    report = check(section(None, sources=[GOOD, [again, talk("New?", "Yes.", id="a")]]), encoder)
    assert found(report) == [("duplicate", "train", 0)]
    (finding,) = report.findings.first["duplicate"]
    assert finding.source == "train1.jsonl"
    assert finding.text.endswith("record 0 of " + report.sources[0].file)


def test_the_same_words_about_another_image_are_no_double(section, encoder, folder):
    other = folder / "copy.png"
    other.write_bytes((folder / "red.png").read_bytes())
    same = talk("<image>What is it?", "It is red.", "copy.png")
    assert found(check(section([*GOOD, same]), encoder)) == [("duplicate", "train", 3)]
    Images.new("RGB", (8, 6), "green").save(other)
    assert found(check(section([*GOOD, same]), encoder)) == []


def choice(question, **more):
    return {"question": question, "choices": ["yes", "no"], "answer": "yes", **more}


def test_questions_that_are_trained_and_scored_overlap(section, encoder):
    data = section([choice("Is it?"), choice("Was it?")], [choice("Will it?"), choice("Was it?")])
    report = check(data, encoder)
    assert found(report) == [("overlap", "evaluate", 1)]
    (finding,) = report.findings.first["overlap"]
    assert finding.text.endswith(f"record 1 of {data.train[0].path}")
    assert "but 1 questions to score on are trained on" in report.verdict.sentence


def test_a_question_without_gold_answer_cannot_be_scored(section, encoder):
    silent = {"conversations": talk("Open?", "")["conversations"][:1]}
    report = check(section(GOOD, [silent, talk("Open?", "Yes.")]), encoder)
    assert found(report) == [("no_answer", "evaluate", 0)]


def test_a_question_that_is_answered_in_words_can_be_scored(section, encoder):
    report = check(
        section(GOOD, [talk("Open?", "Yes."), talk("<image>?", "Red.", "red.png")]), encoder
    )
    assert found(report) == []
    assert report.verdict.is_usable


def test_questions_with_and_without_choices_in_one_source_are_refused_as_scoring_would(
    section, encoder
):
    mixed = [choice("Is it?"), {"question": "Which?", "answer": "red"}]
    report = check(section(GOOD, mixed), encoder)
    assert not report.verdict.is_usable
    assert "1 of 2 questions have choices and 1 have none" in report.verdict.sentence


def test_all_findings_are_counted_and_written_but_few_are_held(section, encoder, tmp_path):
    data = section([*GOOD, *(talk(f"Why {n}?", "") for n in range(50))], on_bad_record="skip")
    report = check(data, encoder)
    assert report.findings.count("no_answer") == 50
    assert len(report.findings.first["no_answer"]) == 20
    report.write_json(tmp_path / "found.json")
    written = json.loads((tmp_path / "found.json").read_text())
    assert [one["record"] for one in written["findings"]] == list(range(3, 53))
    assert written["counts"] == {"no_answer": {"train": 50, "captions": 0, "evaluate": 0}}
    assert written["usable"] is True


# Counts


def test_counts_by_source_task_and_modality(section, encoder):
    named = [talk("A?", "B.", task="verbs"), talk("C?", "D.", task="verbs"), "{"]
    data = section(None, sources=[GOOD, named], on_bad_record="skip")
    report = check(data, encoder)
    first, second = (source.to_dict() for source in report.sources)
    assert (first["records"], first["text"], first["image"]) == (3, 1, 2)
    assert (second["records"], second["usable"]) == (3, 2)
    assert second["tasks"] == {"verbs": 2}
    assert first["image_tokens"] == {"0": 1, str(PER_IMAGE): 2}


def test_tokens_are_those_of_the_encoder(section, encoder):
    data = section(GOOD)
    report = check(data, encoder)
    source = open_source(data.train[0])
    encoded = [encoder(data).encode(source.example(n)) for n in range(3)]
    assert list(report.sources[0].lengths) == [len(one) for one in encoded]
    trained = sum(len(one.trained_ids) for one in encoded)
    assert report.sources[0].num_trained_tokens == trained
    assert report.epoch.trained_share == trained / sum(map(len, encoded))


LONG = [talk("Why is that? " * 60, "So."), talk("Really? " * 20, "Word " * 400)]


@pytest.mark.parametrize(
    ("overflow", "cut", "left_out"),
    [("error", 0, 2), ("drop", 0, 2), ("truncate_prompt", 1, 1)],
)
def test_what_the_limit_would_do(section, encoder, overflow, cut, left_out):
    data = section([*GOOD, *LONG], overflow=overflow, on_bad_record="skip", max_length=200)
    report = check(data, encoder)
    (counts,) = report.sources
    assert report.findings.count("too_long") == 2
    assert (counts.num_cut, counts.num_left_out) == (cut, left_out)
    assert all(kept <= 200 for kept in counts.left)
    assert counts.num_lost_tokens == sum(counts.lengths) - sum(counts.left)
    assert counts.left[4] == 0 < counts.lengths[4]


def test_old_turns_that_are_left_out_are_counted(section, encoder):
    turns = [
        {"from": speaker, "value": f"{speaker} says {number} " * 10}
        for number in range(8)
        for speaker in ("human", "gpt")
    ]
    data = section([{"conversations": turns}], overflow="drop_oldest_turns", max_length=300)
    (counts,) = check(data, encoder).sources
    assert counts.num_shortened == 1
    assert 0 < counts.left[0] <= 300 < counts.lengths[0]


# The epoch


def test_packing_is_the_one_of_the_training(section, encoder, open_samples):
    records = [talk(f"Why {n}? " * (n % 7 + 1), "So.") for n in range(40)]
    data = section(records, row_length=512)
    usable = UsableSamples(open_samples(data))
    rows = PackedDataset(usable, 512, 0, True, usable.lengths.tolist())
    epoch = check(data, encoder).epoch
    assert (epoch.num_rows, epoch.num_samples) == (len(rows), 40)
    assert epoch.efficiency == rows.efficiency


def test_epochs_of_a_source_count(section, encoder):
    data = section(GOOD)
    source = data.train[0].model_copy(update={"epochs": 2.0})
    data = data.model_copy(update={"train": (source,)})
    epoch = check(data, encoder).epoch
    assert epoch.num_samples == 6
    assert [row.realised for row in epoch.mixture] == [2, 4]


# The verdict


@pytest.mark.parametrize(
    ("records", "knobs", "words"),
    [
        ([*GOOD, "{"], {}, "1 record cannot be used and data.on_bad_record is fail"),
        ([*GOOD, *LONG], {"max_length": 200}, "data.overflow is error; set data.max_length to"),
        (
            [*GOOD, *LONG],
            {"max_length": 200, "overflow": "truncate_prompt"},
            "1 record to train on cannot be cut to data.max_length 200",
        ),
        (LONG, {"max_length": 200, "overflow": "drop"}, "there is no example to train on"),
        (["{", "{"], {"on_bad_record": "skip", "format": "llava"}, "there is no example to train"),
    ],
)
def test_what_is_not_usable_says_why_and_the_mend(section, encoder, records, knobs, words):
    knobs = dict(knobs)
    form = knobs.pop("format", "auto")
    data = section(records, **knobs)
    source = data.train[0].model_copy(update={"format": form})
    report = check(data.model_copy(update={"train": (source,)}), encoder)
    assert not report.verdict.is_usable
    assert report.verdict.sentence.startswith("not usable: ")
    assert words in report.verdict.sentence


@pytest.mark.parametrize(
    ("records", "knobs", "words"),
    [
        ([*GOOD, "{"], {"on_bad_record": "skip"}, "3 of 4 records train; 1 record skipped"),
        ([*GOOD, *LONG], {"max_length": 200, "overflow": "drop"}, "3 of 5 records train; 2 over"),
    ],
)
def test_what_is_left_out_as_asked_is_usable(section, encoder, records, knobs, words):
    report = check(section(records, **knobs), encoder)
    assert report.verdict.is_usable
    assert words in report.verdict.sentence


def test_a_question_too_long_to_score_is_not_usable_even_with_drop(section, encoder):
    data = section(GOOD, [choice("Why? " * 200)], overflow="drop")
    report = check(data, encoder)
    assert not report.verdict.is_usable
    assert "1 record to score on take more than data.max_length 400" in report.verdict.sentence


def test_a_question_too_long_to_score_is_left_out_where_the_recipe_says_so(section, encoder):
    data = section(GOOD, [choice("Why?"), choice("Why? " * 200)], on_bad_record="skip")
    report = check(data, encoder)
    assert report.verdict.is_usable
    told = "1 questions over the limit are left out of the score"
    assert told in report.verdict.sentence


def test_nothing_to_train_on_is_not_usable(encoder):
    report = check(DataSection(), encoder)
    assert report.verdict.sentence == f"not usable: {NO_SOURCE}"


# Reading


def test_workers_find_the_same(section, encoder):
    data = section([*GOOD, "{", talk("Silent?", ""), *GOOD], on_bad_record="skip")
    alone = check_data(data, encoder(data), num_workers=0)
    helped = check_data(data, encoder(data), num_workers=2)
    assert helped.to_dict() == alone.to_dict()
    assert all_findings(helped) == all_findings(alone)


def test_a_stream_is_read_from_front_to_back(section, encoder):
    data = section([*GOOD, "{"], on_bad_record="skip")
    source = data.train[0].model_copy(update={"streaming": True})
    told = []
    report = check(
        data.model_copy(update={"train": (source,)}),
        encoder,
        progress=lambda *words: told.append(words),
    )
    assert found(report) == [("broken", "train", 3)]
    assert report.epoch.num_samples == 3
    assert told == [("train: train0.jsonl", 4, 4)]


def test_no_example_is_kept(encoder, monkeypatch):
    alive = weakref.WeakSet()
    most = 0

    class Many(Source):
        """Two thousand records made on demand, which remembers which of them are still there."""

        def __init__(self):
            self.section, self.name = FileSection(path="many.jsonl"), "many"

        def notes(self):
            return []

        def __len__(self):
            return 2000

        def example(self, number):
            nonlocal most
            said = (Message("user", (f"Why {number}?",)), Message("assistant", ("So.",)))
            example = Example(said, id=str(number), task=f"task {number % 3}")
            alive.add(Kept(example))
            most = max(most, len(alive))
            return example

    class Kept:
        """Lives as long as its example: examples compare by value, and are not hashable here."""

        def __new__(cls, example):
            self = super().__new__(cls)
            object.__setattr__(example, "_kept", self)
            return self

    monkeypatch.setattr(check_module, "open_source", lambda section, seed: Many())
    report = check(DataSection(train=(FileSection(path="many.jsonl"),)), encoder)
    gc.collect()
    assert len(report.sources[0]) == 2000
    assert most <= 2
    assert not alive
    held = sum(
        getattr(report.sources[0], name).itemsize
        for name in ("lengths", "left", "trained", "task_codes", "modalities")
    )
    assert held + 3 * 8 <= 50


def test_varied_wordings_do_not_hide_an_overlap(section, encoder):
    data = section([choice("Is it?"), choice("Was it?")], [choice("Was it?")])
    source = data.train[0].model_copy(update={"instructions": "varied"})
    report = check(data.model_copy(update={"train": (source,)}), encoder)
    assert [kind for kind, _, _ in found(report)] == ["overlap"]
