"""Samples, encoded when they are needed and once; rows packed while they are trained."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.samples import Samples, Tally, UsableSamples
from varifocal.data.example import Example, Image, Message
from varifocal.data.rows.lazy import LazyRows, estimate_rows, shuffled_passes, streamed_passes
from varifocal.data.rows.packing import PackedDataset
from varifocal.errors import DataError


@dataclasses.dataclass
class Source:
    """Examples made of words; it counts how often one is read."""

    examples: list
    fingerprint: str = "a source"
    reads: int = 0

    def __len__(self):
        return len(self.examples)

    def example(self, number):
        self.reads += 1
        found = self.examples[number]
        if isinstance(found, DataError):
            raise found
        return found


def talk(words, *images, id="x"):
    messages = (Message("user", (*images, words)), Message("assistant", ("yes",)))
    return Example(messages, id=id)


@pytest.fixture
def encoder(tokenizers):
    return Encoder(
        tokenizers["smollm2"],
        "<|image|>",
        tokenizers["smollm2"].convert_tokens_to_ids("<|image|>"),
        tokens_per_image=3,
        max_length=200,
        overflow="drop",
    )


@pytest.fixture
def image(tmp_path):
    PIL.Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    return Image(tmp_path / "a.png")


def drawn(*records, part=0):
    parts = np.full(len(records), part, np.int32)
    return SimpleNamespace(parts=parts, records=np.array(records, np.int64), report=[])


def make(source, encoder, directory, records=None, **options):
    records = range(len(source)) if records is None else records
    return Samples([source], drawn(*records), encoder, directory, **options)


def same(one, other):
    return (
        np.array_equal(one.input_ids, other.input_ids)
        and np.array_equal(one.prompt_mask, other.prompt_mask)
        and (one.modality, one.images, one.was_cut) == (other.modality, other.images, other.was_cut)
    )


def test_a_sample_is_what_the_encoder_makes_of_its_record(encoder, image, tmp_path):
    source = Source([talk("How are you?"), talk("What is it?", image), talk("a b", image)])
    fresh = list(make(source, encoder, tmp_path / "t"))
    kept = list(make(source, encoder, tmp_path / "t"))
    for example, one, again in zip(source.examples, fresh, kept, strict=True):
        assert same(one, encoder.encode(example))
        assert same(again, one)


def test_what_is_encoded_once_is_not_encoded_again(encoder, tmp_path):
    source = Source([talk(f"Number {n}") for n in range(5)])
    UsableSamples(make(source, encoder, tmp_path))
    assert source.reads == 5
    UsableSamples(make(source, encoder, tmp_path))
    assert source.reads == 5


def test_another_source_or_another_encoder_has_its_own_table(encoder, tokenizers, tmp_path):
    source = Source([talk("Number 1")])
    list(make(source, encoder, tmp_path))
    list(make(dataclasses.replace(source, fingerprint="other"), encoder, tmp_path))
    list(make(source, Encoder(tokenizers["vicuna"]), tmp_path))
    assert len(list(tmp_path.iterdir())) == 3


def test_the_same_for_any_number_of_workers(encoder, image, tmp_path):
    source = Source([talk(f"Number {n}", *([image] * (n % 2))) for n in range(70)])
    alone = UsableSamples(make(source, encoder, tmp_path / "a"))
    shared = UsableSamples(make(source, encoder, tmp_path / "b", num_workers=2))
    assert all(same(*pair) for pair in zip(alone, shared, strict=True))
    assert source.reads > 70  # the second time in workers, whose count stays there: images only


def test_a_broken_record_stops_or_is_counted_once(encoder, tmp_path):
    source = Source([talk("fine"), DataError("a.json: row 1: broken"), talk("fine, too")])
    with pytest.raises(DataError, match="row 1"):
        UsableSamples(make(source, encoder, tmp_path))
    samples = make(source, encoder, tmp_path, records=[0, 1, 2, 1], on_bad_record="skip")
    usable = UsableSamples(samples)
    assert usable.numbers.tolist() == [0, 2]
    assert samples.tally == Tally(skipped=["a.json: row 1: broken"])


def test_a_damaged_image_is_a_broken_record(encoder, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    source = Source([talk("What?", Image(tmp_path / "bad.png"), id="7")])
    with pytest.raises(DataError, match=r"record '7': image .*bad.png' is damaged"):
        UsableSamples(make(source, encoder, tmp_path / "t"))


def test_a_mended_record_is_tried_again(encoder, tmp_path):
    source = Source([talk("fine"), DataError("broken")])
    assert len(UsableSamples(make(source, encoder, tmp_path, on_bad_record="skip"))) == 1
    source.examples[1] = talk("mended")
    assert len(UsableSamples(make(source, encoder, tmp_path, on_bad_record="skip"))) == 2


def test_too_long_is_dropped_or_stops(encoder, tmp_path):
    source = Source([talk("fine"), talk("too long " * 200)])
    samples = make(source, encoder, tmp_path)
    assert len(UsableSamples(samples)) == 1
    assert len(samples.tally.dropped) == 1
    strict = Encoder(encoder.tokenizer, max_length=200)
    with pytest.raises(DataError, match="tokens"):
        UsableSamples(make(source, strict, tmp_path))


def test_a_killed_writer_leaves_a_table_that_works(encoder, tmp_path):
    source = Source([talk(f"Number {n}") for n in range(3)])
    list(make(source, encoder, tmp_path))
    (table,) = tmp_path.iterdir()
    with (table / "entries.bin").open("ab") as file:
        file.write(b"half an entry")
    source.examples.append(talk("one more"))
    assert same(make(source, encoder, tmp_path)[3], encoder.encode(source.examples[3]))
    assert same(make(source, encoder, tmp_path)[3], encoder.encode(source.examples[3]))


def rows_of(rows, count):
    return [[one.input_ids.tolist() for one in rows[number]] for number in range(count)]


def lazily(source, encoder, directory, seed=0, **options):
    samples = make(source, encoder, directory, **options)
    num_rows = estimate_rows(samples, 200, seed)
    return LazyRows(shuffled_passes(samples, seed), 200, seed, num_rows)


@pytest.fixture
def numbers():
    return Source([talk(f"Number {n} " + "and so on " * (n % 7)) for n in range(60)])


def test_a_lazy_pass_holds_each_sample_once(numbers, encoder, tmp_path):
    rows = lazily(numbers, encoder, tmp_path)
    found = sorted(tuple(ids) for row in rows_of(rows, len(rows)) for ids in row)
    assert found == sorted(tuple(encoder.encode(one).input_ids) for one in numbers.examples)


def test_lazy_rows_do_not_depend_on_what_is_encoded_already_or_on_workers(
    numbers, encoder, tmp_path
):
    first = rows_of(lazily(numbers, encoder, tmp_path), 20)
    assert rows_of(lazily(numbers, encoder, tmp_path), 20) == first
    assert rows_of(lazily(numbers, encoder, tmp_path / "b", num_workers=2), 20) == first
    assert rows_of(lazily(numbers, encoder, tmp_path, seed=1), 20) != first


def test_lazy_rows_go_on_where_they_stopped(numbers, encoder, tmp_path):
    rows = lazily(numbers, encoder, tmp_path)
    whole = rows_of(rows, 30)
    assert rows[29] == rows[29]
    again = lazily(numbers, encoder, tmp_path)
    assert [one.input_ids.tolist() for one in again[17]] == whole[17]
    assert [one.input_ids.tolist() for one in again[3]] == whole[3]  # back to the start


def test_epochs_of_lazy_rows_follow_each_other(numbers, encoder, tmp_path):
    rows = lazily(numbers, encoder, tmp_path)
    stream = rows_of(rows, 2 * len(rows))
    rows.set_epoch(1)
    assert rows_of(rows, len(rows)) == stream[len(rows) :]


def test_lazy_rows_pack_well(encoder, tmp_path):
    """Lengths like ScienceQA's: most rows hold three to five questions."""
    random = np.random.default_rng(0)
    words = random.gamma(4, 6, 400).astype(int).clip(1, 60)
    source = Source([talk("word " * count) for count in words])
    rows = lazily(source, encoder, tmp_path)
    rows[0]
    eager = PackedDataset(UsableSamples(make(source, encoder, tmp_path)), 200)
    assert rows.efficiency == pytest.approx(eager.efficiency, abs=0.02)


