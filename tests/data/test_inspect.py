"""Checking and showing data: every kind of finding, memory that does not grow, rows as trained."""

import gc
import html.parser
import json
import re
import weakref

import numpy as np
import pytest
from PIL import Image as Pictures

from varifocal.cache import cache_root
from varifocal.data.encode import Encoder
from varifocal.data.example import Example, Message
from varifocal.data.inspect import check as check_module
from varifocal.data.inspect.check import check_data
from varifocal.data.inspect.first_rows import FirstRows
from varifocal.data.inspect.page import html_page
from varifocal.data.inspect.rows import readable
from varifocal.data.mixture import Part, draw
from varifocal.data.packing import Collator, PackedDataset
from varifocal.data.samples import Samples, UsableSamples
from varifocal.data.source import Source, open_source
from varifocal.recipe import DataSection, SourceSection

IMAGE_TOKEN = "<|image|>"
PER_IMAGE = 4


@pytest.fixture
def encoder(tokenizers):
    """Make an encoder with eyes; knobs as given."""

    def make(data=DataSection(), eyes=True):  # noqa: B008 - frozen
        seeing = {"image_token": IMAGE_TOKEN, "tokens_per_image": PER_IMAGE} if eyes else {}
        return Encoder(
            tokenizers["smollm2"],
            **seeing,
            max_length=data.max_length,
            overflow=data.overflow,
            train_on=data.train_on,
        )

    return make


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    Pictures.new("RGB", (8, 6), "red").save(tmp_path / "red.png")
    Pictures.new("RGB", (8, 6), "blue").save(tmp_path / "blue.png")
    (tmp_path / "torn.png").write_bytes((tmp_path / "red.png").read_bytes()[:30])
    return tmp_path


def talk(question, answer, image=None, **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **more}


GOOD = [
    talk("<image>What is it?", "It is red.", "red.png", id="a"),
    talk("<image>What is it?", "It is blue.", "blue.png", id="b"),
    talk("Is a pole a magnet?", "No, it is not.", id="c"),
]


@pytest.fixture
def section(folder):
    """Write records to files and name them in a data section."""

    def make(train, evaluate=None, *, sources=None, **knobs):
        given = {"train": [train] if sources is None else sources}
        if evaluate is not None:
            given["evaluate"] = [evaluate]
        sides = {}
        for side, files in given.items():
            sections = []
            for number, records in enumerate(files):
                path = folder / f"{side}{number}.jsonl"
                lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
                path.write_text("\n".join(lines) + "\n")
                sections.append(SourceSection(path=str(path)))
            sides[side] = tuple(sections)
        return DataSection(**sides, **{"max_length": 400, **knobs})

    return make


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
        (talk("<image>Lost?", "Yes.", "lost.png"), "picture", "no picture"),
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


def test_a_picture_is_refused_by_a_model_without_eyes(section, encoder):
    report = check(section(GOOD), encoder, eyes=False)
    assert found(report) == [("no_eyes", "train", 0), ("no_eyes", "train", 1)]


def test_doubles_are_found_across_sources_and_ids_only_within(section, encoder):
    again = talk("<image>What is it?", "It is red.", "red.png", id="z")
    report = check(section(None, sources=[GOOD, [again, talk("New?", "Yes.", id="a")]]), encoder)
    assert found(report) == [("duplicate", "train", 0)]
    (finding,) = report.findings.first["duplicate"]
    assert finding.source == "train1.jsonl"
    assert finding.text.endswith("record 0 of " + report.sources[0].file)


def test_the_same_words_about_another_picture_are_no_double(section, encoder, folder):
    other = folder / "copy.png"
    other.write_bytes((folder / "red.png").read_bytes())
    same = talk("<image>What is it?", "It is red.", "copy.png")
    assert found(check(section([*GOOD, same]), encoder)) == [("duplicate", "train", 3)]
    Pictures.new("RGB", (8, 6), "green").save(other)
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
    report = check(section(GOOD, [talk("Open?", "Yes.")]), encoder)
    assert found(report) == [("no_answer", "evaluate", 0)]


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
    assert all(kept <= 200 for kept in counts.kept)
    assert counts.num_lost_tokens == sum(counts.lengths) - sum(counts.kept)
    assert counts.kept[4] == 0 < counts.lengths[4]


