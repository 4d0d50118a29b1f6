"""Rows of samples: which sample goes where, and the tensors a model gets.

Letters: B rows, T tokens of a row, N images of a batch.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from varifocal.data.encoding.encoder import IGNORED, Encoded
from varifocal.data.example import Image
from varifocal.data.rows.reference_table import ReferenceTable
from varifocal.errors import DataError

ImageLoader = Callable[[Sequence[Image]], Mapping[str, Tensor]]
"""Images -> {"pixel_values": [N, 3, H, W]} or {"image_features": [N, K, C]}."""

Row = Sequence[Encoded]

WINDOW = 2048
"""Samples that are packed at a time: enough to fill rows, few enough to keep the order random."""
_ATTEMPTS = 4  # packings tried for an epoch that takes more rows than the first


def pack(
    lengths: Sequence[int], row_length: int, seed: int | Sequence[int] = 0, window: int = WINDOW
) -> list[list[int]]:
    """Put samples into rows of limited length, in an order that is random but repeatable.

    The samples are shuffled; in windows of the shuffled order, from long to short, each goes into
    the row where it leaves the least room. Where such rows are under 98 % full, as those of long
    images are, the window is packed row by row, too (`_fill_rows`), and the fewer rows are taken.
    The rows of a window are shuffled again, and so are the samples of a row.

    Args:
        lengths: tokens of each sample.
        row_length: most tokens of a row.
        seed: one or more numbers that decide everything random.
        window: samples packed at a time; 1 gives each a row of its own.

    Returns:
        Rows of sample indices; every sample stands in exactly one.

    Raises:
        ValueError: a sample is empty or longer than a row.

    >>> sorted(sorted(row) for row in pack([5, 3, 2, 4], row_length=7))
    [[0, 2], [1, 3]]
    """
    if len(lengths) and not 0 < min(lengths) <= max(lengths) <= row_length:
        raise ValueError(f"lengths must be 1 to row_length {row_length}, not {max(lengths)}")
    random = np.random.default_rng(seed)
    order = random.permutation(len(lengths))
    rows: list[list[int]] = []
    for start in range(0, len(order), window):
        packed = _pack_window(order[start : start + window].tolist(), lengths, row_length)
        for number in random.permutation(len(packed)):
            rows.append(random.permutation(packed[number]).tolist())
    return rows


_FULL = 0.98  # rows as full as this are not packed a second time


def _pack_window(indices: list[int], lengths: Sequence[int], row_length: int) -> list[list[int]]:
    rows = _best_fit(indices, lengths, row_length)
    if efficiency(rows, lengths, row_length) >= _FULL or len(rows) == len(indices):
        return rows
    return min(rows, _fill_rows(indices, lengths, row_length), key=len)


def _best_fit(indices: list[int], lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Pack one window, longest first, each into the fullest row that still holds it."""
    rows: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for index in sorted(indices, key=lambda index: -lengths[index]):
        place = bisect_left(rooms, (lengths[index], -1))
        if place < len(rooms):
            room, number = rooms.pop(place)
        else:
            room, number = row_length, len(rows)
            rows.append([])
        rows[number].append(index)
        insort(rooms, (room - lengths[index], number))
    return rows