def test_nothing_usable_is_said(encoder, tmp_path):
    source = Source([DataError("broken")])
    with pytest.raises(DataError, match="no example to train on"):
        lazily(source, encoder, tmp_path, on_bad_record="skip")


def test_a_stream_is_read_from_front_to_back_and_again(encoder):
    records = [talk("one"), DataError("a.json: row 1: broken"), talk("two")]
    tally = Tally()
    passes = streamed_passes([records], [1.0], encoder, tally, "skip")
    window = next(passes(0))
    texts = [encoder.encode(one).input_ids.tolist() for one in (records[0], records[2])]
    assert [one.input_ids.tolist() for one in window[:4]] == texts * 2
    assert tally.skipped == ["a.json: row 1: broken"]


def test_a_stream_stops_at_a_broken_record(encoder):
    passes = streamed_passes([[DataError("row 0: broken")]], [1.0], encoder, Tally())
    with pytest.raises(DataError, match="row 0"):
        next(passes(0))


def test_streams_are_mixed_by_weight(encoder):
    sources = [[talk("one")], [talk("two")]]
    passes = streamed_passes(sources, [3.0, 1.0], encoder, Tally(), seed=0)
    windows = passes(0)
    window = [*next(windows), *next(windows)]
    one = encoder.encode(sources[0][0]).input_ids.tolist()
    share = np.mean([sample.input_ids.tolist() == one for sample in window])
    assert share == pytest.approx(0.75, abs=0.04)
