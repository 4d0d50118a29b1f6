"""Samples of sources that can only be read from front to back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np

from varifocal.data.encode import Encoded, Encoder, TooLongError
from varifocal.data.example import Example
from varifocal.data.lazy_rows import Pass
from varifocal.data.packing import WINDOW
from varifocal.data.reading import OnBadRecord
from varifocal.data.samples import LeftOut, Tally, check_pictures, refuse_or_pass
from varifocal.errors import DataError

FIRST_WINDOW = 128
"""Samples of the first window: few, so that the first step comes soon."""

Records = Iterable[Example | DataError]


def streamed_passes(
    sources: Sequence[Records],
    weights: Sequence[float],
    encoder: Encoder,
    tally: Tally,
    on_bad_record: OnBadRecord = "fail",
    seed: int = 0,
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
    """

    def one_pass(_: int) -> Iterator[list[Encoded]]:
        random = np.random.default_rng(seed)
        streams = [_endless(source, encoder, tally, on_bad_record) for source in sources]
        shares = np.array(weights, np.float64) / sum(weights)

        def mixed() -> Iterator[Encoded]:
            while True:
                for turn in random.choice(len(streams), size=WINDOW, p=shares):
                    yield next(streams[turn])

        samples = mixed()
        size = FIRST_WINDOW
        while True:
            yield list(islice(samples, size))
            size = WINDOW

    return one_pass


def _endless(
    source: Records, encoder: Encoder, tally: Tally, on_bad_record: OnBadRecord
) -> Iterator[Encoded]:
    """Encode a source again and again; what is left out counts in the first round."""
    first = True
    while True:
        usable = 0
        for record in source:
            found = _encode(record, encoder)
            if isinstance(found, Encoded):
                usable += 1
                if first:
                    tally.add(found)
                yield found
                continue
            refuse_or_pass(found, encoder.overflow, on_bad_record)
            if first:
                (tally.dropped if found.too_long else tally.skipped).append(found.reason)
        if not usable:
            raise DataError("there is no example to train on: all were skipped or dropped")
        first = False


def _encode(record: Example | DataError, encoder: Encoder) -> Encoded | LeftOut:
    if isinstance(record, DataError):
        return LeftOut(str(record))
    try:
        check_pictures(record)
        return encoder.encode(record)
    except TooLongError as error:
        return LeftOut(str(error), too_long=True)
    except DataError as error:
        return LeftOut(str(error))
