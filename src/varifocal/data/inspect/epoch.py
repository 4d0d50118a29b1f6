"""What an epoch would hold: the records the mixture draws, packed into rows by their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from varifocal.data.inspect.counts import SourceCounts, as_numbers
from varifocal.data.mixture import MODALITY_NAMES, Draw, Part, ReportRow, draw
from varifocal.data.rows.packing import WINDOW, efficiency, pack
from varifocal.recipe import DataSection, SourceSection


@dataclass(frozen=True)
class Epoch:
    """The first epoch, as the recipe asks for it.

    Attributes:
        num_samples: records drawn that give a sample, repeats counted.
        num_rows: that they are packed into.
        row_length: tokens of a row.
        efficiency: share of the rows' tokens that are no padding, 0 to 1.
        num_tokens: of all samples.
        num_trained_tokens: of those.
        mixture: asked and realised counts; empty for sources that are read as they come.
        notes: what is not as the mixture asks for it.
    """

    num_samples: int
    num_rows: int
    row_length: int
    efficiency: float
    num_tokens: int
    num_trained_tokens: int
    mixture: tuple[ReportRow, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def trained_share(self) -> float:
        """The share of the tokens that train, 0 to 1."""
        return self.num_trained_tokens / max(self.num_tokens, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON takes it."""
        rows = [{**asdict(r), "modality": MODALITY_NAMES[r.modality]} for r in self.mixture]
        return {**asdict(self), "trained_share": self.trained_share, "mixture": rows}


def first_epoch(
    data: DataSection, sections: Sequence[SourceSection], trained: Sequence[SourceCounts], seed: int
) -> Epoch:
    """Draw and pack the first epoch from the lengths alone, as the training does.

    Args:
        data: mixture, row length and packing.
        sections: of the sources.
        trained: what their records showed.
        seed: the run's.

    Raises:
        RecipeError: the mixture contradicts itself.
    """
    row_length = data.row_length or data.max_length
    streamed = any(section.streaming for section in sections)
    drawn = None if streamed else _draw(data, sections, trained, seed)
    lengths = _of_epoch([counts.kept for counts in trained], drawn)  # [n]
    learned = _of_epoch([counts.trained for counts in trained], drawn)[lengths > 0]
    lengths = lengths[lengths > 0]
    window = WINDOW if data.packing else 1
    rows = pack(lengths.tolist(), row_length, (seed, 0, 0), window)
    return Epoch(
        num_samples=len(lengths),
        num_rows=len(rows),
        row_length=row_length,
        efficiency=efficiency(rows, lengths.tolist(), row_length),
        num_tokens=int(lengths.sum()),
        num_trained_tokens=int(learned.sum()),
        mixture=drawn.report if drawn else (),
        notes=drawn.notes if drawn else (),
    )


def _draw(
    data: DataSection, sections: Sequence[SourceSection], trained: Sequence[SourceCounts], seed: int
) -> Draw:
    parts = [
        Part(
            counts.name,
            len(counts),
            as_numbers(counts.modalities).astype(np.int8),
            as_numbers(counts.task_codes).astype(np.int32),
            counts.task_names,
            section.epochs,
            section.weight,
            section.max_per_task,
        )
        for section, counts in zip(sections, trained, strict=True)
    ]
    return draw(parts, data.mixture, seed)


def _of_epoch(values: Sequence[Any], drawn: Draw | None) -> np.ndarray:
    """Return a number of each record of the epoch; of all records without a draw."""
    columns = [as_numbers(one) for one in values]
    joined = np.concatenate([np.zeros(0, np.int64), *columns])
    if drawn is None:
        return joined
    starts = np.cumsum([0, *map(len, columns)])
    return joined[starts[drawn.parts] + drawn.records]
