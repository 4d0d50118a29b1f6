"""Showing data: rows as they are trained, in the right colours, on a page that is safe to open."""

import html.parser
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Images

from varifocal import pages
from varifocal.data.encoding.samples import UsableSamples
from varifocal.data.formats.questions import CAPTION_PROMPT
from varifocal.data.inspect.html import html_page
from varifocal.data.inspect.rows import FirstRows, readable
from varifocal.data.rows.packing import Collator, PackedDataset
from varifocal.errors import DataError

PER_IMAGE = 4


def talk(question, answer, image=None, **more):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **({"image": image} if image else {}), **more}


GOOD = [
    talk("<image>What is it?", "It is red.", "red.png", id="a"),
    talk("<image>What is it?", "It is blue.", "blue.png", id="b"),
    talk("Is a pole a magnet?", "No, it is not.", id="c"),
]


XSS = "<script>alert('x')</script> & \"quoted\" <img src=x onerror=y>"
ODD = [talk(XSS, "No."), talk("So?", "Ünïcode ☃ 雪.")]


@pytest.fixture
def shown(section, open_samples):
    """The rows of good records and one that would like to be HTML."""

    def make(records=(*GOOD, *ODD), lazy=False, **knobs):
        data = section(records, **{"row_length": 512, **knobs})
        return FirstRows(open_samples(data), data, lazy=lazy)

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


def test_rows_are_the_training_s_with_their_records(section, shown, open_samples):
    rows = shown()
    data = section([*GOOD, *ODD], row_length=512)
    usable = UsableSamples(open_samples(data))
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
    with pytest.raises(DataError, match="there is no row 7; the first epoch has 1, from 0 to 0"):
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


def test_markup_in_any_word_of_a_record_stays_text(shown):
    row = shown([GOOD[2]])[0]
    segment = row.segments[0]
    member = replace(
        segment.member,
        source=f"source {XSS}",
        task=f"task {XSS}",
        encoded=replace(segment.member.encoded, example_id=f"id {XSS}"),
    )
    tokens = (replace(segment.tokens[0], text=f"token {XSS}"), *segment.tokens[1:])
    row = replace(row, segments=(replace(segment, member=member, tokens=tokens),))
    reader = read(html_page(row, f"title {XSS}"))
    assert not {"script", "img"} & set(reader.tags)
    texts = "".join(reader.texts)
    for word in ("source", "task", "id", "token", "title"):
        assert f"{word} {XSS}" in texts


def test_the_page_needs_nothing_beside_it(shown):
    page = html_page(shown()[0], "recipe")
    reader = read(page)
    assert all(link.startswith(("#segment-", "data:image/jpeg;base64,")) for link in reader.links)
    assert not re.search(r"https?://|@import|url\(", page)


def test_embedded_images_are_small(shown, folder):
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), np.uint8)
    Images.fromarray(noise).save(folder / "red.png")
    page = html_page(shown()[0], "recipe")
    assert len(page) < 200_000
    assert "2000 by 1500" in page


def test_the_page_colours_what_trains(shown):
    row = shown([GOOD[2]])[0]
    trained = re.findall(r'class="t trained" title="[^"]*">([^<]*)<', html_page(row, "recipe"))
    assert "".join(trained).startswith("No, it is not.")


def test_every_class_that_the_style_names_is_on_the_page():
    templates = Path(pages.__file__).with_name("templates")
    styled = set(re.findall(r"(?m)^\.([a-z]+)", (templates / "row.css").read_text()))
    used = " ".join(re.findall(r'class="([^"]+)"', (templates / "row.html").read_text())).split()
    assert "images" in styled
    assert styled <= set(used)


def test_captions_are_asked_for_in_the_words_that_runs_were_trained_on():
    assert CAPTION_PROMPT == "Describe the picture."
