"""Which rows of a source are held out: decided by image, so that no image is on both sides."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from varifocal.cache import cache_root
from varifocal.data.example import Example, Image
from varifocal.data.readers.base import Record, Records
from varifocal.errors import DataError, RunError
from varifocal.writing import atomic_file

if TYPE_CHECKING:
    from varifocal.recipe.data import HoldoutSideSection

_NAMES_OF_PATH = 2
_SAVED_FROM = 10_000
_RANGE = 2**64


def holdout_keys(example: Example) -> tuple[str, ...]:
    """Return what must not be on both sides: a row's images, or its question where it has none.

    An image file is known by its name and its folder's, so that a data set may be moved; an image
    inside a file of records by its content.
    """
    if example.images:
        return tuple(dict.fromkeys(map(_image_key, example.images)))
    asked = []
    for message in example.messages:
        if message.role == "assistant":
            break
        if message.role == "user":
            asked.append(message.text)
    return (f"text {hashlib.sha256(' '.join(asked).encode()).hexdigest()}",)


def _image_key(image: Image) -> str:
    if image.path is None:
        return f"content {image.fingerprint()}"
    names = os.path.normpath(image.path).split(os.sep)
    return "/".join(names[-_NAMES_OF_PATH:])


def is_held_out(key: str, share: float, seed: int) -> bool:
    """Decide a side by the SHA-256 of seed and key alone, whatever other rows there are.

    >>> [is_held_out(f"photos/{number}.png", 0.5, seed=0) for number in range(4)]
    [False, True, False, False]
    """
    digest = hashlib.sha256(f"{seed}\0{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * _RANGE


def find_held_out(
    keys: Iterable[Sequence[str] | None], share: float, seed: int
) -> npt.NDArray[np.bool_]:
    """Decide the side of each row; rows that share an image, also by way of others, have one side.

    Args:
        keys: of each row, see `holdout_keys`; None for a broken row, which is not held out.
        share: of the images to hold out.
        seed: other images for another seed.

    Returns:
        bool [N], True where the row is held out.

    >>> find_held_out([("a", "b"), ("b", "c"), ("d",), None], share=0.99, seed=0).tolist()
    [True, True, True, False]
    """
    parents: dict[str, str] = {}

    def root(key: str) -> str:
        while (parent := parents.setdefault(key, key)) != key:
            parents[key] = parents[parent]
            key = parent
        return key

    rows = [None if row is None else tuple(row) for row in keys]
    for row in rows:
        for key in () if row is None else row:
            first, second = sorted((root(key), root(row[0] if row else key)))
            parents[second] = first  # the least key names the group
    sides: dict[str, bool] = {}
    result = np.zeros(len(rows), bool)
    for number, row in enumerate(rows):
        if row:
            group = root(row[0])
            if group not in sides:
                sides[group] = is_held_out(group, share, seed)
            result[number] = sides[group]
    return result


def choose_side(
    asked: HoldoutSideSection,
    records: Records,
    parse: Callable[[Record], Example],
    identity: str,
    chosen: npt.NDArray[np.int64] | None,
) -> npt.NDArray[np.int64]:
    """Return the numbers of the records on one side; a broken one is among those to train on.

    The sides of many records are kept in the cache.

    Args:
        asked: side, share and seed.
        records: the raw rows.
        parse: record -> example.
        identity: what decides, next to the records, what is parsed.
        chosen: int64 [N], the numbers to divide; None for all.

    Raises:
        DataError: the side has none.
    """
    numbers = np.arange(len(records), dtype=np.int64) if chosen is None else chosen
    digest = hashlib.sha256(f"{records.fingerprint}\0{identity}\0{len(numbers)}".encode())
    note = cache_root() / "scans" / f"{digest.hexdigest()}.sides.npy"
    held_out = _stored(note, len(numbers))
    if held_out is None:
        keys = [_keys_of(records, number, parse) for number in numbers.tolist()]
        held_out = find_held_out(keys, asked.share, asked.seed)
        if len(keys) >= _SAVED_FROM and None not in keys:  # what is broken may be fixed
            with (
                contextlib.suppress(OSError, RunError),  # costs time, nothing else
                atomic_file(note) as staging,
                staging.open("wb") as stream,
            ):
                np.save(stream, held_out)
    left = numbers[held_out == (asked.side == "evaluate")]
    if not len(left):
        what, fix = ("held out", "raise") if asked.side == "evaluate" else ("trained on", "lower")
        raise DataError(
            f"'{records.place}': of {len(numbers):,} rows none is {what} with share "
            f"{asked.share:g} and seed {asked.seed} of data.holdout; {fix} the share, or take "
            "another seed"
        )
    return left


def _keys_of(
    records: Records, number: int, parse: Callable[[Record], Example]
) -> tuple[str, ...] | None:
    try:
        return holdout_keys(parse(records[number]))
    except DataError:
        return None


def _stored(note: Path, count: int) -> npt.NDArray[np.bool_] | None:
    with contextlib.suppress(OSError, ValueError, EOFError):
        if count >= _SAVED_FROM and len(held_out := np.load(note)) == count:
            return held_out
    return None
