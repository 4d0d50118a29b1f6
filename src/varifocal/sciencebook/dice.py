"""Random choices that belong to one question alone.

Knows nothing of images or of files: a question's dice depend on the seed, the skill, the split
and the question's number in it, so any question can be made again without making the others.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")

SPLITS = ("train", "val", "test")
HELD_OUT_SHARE = 0.15
"""The part of a word list that `val` keeps to itself, and the same again for `test`."""


class Dice:
    """The dice of one question.

    Example:
        >>> dice = Dice(seed=0, skill="magnets", split="train", index=7)
        >>> again = Dice(seed=0, skill="magnets", split="train", index=7)
        >>> dice.sample("abcdef", 3) == again.sample("abcdef", 3)
        True
    """

    def __init__(
        self, seed: int, skill: str, split: str, index: int, purpose: str = "text"
    ) -> None:
        """Load the dice.

        Args:
            seed: of the whole data set.
            skill: the skill's name.
            split: "train", "val" or "test".
            index: which of the skill's questions in that split this is, from 0.
            purpose: keeps two sets of dice of one question apart ("text", "image", "order").
        """
        self.split = split
        self._index = index
        self._series = f"{seed}/{skill}/{split}/{purpose}"
        self._draws = 0
        self._random = random.Random(f"{self._series}/{index}")

    def choice(self, items: Sequence[T]) -> T:
        """Pick one item; all are equally likely."""
        return self._random.choice(items)

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Pick `count` different items in random order."""
        return self._random.sample(items, count)

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """Return the items in random order."""
        return self._random.sample(items, len(items))

    def integer(self, low: int, high: int) -> int:
        """Pick a whole number from `low` to `high`, both included."""
        return self._random.randint(low, high)

    def uniform(self, low: float, high: float) -> float:
        """Pick a number between `low` and `high`."""
        return self._random.uniform(low, high)

    def chance(self, probability: float) -> bool:
        """Say yes with the given probability."""
        return self._random.random() < probability

    def own(self, items: tuple[T, ...]) -> T:
        """Pick an item that no other split ever gets, in turns: none twice before all came once.

        `items` is a constant list, hashable throughout; which split owns an item does not depend on
        the seed. A list of fewer than three items is shared by all splits.
        """
        share = _share(items, self.split)
        turn, place = divmod(self._index, len(share))
        self._draws += 1
        order = random.Random(f"{self._series}/{self._draws}/{turn}")
        return order.sample(share, len(share))[place]


@lru_cache(maxsize=512)
def _share(items: tuple[T, ...], split: str) -> tuple[T, ...]:
    """The items that belong to one split.

    >>> words = ("oak", "elm", "ash", "fir", "yew", "box", "bay", "fig", "gum", "nut")
    >>> sorted(word for split in SPLITS for word in _share(words, split)) == sorted(words)
    True
    """
    if len(items) < len(SPLITS):
        return items
    ordered = sorted(items, key=lambda item: (zlib.crc32(repr(item).encode()), repr(item)))
    held_out = max(1, round(HELD_OUT_SHARE * len(items)))
    parts = {
        "test": ordered[:held_out],
        "val": ordered[held_out : 2 * held_out],
        "train": ordered[2 * held_out :],
    }
    return tuple(parts[split])
