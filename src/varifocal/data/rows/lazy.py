"""Rows that are packed while they are trained, for more samples than one wants to wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice

import numpy as np
from torch.utils.data import Dataset

from varifocal.data.encoding.encoder import Encoded, Encoder, TooLongError
from varifocal.data.encoding.samples import (
    NO_EXAMPLE,
    TEXT_LEFT_OUT,
    LeftOut,
    Samples,
    Tally,
    check_sample_images,
    refuse_or_pass,
)
from varifocal.data.example import Example
from varifocal.data.json_files import OnBadRecord
from varifocal.data.rows.packing import WINDOW, PackedDataset, pack
from varifocal.errors import DataError

FIRST_WINDOW = 1024
"""Samples of the first window: encoded before the first step, and what an epoch is measured by."""

Pass = Callable[[int], Iterator[list[Encoded]]]
"""The number of a pass -> its usable samples, a window at a time."""


class LazyRows(Dataset[list[Encoded]]):
    """Rows of an endless stream of samples, packed a window at a time.

    The stream goes through the samples again and again, each pass in an order of its own. How many
    rows a pass makes is known only after it, so an epoch is a number of rows that is decided
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
        return [sample.example_id or "a record without images" for sample in row]

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
                raise DataError(NO_EXAMPLE)

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
            yield [sample for _, sample in samples.usable(order[start:end].tolist())]

    return one_pass


def estimate_rows(samples: Samples, row_length: int, seed: int, packing: bool = True) -> int:
    """Estimate the rows of a pass by its first window, which is encoded for it.

    Raises:
        DataError: nothing in the first window can be trained on.
    """
    head = _order(len(samples), seed, 0)[:FIRST_WINDOW]
    lengths = [len(sample) for _, sample in samples.usable(head.tolist())]
    if not lengths:
        raise samples.tally.nothing_left()
    rows = pack(lengths, row_length, (seed, 0, 0), len(lengths) if packing else 1)
    return max(round(len(samples) * len(rows) / len(head)), 1)


def _order(num_samples: int, seed: int, number: int) -> np.ndarray:
    return np.random.default_rng((seed, number)).permutation(num_samples)


class EvenRows(Dataset[list[Encoded]]):
    """Another dataset's rows, and after them rows without samples.

    Every process takes as many batches as the others. accelerate would fill up the last ones with
    rows that the epoch has had, and several processes would learn from other rows than one does;
    of a row without samples nobody learns.

    Args:
        rows: of an epoch.
        multiple: the epoch's length becomes a multiple of it: the rows of a batch, times processes.

    >>> even = EvenRows([["a"], ["b"], ["c"]], multiple=2)
    >>> [even[number] for number in range(len(even))]
    [['a'], ['b'], ['c'], []]
    """

    def __init__(self, rows: PackedDataset | LazyRows, multiple: int) -> None:
        self.rows, self.multiple = rows, multiple

    def set_epoch(self, epoch: int) -> None:
        """Give out the rows of another epoch from now on; 0 is the first."""
        self.rows.set_epoch(epoch)

    @property
    def efficiency(self) -> float:
        """Share of the rows' tokens that are no padding; the rows without samples left out."""
        return self.rows.efficiency

    def __len__(self) -> int:
        """Count the rows of an epoch, those without samples too."""
        return -(-len(self.rows) // self.multiple) * self.multiple

    def __getitem__(self, index: int) -> list[Encoded]:
        """Return one row's samples."""
        return self.rows[index] if index < len(self.rows) else []


FIRST_STREAM_WINDOW = 128
"""Samples of the first window: few, so that the first step comes soon."""

Records = Iterable[Example | DataError]


def streamed_passes(
    sources: Sequence[Records],
    weights: Sequence[float],
    encoder: Encoder,
    tally: Tally,
    on_bad_record: OnBadRecord = "fail",
    seed: int = 0,
    *,
    images_only: bool = False,
) -> Pass:
    """Read sources side by side, each from front to back and then from the front again.

    Samples keep the order of their source but inside a window of 2,048, which is shuffled. The
    stream has no end, so there is one pass only.

    Args:
        sources: each can be iterated over any number of times.
        weights: how often each is drawn from, relative to the others.
        encoder: makes token ids.
        tally: counts what is left out.
        on_bad_record: "fail" or "skip".
        seed: decides whose turn it is.
        images_only: whether records without an image are left out.
    """

    def one_pass(_: int) -> Iterator[list[Encoded]]:
        random = np.random.default_rng(seed)
        streams = [
            _endless(source, encoder, tally, on_bad_record, images_only) for source in sources
        ]
        shares = np.array(weights, np.float64) / sum(weights)

        def mixed() -> Iterator[Encoded]:
            while True:
                for turn in random.choice(len(streams), size=WINDOW, p=shares):
                    yield next(streams[turn])

        samples = mixed()
        size = FIRST_STREAM_WINDOW
        while True:
            yield list(islice(samples, size))
            size = WINDOW

    return one_pass


def _endless(
    source: Records,
    encoder: Encoder,
    tally: Tally,
    on_bad_record: OnBadRecord,
    images_only: bool,
) -> Iterator[Encoded]:
    """Encode a source again and again; what is left out counts in the first round."""
    first = True
    while True:
        usable = 0
        for record in source:
            result = _encode(record, encoder, images_only)
            if isinstance(result, Encoded):
                usable += 1
                if first:
                    tally.add(result)
                yield result
                continue
            refuse_or_pass(result, encoder.overflow, on_bad_record)
            if first:
                tally.leave_out(result)
        if not usable:
            raise tally.nothing_left()
        first = False


def _encode(record: Example | DataError, encoder: Encoder, images_only: bool) -> Encoded | LeftOut:
    if isinstance(record, DataError):
        return LeftOut(str(record))
    if images_only and not record.images:
        return TEXT_LEFT_OUT
    try:
        check_sample_images(record)
        return encoder.encode(record)
    except TooLongError as error:
        return LeftOut(str(error), too_long=True)
    except DataError as error:
        return LeftOut(str(error))
