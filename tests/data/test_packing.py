import itertools
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from varifocal.data.encoding.encoder import Encoded
from varifocal.data.example import Image
from varifocal.data.rows import packing
from varifocal.data.rows.packing import Collator, PackedDataset, efficiency, pack
from varifocal.errors import DataError

quick = settings(max_examples=60, deadline=None)


def sample(number, length, num_images=0):
    """Make a sample whose every token says which sample it is and where in it it stands."""
    ids = (number + 1) * 1000 + np.arange(length, dtype=np.int32)
    mask = np.arange(length) < max(length // 2, 1)
    images = tuple(Image(data=f"{number}.{place}".encode()) for place in range(num_images))
    return Encoded(ids, mask, int(num_images > 0), images, example_id=str(number))


def samples_of(lengths):
    return [sample(number, length, number % 3) for number, length in enumerate(lengths)]


def scienceqa_like(count, seed=0):
    """Draw lengths as ScienceQA's questions have them: many short, a long tail."""
    random = np.random.default_rng(seed)
    return np.clip(random.lognormal(4.6, 0.5, count), 30, 512).astype(int).tolist()


@quick
@given(
    lengths=st.lists(st.integers(1, 40), max_size=80),
    row_length=st.integers(40, 90),
    seed=st.integers(0, 5),
    window=st.integers(1, 30),
)
def test_packing_loses_and_doubles_nothing(lengths, row_length, seed, window):
    rows = pack(lengths, row_length, seed, window)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= row_length for row in rows)


def test_rows_are_over_95_percent_full_on_lengths_like_scienceqas():
    lengths = scienceqa_like(6000)
    for row_length in (512, 1024):
        assert efficiency(pack(lengths, row_length), lengths, row_length) > 0.95


def drawn_lengths(kind):
    """Tokens of 10,000 or 20,000 samples, and of a row."""
    random = np.random.default_rng(0)
    texts = random.lognormal(5.2, 1.0, 10_000)
    images = 576 + random.lognormal(4.6, 0.8, 10_000)
    drawn, row_length = {
        "short questions": (random.lognormal(4.4, 0.45, 20_000), 512),
        "any length up to a row": (random.integers(1, 513, 20_000), 512),
        "images of 576 tokens among texts": (np.concatenate([images, texts]), 2048),
        "images of 576 tokens alone": (images, 2048),
        "few long ones": ((random.pareto(1.3, 20_000) + 1) * 40, 2048),
    }[kind]
    return np.clip(drawn, 8, row_length).astype(int).tolist(), row_length


@pytest.mark.parametrize(
    ("kind", "full"),
    [
        ("short questions", 0.98),
        ("any length up to a row", 0.98),
        ("images of 576 tokens among texts", 0.98),
        ("few long ones", 0.98),
        ("images of 576 tokens alone", 0.97),  # three a row at most; 0.91 by best fit
    ],
)
def test_rows_are_full(kind, full):
    lengths, row_length = drawn_lengths(kind)
    assert efficiency(pack(lengths, row_length), lengths, row_length) > full


def test_a_long_sample_meets_two_short_ones_and_not_one_of_its_kind():
    rows = pack([800, 800, 624, 624, 624, 624], 2048)
    assert sorted(sorted(row) for row in rows) in ([[0, a, b], [1, c, d]] for a, b, c, d in PAIRS)


PAIRS = ((2, 3, 4, 5), (2, 4, 3, 5), (2, 5, 3, 4), (4, 5, 2, 3), (3, 5, 2, 4), (3, 4, 2, 5))


