"""What a base model says at each token of some texts, on disk and mapped into memory.

Letters: N tokens, K likeliest next tokens.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_IDS, _LOG_PROBS = "ids.npy", "log_probs.npy"


class ReferenceTable:
    """The distributions of a base model over the next token, N of them.

    Of each there are its K likeliest ids and, in natural logarithms, their probabilities and the
    probability of all others together. The files are opened when they are first read; a process
    that gets the table opens them itself.

    Args:
        folder: where `write` put it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def write(folder: Path, ids: npt.NDArray[np.int32], log_probs: npt.NDArray[np.float32]) -> None:
        """Write a table into a folder.

        Args:
            folder: is there already.
            ids: [N, K].
            log_probs: [N, K + 1], that of all other ids last.
        """
        np.save(folder / _IDS, ids)
        np.save(folder / _LOG_PROBS, log_probs)

    @cached_property
    def ids(self) -> npt.NDArray[np.int32]:
        """[N, K]."""
        return np.load(self.folder / _IDS, mmap_mode="r")

    @cached_property
    def log_probs(self) -> npt.NDArray[np.float32]:
        """[N, K + 1]."""
        return np.load(self.folder / _LOG_PROBS, mmap_mode="r")

    def __len__(self) -> int:
        """Count the distributions."""
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the mapped files out, which would be copied whole."""
        return {"folder": self.folder}