def test_old_turns_that_are_left_out_are_counted(section, encoder):
    turns = [
        {"from": speaker, "value": f"{speaker} says {number} " * 10}
        for number in range(8)
        for speaker in ("human", "gpt")
    ]
    data = section([{"conversations": turns}], overflow="drop_oldest_turns", max_length=300)
    (counts,) = check(data, encoder).sources
    assert counts.num_shortened == 1
    assert 0 < counts.kept[0] <= 300 < counts.lengths[0]


# The epoch


def open_samples(data, encoder):
    sources = [open_source(section) for section in data.train]
    parts = [Part(one.name, len(one), epochs=one.section.epochs) for one in sources]
    return Samples(sources, draw(parts, data.mixture, 0), encoder(data), cache_root() / "encoded")


def test_packing_is_the_one_of_the_training(section, encoder):
    records = [talk(f"Why {n}? " * (n % 7 + 1), "So.") for n in range(40)]
    data = section(records, row_length=512)
    usable = UsableSamples(open_samples(data, encoder))
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
        (LONG, {"max_length": 200, "overflow": "drop"}, "no record of data.train gives an example"),
        (["{", "{"], {"on_bad_record": "skip", "format": "llava"}, "no record of data.train"),
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


def test_nothing_to_train_on_is_not_usable(encoder):
    report = check(DataSection(), encoder)
    assert report.verdict.sentence == "not usable: data.train names no source; name one"


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
            self.section, self.name = SourceSection(path="many.jsonl"), "many"

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
    report = check(DataSection(train=(SourceSection(path="many.jsonl"),)), encoder)
    gc.collect()
    assert len(report.sources[0]) == 2000
    assert most <= 2
    assert not alive
    held = sum(
        getattr(report.sources[0], name).itemsize
        for name in ("lengths", "kept", "trained", "task_codes", "modalities")
    )
    assert held + 3 * 8 <= 50


def test_varied_wordings_do_not_hide_an_overlap(section, encoder):
    data = section([choice("Is it?"), choice("Was it?")], [choice("Was it?")])
    source = data.train[0].model_copy(update={"instructions": "varied"})
    report = check(data.model_copy(update={"train": (source,)}), encoder)
    assert [kind for kind, _, _ in found(report)] == ["overlap"]


# Rows


XSS = "<script>alert('x')</script> & \"quoted\" <img src=x onerror=y>"


@pytest.fixture
def shown(section, encoder):
    """The rows of good records and one that would like to be HTML."""

    def make(records=(*GOOD, talk(XSS, "No."), talk("So?", "Ünïcode ☃ 雪.")), lazy=False, **knobs):
        data = section(records, **{"row_length": 512, **knobs})
        return FirstRows(open_samples(data, encoder), data, lazy=lazy)

    return make


def test_colours_are_those_of_the_labels(shown, encoder):
    rows = shown()
    seen = 0
    for index in range(len(rows)):
        row = rows[index]
        samples = [[segment.member.encoded for segment in row.segments]]
        batch = Collator(0, 512, lambda images: {})(samples)
        tokens = [token for segment in row.segments for token in segment.tokens]
        kinds = np.array([token.kind for token in tokens for _ in token.ids])
        labels = batch["labels"][0].numpy()
        ids = batch["input_ids"][0].numpy()
        assert (kinds == "trained").tolist() == (labels[: len(kinds)] != -100).tolist()
        image_id = encoder().image_token_id
        assert (kinds == "image").tolist() == (ids[: len(kinds)] == image_id).tolist()
        assert [n for token in tokens for n in token.ids] == ids[: len(kinds)].tolist()
        assert [token.position for token in tokens] == [
            int(batch["position_ids"][0, token.place]) for token in tokens
        ]
        assert row.num_pad == 512 - len(kinds)
        seen += len(row.segments)
    assert seen == 5


def test_rows_are_the_training_s_with_their_records(section, shown, encoder):
    rows = shown()
    data = section([*GOOD, talk(XSS, "No."), talk("So?", "Ünïcode ☃ 雪.")], row_length=512)
    usable = UsableSamples(open_samples(data, encoder))
    trained = PackedDataset(usable, 512, 0, True, usable.lengths.tolist())
    for index in range(len(rows)):
        records = [segment.member.record for segment in rows[index].segments]
        assert records == [int(usable.numbers[n]) for n in trained.rows[index]]
        assert rows[index].segments[0].member.source == "train0.jsonl"