@quick
@given(
    lengths=st.lists(st.integers(11, 60), min_size=1, max_size=60), row_length=st.integers(60, 130)
)
def test_rows_are_never_more_than_the_best_fit_needs(lengths, row_length):
    needed = packing._best_fit(list(range(len(lengths))), lengths, row_length)
    filled = packing._fill_rows(list(range(len(lengths))), lengths, row_length)
    assert sorted(itertools.chain(*filled)) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= row_length for row in filled)
    assert len(pack(lengths, row_length)) <= len(needed)


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12).map(sorted), room=st.integers(1, 50)
)
def test_the_fullest_are_those_of_all_singles_and_pairs(sizes, room):
    if sizes[0] > room:
        return
    taken = packing._fullest(np.array(sizes), room)
    sums = [*sizes, *(a + b for a, b in itertools.combinations(sizes, 2))]
    assert len(set(taken)) == len(taken)
    assert sum(sizes[place] for place in taken) == max(each for each in sums if each <= room)


def test_the_same_seed_gives_the_same_rows_and_another_others():
    lengths = scienceqa_like(300)
    assert pack(lengths, 512, seed=3) == pack(lengths, 512, seed=3)
    assert pack(lengths, 512, seed=3) != pack(lengths, 512, seed=4)
    assert pack(lengths, 512, seed=(3, 0)) != pack(lengths, 512, seed=(3, 1))


def test_long_samples_do_not_come_first():
    lengths = scienceqa_like(2000)
    first = [lengths[index] for row in pack(lengths, 512)[:50] for index in row]
    assert abs(np.mean(first) / np.mean(lengths) - 1) < 0.25


@pytest.mark.parametrize("lengths", [[5, 0], [5, 11]])
def test_a_sample_that_fits_no_row_is_refused(lengths):
    with pytest.raises(ValueError, match="lengths must be 1 to row_length 10"):
        pack(lengths, 10)


def seen(dataset):
    return [encoded.example_id for row in dataset for encoded in row]


@quick
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=40),
    seed=st.integers(0, 3),
    packing=st.booleans(),
)
def test_every_epoch_has_every_sample_once_and_as_many_rows(lengths, seed, packing):
    dataset = PackedDataset(samples_of(lengths), 40, seed, packing)
    for epoch in (1, 2, 7, 0):
        dataset.set_epoch(epoch)
        rows = [dataset[index] for index in range(len(dataset))]
        assert sorted(e.example_id for row in rows for e in row) == sorted(
            str(number) for number in range(len(lengths))
        )
        assert all(0 < sum(map(len, row)) <= 40 for row in rows)
        assert packing or all(len(row) == 1 for row in rows)


def test_epochs_differ_and_come_back_the_same():
    dataset = PackedDataset(samples_of(scienceqa_like(200)), 512, seed=1)
    orders = []
    for epoch in (0, 1, 2):
        dataset.set_epoch(epoch)
        orders.append(seen(dataset[index] for index in range(len(dataset))))
    assert orders[0] != orders[1] != orders[2]
    again = PackedDataset(samples_of(scienceqa_like(200)), 512, seed=1)
    again.set_epoch(2)
    copied = pickle.loads(pickle.dumps(again))
    assert seen(copied[index] for index in range(len(copied))) == orders[2]


def test_an_epoch_that_takes_more_rows_falls_back_on_the_first(monkeypatch):
    import varifocal.data.rows.packing as packing

    real = packing.pack

    def wasteful(lengths, row_length, seed, window):
        return real(lengths, row_length, seed, window if seed[1] == 0 else 1)

    monkeypatch.setattr(packing, "pack", wasteful)
    dataset = PackedDataset(samples_of([3, 4, 5, 6, 7, 8]), 12)
    first = list(dataset.rows)
    dataset.set_epoch(1)
    assert sorted(dataset.rows) == sorted(first)


