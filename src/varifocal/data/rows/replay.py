"""Samples of plain text between those of a run, as a share of its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from varifocal.data.encoding.encoded import Encoded
from varifocal.data.rows.lazy import Pass
from varifocal.data.rows.reference_table import ReferenceTable


@dataclass(frozen=True)
class Replay:
    """What the base says, and how much of it an epoch holds.

    Attributes:
        samples: instructions with the base's answers, or other plain text.
        share: of an epoch's tokens that these samples are, above 0 and below 1.
        table: the base's distributions that the samples' `reference` points into; None where the
            loss is that of the samples' own tokens.
        facts: what `keep.json` of a run says of them.
    """

    samples: Sequence[Encoded]
    share: float
    table: ReferenceTable | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def next_to(self, num_tokens: int) -> list[Encoded]:
        """Take samples in turn, from the first again after the last, until they are the share.

        Args:
            num_tokens: of all other samples of an epoch.

        >>> samples = [Encoded(np.zeros(n, np.int32), np.zeros(n, np.bool_)) for n in (2, 3)]
        >>> [len(one) for one in Replay(samples, share=0.2).next_to(24)]  # 6 of 30 tokens
        [2, 3, 2]
        """
        return list(self._until(_cycle(self.samples), [0], num_tokens))

    def _until(
        self, samples: Iterator[Encoded], given: list[int], num_tokens: int
    ) -> Iterator[Encoded]:
        """Yield samples while their tokens, counted in `given`, are too few for the others'."""
        while given[0] * (1 - self.share) < num_tokens * self.share:
            sample = next(samples)
            given[0] += len(sample)
            yield sample

    def between(self, passes: Pass) -> Pass:
        """Add samples to each window of a stream, so that they are the share all along.

        Args:
            passes: the run's own samples; each pass takes the added ones in another order.
        """

        def one_pass(number: int) -> Iterator[list[Encoded]]:
            order = np.random.default_rng(number).permutation(len(self.samples))
            samples = _cycle([self.samples[place] for place in order])
            num_tokens, given = 0, [0]
            for window in passes(number):
                num_tokens += sum(map(len, window))
                yield [*window, *self._until(samples, given, num_tokens)] if window else window

        return one_pass


def _cycle(samples: Sequence[Encoded]) -> Iterator[Encoded]:
    return (samples[number % len(samples)] for number in count())


class WithReplay(Sequence[Encoded]):
    """The samples of an epoch, and after them those of a replay.

    Args:
        samples: the run's own; `name` says what a text of an error calls one.
        added: of the replay.
    """

    def __init__(self, samples: Any, added: Sequence[Encoded]) -> None:
        self.samples, self.added = samples, added

    def __len__(self) -> int:
        """Count both kinds."""
        return len(self.samples) + len(self.added)

    def __getitem__(self, number: Any) -> Any:
        """Return a sample, or a list of them."""
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        own = len(self.samples)
        return self.samples[number] if number < own else self.added[number - own]

    def name(self, number: int) -> str:
        """What an error text calls a sample's record."""
        own = len(self.samples)
        if number < own:
            return self.samples.name(number)
        return f"'{self.added[number - own].example_id}' of training.keep"