def test_lazy_rows_name_the_same_records(shown):
    rows = shown(lazy=True)
    by_record = {
        segment.member.record: segment
        for index in range(len(rows))
        for segment in rows[index].segments
    }
    assert sorted(by_record) == [0, 1, 2, 3, 4]
    assert "It is blue" in "".join(token.text for token in by_record[1].tokens)
    assert by_record[1].modality == 1


def test_an_image_is_one_token(shown):
    segments = [s for row in map(shown().__getitem__, range(1)) for s in row.segments]
    pictured = [s for s in segments if s.modality == 1]
    assert len(pictured) == 2
    for segment in pictured:
        (image,) = (token for token in segment.tokens if token.kind == "image")
        assert (image.text, len(image.ids)) == ("⟨image \u00d74⟩", PER_IMAGE)
        assert len(segment.images) == 1


def test_two_neighbouring_images_stay_two(shown):
    both = {
        "conversations": talk("<image><image>Same?", "No.")["conversations"],
        "images": ["red.png", "blue.png"],
    }
    (segment,) = shown([both])[0].segments
    assert [token.text for token in segment.tokens if token.kind == "image"] == [
        "⟨image \u00d74⟩",
        "⟨image \u00d74⟩",
    ]


def test_the_template_is_shown_as_it_is(shown):
    segment = next(s for s in shown()[0].segments if s.member.record == 4)
    text = "".join(token.text for token in segment.tokens)
    assert text.startswith(
        "<|im_start|>system\nYou are a default.<|im_end|>\n<|im_start|>user\nSo?"
    )
    assert "Ünïcode ☃ 雪.<|im_end|>" in text
    trained = "".join(token.text for token in segment.tokens if token.kind == "trained")
    assert trained == "Ünïcode ☃ 雪.<|im_end|>"


@pytest.mark.parametrize("kind", ["tokenizers", "spaced_tokenizers"])
def test_pieces_add_up_to_the_text(request, kind):
    tokenizer = request.getfixturevalue(kind)["plain"]
    text = "Which of these magnets attract, (A) or (B)?"
    ids = tokenizer(text, add_special_tokens=False).input_ids

    def decode(ids):
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    pieces = readable(ids, decode)
    assert "".join(piece for _, _, piece in pieces) == decode(ids)
    assert [n for first, last, _ in pieces for n in range(first, last)] == list(range(len(ids)))
    assert len(pieces) == len(ids)


def test_a_row_that_is_not_there_is_refused(shown):
    with pytest.raises(Exception, match="there is no row 7; the first epoch has 1, from 0 to 0"):
        shown()[7]


def test_random_rows_repeat_with_their_seed(shown):
    rows = shown([talk(f"Why {n}?", "So.") for n in range(12)], row_length=400, packing=False)
    assert len(rows) == 12
    assert rows.random(5).index == rows.random(5).index
    assert len({rows.random(seed).index for seed in range(20)}) > 3


# The page


class Reader(html.parser.HTMLParser):
    """Checks that every tag is closed and collects what is written."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.tags, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def test_the_page_is_well_formed_and_escapes_records(shown):
    reader = read(html_page(shown()[0], "<b>recipe & co"))
    assert "script" not in reader.tags
    assert "b>recipe" not in reader.tags
    assert "<b>recipe & co" in reader.texts
    assert XSS in "".join(reader.texts)
    assert reader.tags.count("section") == 6  # five segments and the padding
    assert reader.tags.count("img") == 2


def test_the_page_needs_nothing_beside_it(shown):
    page = html_page(shown()[0], "recipe")
    reader = read(page)
    assert all(link.startswith(("#segment-", "data:image/jpeg;base64,")) for link in reader.links)
    assert not re.search(r"https?://|@import|url\(", page)


def test_embedded_pictures_are_small(shown, folder):
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8)
    Pictures.fromarray(noise).save(folder / "red.png")
    page = html_page(shown()[0], "recipe")
    assert len(page) < 200_000
    assert "2000 by 1500" in page


def test_the_page_colours_what_trains(shown):
    row = shown([GOOD[2]])[0]
    trained = re.findall(r'class="t trained" title="[^"]*">([^<]*)<', html_page(row, "recipe"))
    assert "".join(trained).startswith("No, it is not.")
