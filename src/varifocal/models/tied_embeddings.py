"""A table that is embedding and head at once, and an adapter on one of the two."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def adapters_change_one() -> Iterator[None]:
    """Leave out PEFT's warning of an adapter on a shared table.

    PEFT warns that merging in place would change both. Here nothing is merged in place: training,
    evaluation and serving run the adapter next to the table, and exports write two tables.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
        yield
