"""Rows that are packed while they are trained, for more samples than one wants to wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import numpy as np
from torch.utils.data import Dataset

from varifocal.data.encode import Encoded
from varifocal.data.packing import WINDOW, pack
from varifocal.data.samples import Samples
from varifocal.errors import DataError

FIRST_WINDOW = 1024
"""Samples of the first window: encoded before the first step, and what an epoch is measured by."""

Pass = Callable[[int], Iterator[list[Encoded]]]
"""The number of a pass -> its usable samples, a window at a time."""


class LazyRows(Dataset[list[Encoded]]):
    """Rows of an endless stream of samples, packed a window at a time.

    The stream goes through the samples again and again, each pass in an order of its own. How many
    rows a pass makes is known only behind it, so an epoch is a number of rows that is decided
    before: `transformers.Trainer` counts its steps by it. An epoch is then nearly, and not exactly,
    a pass; what was read is reported. The rows depend on the seed alone: not on what is encoded
    already, nor on the number of workers. Rows are asked for in ascending order, with gaps (other
    processes' rows, a resumption); going back starts the stream again.

    Args:
        passes: the samples of each pass.
        row_length: most tokens of a row.
        seed: decides the rows.
        num_rows: rows of an epoch.
        packing: False gives each sample a row of its own.
    """

    def __init__(
        self, passes: Pass, row_length: int, seed: int, num_rows: int, packing: bool = True
    ) -> None:
        self.passes, self.row_length, self.seed = passes, row_length, seed
        self.num_rows, self.packing = num_rows, packing
        self.epoch = 0
        self._restart()

    def set_epoch(self, epoch: int) -> None:
        """Give out the rows of another epoch from now on; 0 is the first."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Count the rows of an epoch."""
        return self.num_rows

    def __getitem__(self, index: int) -> list[Encoded]:
        """Return one row's samples."""
        number = self.epoch * self.num_rows + index
        if number < self._start:
            self._restart()
        while number >= self._start + len(self._window):
            self._start += len(self._window)
            self._window = next(self._windows)
        return self._window[number - self._start]

    def names(self, index: int) -> list[str]:
        """The ids of one row's records, as far as they are known; of the window in hand alone."""
        place = self.epoch * self.num_rows + index - self._start
        row = self._window[place] if 0 <= place < len(self._window) else []
        return [sample.example_id or "a record without pictures" for sample in row]

    @property
    def efficiency(self) -> float:
        """Share of the tokens that are no padding, of the rows packed so far, 0 to 1."""
        return self._used / max(self._packed * self.row_length, 1)

    def _restart(self) -> None:
        self._start, self._window = 0, []
        self._used, self._packed = 0, 0
        self._windows = self._pack_windows()

    def _pack_windows(self) -> Iterator[list[list[Encoded]]]:
        for number in count():
            empty = True
            for place, window in enumerate(self.passes(number)):
                if window:
                    empty = False
                    yield self._pack(window, (self.seed, number, place))
            if empty:
                raise DataError("there is no example to train on: all were skipped or dropped")

    def _pack(self, window: list[Encoded], seed: tuple[int, ...]) -> list[list[Encoded]]:
        lengths = [len(sample) for sample in window]
        rows = pack(lengths, self.row_length, seed, len(window) if self.packing else 1)
        self._used += sum(lengths)
        self._packed += len(rows)
        return [[window[number] for number in row] for row in rows]


def shuffled_passes(samples: Samples, seed: int) -> Pass:
    """Go through samples in another order each pass, encoding a window when it is asked for."""

    def one_pass(number: int) -> Iterator[list[Encoded]]:
        order = _order(len(samples), seed, number)
        starts = [0, *range(FIRST_WINDOW, len(order), WINDOW)]
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            yield [one for _, one in samples.usable(order[start:end].tolist())]

    return one_pass


def estimate_rows(samples: Samples, row_length: int, seed: int, packing: bool = True) -> int:
    """Estimate the rows of a pass by its first window, which is encoded for it.

    Raises:
        DataError: nothing in the first window can be trained on.
    """
    head = _order(len(samples), seed, 0)[:FIRST_WINDOW]
    lengths = [len(one) for _, one in samples.usable(head.tolist())]
    if not lengths:
        raise DataError("there is no example to train on: all were skipped or dropped")
    rows = pack(lengths, row_length, (seed, 0, 0), len(lengths) if packing else 1)
    return max(round(len(samples) * len(rows) / len(head)), 1)


def _order(num_samples: int, seed: int, number: int) -> np.ndarray:
    return np.random.default_rng((seed, number)).permutation(num_samples)