def _fill_rows(indices: list[int], lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Pack one window row by row: the longest sample left, then what fills its row best.

    That is one sample or a pair, again and again while any fits. Of samples of which a row holds
    two or three, the longest come together with short ones; by `_best_fit` two of a middle length
    would meet and leave a room that is too short for any.
    """
    left = np.array(sorted(indices, key=lambda index: lengths[index]))
    sizes = np.array([lengths[index] for index in left])
    rows: list[list[int]] = []
    while len(left):
        row, room = [left[-1]], row_length - sizes[-1]
        left, sizes = left[:-1], sizes[:-1]
        while len(left) and sizes[0] <= room:
            taken = _fullest(sizes, room)
            row += left[taken].tolist()
            room -= sizes[taken].sum()
            left, sizes = np.delete(left, taken), np.delete(sizes, taken)
        rows.append([int(index) for index in row])
    return rows


def _fullest(sizes: np.ndarray, limit: int) -> list[int]:
    """Return the place of the sample, or the two places, with most tokens within a limit.

    Args:
        sizes: ascending; the first fits.
        limit: in tokens.
    """
    last = int(np.searchsorted(sizes, limit, "right")) - 1
    if sizes[last] == limit:
        return [last]
    firsts = np.arange(last)
    seconds = np.searchsorted(sizes[: last + 1], limit - sizes[:last], "right") - 1
    pairs = np.where(seconds > firsts, sizes[:last] + sizes[seconds], 0)
    if not len(pairs) or pairs.max() <= sizes[last]:
        return [last]
    first = int(pairs.argmax())
    return [first, int(seconds[first])]


def efficiency(rows: Sequence[Sequence[int]], lengths: Sequence[int], row_length: int) -> float:
    """Return the share of the rows' tokens that are no padding, 0 to 1.

    >>> efficiency([[0, 2], [1, 3]], [5, 3, 2, 4], row_length=7)
    1.0
    """
    used = sum(lengths[index] for row in rows for index in row)
    return used / max(len(rows) * row_length, 1)


_SHORTEST = 2  # tokens of a batch without samples: one to look at, one to predict


class PackedDataset(Dataset[list[Encoded]]):
    """The rows of one epoch; `set_epoch` packs the next one anew.

    transformers' Trainer calls `set_epoch` and counts an epoch's steps once. So every epoch has as
    many rows as the first: one that packs tighter has some rows split in two. Workers of a
    DataLoader see the epoch at which they were started (no `persistent_workers`).

    Args:
        samples: encoded examples; one that is listed twice is seen twice.
        lengths: their tokens, where they are known without reading them.
        row_length: most tokens of a row.
        seed: with the epoch's number it decides the rows and their order, in any process.
        packing: False gives each sample a row of its own, shuffled.

    Raises:
        DataError: there is no sample, or one is longer than a row.
    """

    def __init__(
        self,
        samples: Sequence[Encoded],
        row_length: int,
        seed: int = 0,
        packing: bool = True,
        lengths: Sequence[int] | None = None,
    ) -> None:
        if not samples:
            raise DataError("there is no example to train on")
        self.lengths = [len(sample) for sample in samples] if lengths is None else lengths
        for number, length in enumerate(self.lengths):
            if length > row_length:
                raise DataError(
                    f"record '{samples[number].example_id}' takes {length} tokens, a row holds "
                    f"{row_length}; raise row_length or lower max_length"
                )
        self.samples = samples
        self.row_length = row_length
        self.seed = seed
        self.window = WINDOW if packing else 1
        self.epoch = 0
        self._first = self._pack(0, 0)
        self.rows = self._first

    def set_epoch(self, epoch: int) -> None:
        """Give out the rows of another epoch from now on; 0 is the first."""
        if epoch != self.epoch:
            self.rows = self._rows_of(epoch)
            self.epoch = epoch

    def _rows_of(self, epoch: int) -> list[list[int]]:
        """Pack an epoch into as many rows as the first, or fall back on the first's, shuffled."""
        if epoch == 0:
            return self._first
        for attempt in range(_ATTEMPTS):
            rows = self._pack(epoch, attempt)
            if len(rows) <= len(self._first):
                return _split_rows(rows, len(self._first))
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self._first))
        return [self._first[number] for number in order]

    def _pack(self, epoch: int, attempt: int) -> list[list[int]]:
        seed = (self.seed, epoch, attempt)
        return pack(self.lengths, self.row_length, seed, self.window)

    @property
    def efficiency(self) -> float:
        """Share of this epoch's tokens that are no padding, 0 to 1."""
        return efficiency(self.rows, self.lengths, self.row_length)

    def __len__(self) -> int:
        """Count the rows of an epoch, the same for all."""
        return len(self._first)

    def __getitem__(self, index: int) -> list[Encoded]:
        """Return one row's samples."""
        return [self.samples[number] for number in self.rows[index]]

    def names(self, index: int) -> list[str]:
        """What an error text calls one row's records."""
        name = getattr(self.samples, "name", lambda number: self.samples[number].example_id)
        return [name(number) for number in self.rows[index]]


def _split_rows(rows: list[list[int]], num_rows: int) -> list[list[int]]:
    """Split rows in two, from the last one on, until there are enough.

    >>> _split_rows([[0, 1], [2, 3], [4]], 4)
    [[0, 1], [2], [3], [4]]
    """
    missing = num_rows - len(rows)
    split: list[list[int]] = []
    for row in reversed(rows):
        if missing > 0 and len(row) > 1:
            half = len(row) // 2
            split += [row[half:], row[:half]]
            missing -= 1
        else:
            split.append(row)
    return split[::-1]