def test_transformers_trainer_repacks_between_epochs(tmp_path):
    """Trainer's own loop: each epoch sees all samples once, in another order."""
    from torch import nn
    from transformers import Trainer, TrainingArguments

    batches = []

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, input_ids, labels, **marks):
            batches.append(sorted(set((input_ids[input_ids > 0] // 1000).tolist())))
            return {"loss": self.weight * input_ids.float().mean()}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=2,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    dataset = PackedDataset([sample(n, length) for n, length in enumerate([5, 6, 7, 8, 9, 10])], 16)
    Trainer(Model(), arguments, train_dataset=dataset, data_collator=Collator(0, 16)).train()
    steps = len(batches) // 3
    epochs = [batches[start : start + steps] for start in range(0, len(batches), steps)]
    assert len(epochs) == 3
    for epoch in epochs:
        assert sorted(number for batch in epoch for number in batch) == [1, 2, 3, 4, 5, 6]
    assert epochs[0] != epochs[1] or epochs[1] != epochs[2]


def test_nothing_to_train_on_and_too_long_are_sentences():
    with pytest.raises(DataError, match="no example to train on"):
        PackedDataset([], 40)
    with pytest.raises(DataError, match="record '1' takes 50 tokens, a row holds 40; raise"):
        PackedDataset(samples_of([5, 50]), 40)


def load_names(images):
    names = [float(image.data.decode()) for image in images]
    return {"pixel_values": torch.tensor(names)[:, None, None, None]}


@quick
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=25), static=st.booleans())
def test_rows_mix_nothing(lengths, static):
    """Every token of a batch is where its segment, position, modality and labels say."""
    dataset = PackedDataset(samples_of(lengths), 32)
    rows = [dataset[index] for index in range(len(dataset))]
    batch = Collator(7, 32 if static else None, load_names)(rows)
    width = 32 if static else max(sum(map(len, row)) for row in rows)
    found_images = []
    for number, row in enumerate(rows):
        marks = {name: batch[name][number] for name in batch if name != "pixel_values"}
        assert all(mark.shape == (width,) for mark in marks.values())
        for segment, expected in enumerate(row):
            inside = marks["segment_ids"] == segment
            assert marks["input_ids"][inside].tolist() == expected.input_ids.tolist()
            assert marks["labels"][inside].tolist() == expected.labels.tolist()
            assert marks["position_ids"][inside].tolist() == list(range(len(expected)))
            assert set(marks["modality_ids"][inside].tolist()) == {expected.modality}
            assert marks["prompt_mask"][inside].tolist() == expected.prompt_mask.tolist()
            assert marks["labels"][inside][0] == -100
            found_images += [float(image.data.decode()) for image in expected.images]
        padding = marks["segment_ids"] == len(row)
        assert padding.sum() == width - sum(map(len, row))
        assert (marks["segment_ids"].diff() >= 0).all()
        assert (marks["input_ids"][padding] == 7).all()
        assert (marks["labels"][padding] == -100).all()
        assert marks["position_ids"][padding].tolist() == list(range(int(padding.sum())))
        assert not marks["prompt_mask"][padding].any()
        assert not marks["modality_ids"][padding].any()
    images = batch["pixel_values"].flatten().tolist() if found_images else []
    assert images == pytest.approx(found_images)
    assert ("pixel_values" in batch) == bool(found_images)


def test_images_are_loaded_once_a_batch_and_only_if_there_are_any():
    calls = []

    def load(images):
        calls.append(len(images))
        return load_names(images)

    collator = Collator(0, 20, load)
    collator([[sample(0, 5), sample(1, 5)], [sample(2, 5)]])
    assert calls == []
    collator([[sample(0, 5, 2), sample(1, 5)], [sample(2, 5, 1)]])
    assert calls == [3]
    with pytest.raises(ValueError, match="no load_images"):
        Collator(0, 20)([[sample(0, 5, 1)]])


def test_a_row_over_the_static_length_is_refused():
    with pytest.raises(ValueError, match="a row has 12 tokens, row_length is 10"):
        Collator(0, 10)([[sample(0, 6), sample(1, 6)]])


def test_a_sample_alone_is_a_row():
    alone, row = Collator(0)([sample(0, 5)]), Collator(0)([[sample(0, 5)]])
    assert all(torch.equal(alone[name], row[name]) for name in row)
