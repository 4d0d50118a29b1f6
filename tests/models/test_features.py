"""The table of features: what is known is never computed again, and a torn table heals."""

import errno
import hashlib

import pytest
import torch

from varifocal.errors import RunError
from varifocal.models.features import DIGEST_BYTES, FeatureStore

SHAPE = (3, 5)


class Image:
    def __init__(self, number):
        self.number = number

    def fingerprint(self):
        return hashlib.sha256(bytes([self.number])).hexdigest()


class Tower:
    """Features that depend on the image's number alone, and a count of the images seen."""

    def __init__(self, dtype=torch.float32):
        self.dtype, self.seen = dtype, []

    def __call__(self, images):
        assert not torch.is_grad_enabled()
        self.seen += [image.number for image in images]
        return torch.stack([features(image.number, self.dtype) for image in images])


def features(number, dtype=torch.float32):
    generator = torch.Generator().manual_seed(number)
    return torch.randn(SHAPE, generator=generator).to(dtype)


def expected(*numbers, dtype=torch.float32):
    return torch.stack([features(number, dtype) for number in numbers])


def images(*numbers):
    return [Image(number) for number in numbers]


@pytest.fixture
def open_store(tmp_path):
    def open_store(tower, **options):
        return FeatureStore(tower, SHAPE, tower.dtype, tmp_path / "table", **options)

    return open_store


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_image_is_computed_once_and_comes_back_bit_for_bit(open_store, dtype):
    tower = Tower(dtype)
    store = open_store(tower)
    found = store(images(3, 1, 3))
    assert found.dtype == dtype
    assert torch.equal(found, expected(3, 1, 3, dtype=dtype))
    assert torch.equal(store(images(1, 2)), expected(1, 2, dtype=dtype))
    assert (tower.seen, len(store)) == ([3, 1, 2], 3)

    later = Tower(dtype)
    again = open_store(later)
    assert torch.equal(again(images(2, 3, 1)), expected(2, 3, 1, dtype=dtype))
    assert later.seen == []


def test_what_is_returned_is_a_copy(open_store):
    store = open_store(Tower())
    store(images(1)).zero_()
    assert torch.equal(store(images(1)), expected(1))


def test_filling_goes_in_batches_and_tells_of_what_was_missing(open_store):
    tower, told = Tower(), []
    store = open_store(tower, batch_size=2)
    store(images(1))
    keys = store.fill(images(1, 2, 3, 3, 4), lambda *at: told.append(at))
    assert tower.seen == [1, 2, 3, 4]
    assert told == [(2, 3), (3, 3)]
    assert torch.equal(store.lookup(keys), expected(1, 2, 3, 3, 4))


def test_two_stores_share_a_directory(open_store):
    one, two = Tower(), Tower()
    first, second = open_store(one), open_store(two)
    first(images(1, 2))
    assert torch.equal(second(images(2, 3)), expected(2, 3))
    assert two.seen == [3]
    assert torch.equal(first(images(3, 1)), expected(3, 1))
    assert one.seen == [1, 2]


class Meanwhile(Tower):
    """A tower that is slow enough for another process to compute the same images."""

    def __init__(self, other):
        super().__init__()
        self.other = other

    def __call__(self, images):
        self.other(images)
        return super().__call__(images)


def test_two_stores_that_compute_the_same_image_at_the_same_time(open_store):
    slow = Meanwhile(open_store(Tower()))
    assert torch.equal(open_store(slow)(images(1, 2)), expected(1, 2))
    later = Tower()
    assert torch.equal(open_store(later)(images(2, 1)), expected(2, 1))
    assert later.seen == []


def test_what_another_one_has_computed_meanwhile_is_left_to_it(open_store, tmp_path):
    """It has gone through the first three of four batches: the last one alone is left."""
    fast = open_store(Tower())
    slow, told = Meanwhile(lambda _: fast(images(1, 2, 3, 4, 5, 6))), []
    store = open_store(slow, batch_size=2)
    keys = store.fill(images(1, 2, 3, 4, 5, 6, 7, 8), lambda *at: told.append(at))
    assert torch.equal(store.lookup(keys), expected(1, 2, 3, 4, 5, 6, 7, 8))
    assert told[-1] == (8, 8)
    assert slow.seen == [1, 2, 7, 8]
    assert len((tmp_path / "table" / "keys.bin").read_bytes()) == 8 * DIGEST_BYTES


def test_one_that_comes_second_goes_on_in_the_middle(open_store):
    """Side by side with another one, which is always a little ahead."""
    slow = Meanwhile(open_store(Tower()))
    open_store(slow, batch_size=1)(images(1, 2, 3, 4, 5, 6))
    assert slow.seen == [1, 4, 2, 5, 3, 6]


@pytest.mark.parametrize("file", ["features.bin", "keys.bin"])
@pytest.mark.parametrize("lost", [1, 7, 32])
def test_a_file_that_was_cut_short_is_computed_again_from_there(open_store, tmp_path, file, lost):
    open_store(Tower())(images(1, 2, 3))
    path = tmp_path / "table" / file
    path.write_bytes(path.read_bytes()[:-lost])

    tower = Tower()
    store = open_store(tower)
    assert len(store) == 2
    assert torch.equal(store(images(1, 2, 3, 4)), expected(1, 2, 3, 4))
    assert tower.seen == [3, 4]
    assert len((tmp_path / "table" / "keys.bin").read_bytes()) == 4 * DIGEST_BYTES
    later = Tower()
    assert torch.equal(open_store(later)(images(4, 3, 2, 1)), expected(4, 3, 2, 1))
    assert later.seen == []


@pytest.mark.parametrize("file", ["features.bin", "keys.bin"])
def test_a_lost_file_is_an_empty_table(open_store, tmp_path, file):
    open_store(Tower())(images(1))
    (tmp_path / "table" / file).unlink()
    tower = Tower()
    assert torch.equal(open_store(tower)(images(2, 1)), expected(2, 1))
    assert tower.seen == [2, 1]


def test_a_tower_of_another_shape_is_refused(open_store):
    store = FeatureStore(
        Tower(), (4, 5), torch.float32, open_store(Tower())._keys_path.parent / "other"
    )
    with pytest.raises(ValueError, match=r"features have shape \(1, 3, 5\)"):
        store(images(1))


def test_a_full_disk_is_a_sentence_and_what_was_known_stays(open_store, monkeypatch):
    store = open_store(Tower())
    store(images(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("varifocal.models.features.fcntl.flock", full)
        with pytest.raises(RunError, match=r"^the disk is full: .*features\.bin was not written"):
            store(images(2))
    assert torch.equal(open_store(Tower())(images(1)), expected(1))