@dataclass(frozen=True)
class Collator:
    """Makes a batch of packed rows: positions restart at each sample, attention stays inside it.

    Padding is one more segment at a row's end, text, untrained and no prompt.

    Attributes:
        pad_id: any id of the vocabulary.
        row_length: T; None pads to the longest row of the batch.
        load_images: makes the image tensors; called once a batch, and only if it has images.
        references: what a base model says of the samples with a `reference`.
    """

    pad_id: int
    row_length: int | None = None
    load_images: ImageLoader | None = None
    references: ReferenceTable | None = None

    def __call__(self, rows: Sequence[Row | Encoded]) -> dict[str, Tensor]:
        """Build the tensors of a batch.

        Args:
            rows: samples of each row; a sample alone is a row of its own.

        Returns:
            `input_ids`, `labels` (-100 where not trained), `position_ids`, `segment_ids`,
            `modality_ids` and `prompt_mask` (bool), each [B, T]; for batches with images what
            `load_images` makes of them, in the order of their placeholders; and for batches with
            references `reference_mask` [B, T], True at the P tokens that have one, and theirs in
            order: `reference_ids` [P, K] and `reference_log_probs` [P, K + 1].

        Raises:
            ValueError: a row is longer than `row_length`, or there are images and no loader.

        >>> one = Encoded(np.array([5, 6, 7], np.int32), np.array([True, True, False]))
        >>> two = Encoded(np.array([8, 9], np.int32), np.array([True, False]), modality=1)
        >>> batch = Collator(pad_id=0, row_length=7)([[one, two]])
        >>> for name, tensor in batch.items():
        ...     print(f"{name:12}", tensor[0].tolist())
        input_ids    [5, 6, 7, 8, 9, 0, 0]
        labels       [-100, -100, 7, -100, 9, -100, -100]
        position_ids [0, 1, 2, 0, 1, 0, 1]
        segment_ids  [0, 0, 0, 1, 1, 2, 2]
        modality_ids [0, 0, 0, 1, 1, 0, 0]
        prompt_mask  [True, True, False, True, False, False, False]
        """
        packed = [[row] if isinstance(row, Encoded) else list(row) for row in rows]
        longest = max((sum(map(len, row)) for row in packed), default=0)
        length = self.row_length or longest or _SHORTEST
        if longest > length:
            raise ValueError(f"a row has {longest} tokens, row_length is {length}")
        batch = _empty_batch(len(packed), length, self.pad_id)
        for number, row in enumerate(packed):
            _fill_row({name: array[number] for name, array in batch.items()}, row)
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        images = _image_tensors(packed, self.load_images)
        return {**tensors, **images, **_reference_tensors(packed, length, self.references)}


def _reference_tensors(
    rows: Sequence[Row], length: int, table: ReferenceTable | None
) -> dict[str, Tensor]:
    if table is None or not any(sample.reference >= 0 for row in rows for sample in row):
        return {}
    mask = np.zeros((len(rows), length), np.bool_)
    spans: list[slice] = []
    for number, row in enumerate(rows):
        start = 0
        for sample in row:
            end = start + len(sample)
            if sample.reference >= 0:
                mask[number, start:end] = ~sample.prompt_mask
                spans.append(slice(sample.reference, sample.reference + len(sample.trained_ids)))
            start = end
    return {
        "reference_mask": torch.from_numpy(mask),
        "reference_ids": _joined([table.ids[place] for place in spans]).long(),
        "reference_log_probs": _joined([table.log_probs[place] for place in spans]),
    }


def _joined(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def _empty_batch(num_rows: int, length: int, pad_id: int) -> dict[str, np.ndarray]:
    shape = (num_rows, length)
    return {
        "input_ids": np.full(shape, pad_id, np.int64),
        "labels": np.full(shape, IGNORED, np.int64),
        "position_ids": np.zeros(shape, np.int64),
        "segment_ids": np.zeros(shape, np.int64),
        "modality_ids": np.zeros(shape, np.int64),
        "prompt_mask": np.zeros(shape, np.bool_),
    }


def _fill_row(row: dict[str, np.ndarray], samples: Sequence[Encoded]) -> None:
    """Write the samples of one row, then mark the padding."""
    start = 0
    for segment, sample in enumerate(samples):
        place = slice(start, start + len(sample))
        row["input_ids"][place] = sample.input_ids
        row["labels"][place] = sample.labels
        row["position_ids"][place] = np.arange(len(sample))
        row["segment_ids"][place] = segment
        row["modality_ids"][place] = sample.modality
        row["prompt_mask"][place] = sample.prompt_mask
        start = place.stop
    row["position_ids"][start:] = np.arange(len(row["position_ids"]) - start)
    row["segment_ids"][start:] = len(samples)


def _image_tensors(rows: Sequence[Row], load_images: ImageLoader | None) -> Mapping[str, Tensor]:
    images = [image for row in rows for sample in row for image in sample.images]
    if not images:
        return {}
    if load_images is None:
        raise ValueError("the batch has images, but the collator has no load_images")
    return load_images(images)
