"""Rows that processes can share equally: an epoch's last ones are filled up with padding."""

from __future__ import annotations

from torch.utils.data import Dataset

from varifocal.data.encode import Encoded
from varifocal.data.lazy_rows import LazyRows
from varifocal.data.packing import PackedDataset


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
