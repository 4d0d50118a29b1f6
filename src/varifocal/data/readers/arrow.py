"""Rows that the `datasets` library reads: parquet, arrow, saved and hub data sets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varifocal.cache import file_digest
from varifocal.data.readers.base import Record, StreamedRecords
from varifocal.data.readers.tar import row_of_sample
from varifocal.errors import DataError, nearest

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

BUILDERS = {
    ".parquet": "parquet",
    ".arrow": "arrow",
}
"""A file's ending -> what reads it in the `datasets` library."""


class ArrowRecords:
    """The rows of a memory-mapped data set; images stay undecoded, as {"bytes", "path"}.

    Args:
        dataset: of the `datasets` library.
        folder, place, is_split: as in `record.Records`.

    Raises:
        DataError: it has no row.
    """

    def __init__(self, dataset: Dataset, folder: Path, place: str, is_split: bool) -> None:
        self.folder, self.place, self.is_split = folder, place, is_split
        # As arrow, nothing is decoded: by default an image would become Pillow's.
        self._dataset = dataset.with_format("arrow")
        self._features = dict(dataset.features)
        if not len(dataset):
            raise DataError(f"'{place}' has no row")

    def __len__(self) -> int:
        """Count the rows."""
        return len(self._dataset)

    def __getitem__(self, number: int) -> Record:
        """Read a row."""
        row: Any = self._dataset[number]
        place = f"row {number}"
        decoded = _decoded(self._features, row.to_pylist()[0])
        return Record(self.place, place, _plain(decoded, f"{self.place}: {place}"))

    @property
    def fingerprint(self) -> str:
        """A digest of the mapped files, or where there are none of the library's own."""
        files = [Path(each["filename"]) for each in self._dataset.cache_files]
        if not files:
            return hashlib.sha256(self._dataset._fingerprint.encode()).hexdigest()
        return hashlib.sha256("\0".join(map(file_digest, files)).encode()).hexdigest()


def _decoded(feature: Any, value: Any) -> Any:
    """Read what the library keeps as JSON: columns whose cells are of several types."""
    if value is None:
        return None
    if type(feature).__name__ == "Json":  # the library has it from 5.0 on
        return json.loads(value) if isinstance(value, str) else value
    if isinstance(feature, Mapping) and isinstance(value, Mapping):
        return {name: _decoded(feature.get(name), cell) for name, cell in value.items()}
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is not None and isinstance(value, list):
        return [_decoded(inner, item) for item in value]
    return value


def _plain(row: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Give a row that was saved from a tar shard the columns that the shard's own samples get."""
    if "__key__" not in row:
        return row
    members = ((name, value) for name, value in row.items() if not name.startswith("__"))
    return row_of_sample(str(row["__key__"]), members, where)


def open_files(files: Sequence[Path], folder: Path, place: str, streaming: bool) -> Any:
    """Open files of one ending of `BUILDERS`.

    Returns:
        ArrowRecords, or StreamedRecords.

    Raises:
        DataError: the library cannot read them.
    """
    from datasets import load_dataset

    builder = next(BUILDERS[end] for end in BUILDERS if files[0].name.lower().endswith(end))
    names = [str(file) for file in files]
    load: Callable[..., Any] = load_dataset
    dataset = _load(
        partial(load, builder, data_files=names, split="train", streaming=streaming), place
    )
    return _wrap(dataset, folder, place, is_split=False)


def open_saved(folder: Path, split: str | None) -> ArrowRecords:
    """Open a folder that `save_to_disk` wrote.

    Raises:
        DataError: the library cannot read it, or there are several splits and none is named.
    """
    from datasets import load_from_disk

    loaded = _load(partial(load_from_disk, str(folder)), str(folder))
    is_split = isinstance(loaded, dict)
    return _wrap(_take(loaded, split, str(folder)), folder, str(folder), is_split)


def open_hub(name: str, subset: str | None, split: str | None, streaming: bool) -> Any:
    """Open a data set of the Hugging Face hub.

    Returns:
        ArrowRecords, or StreamedRecords.

    Raises:
        DataError: there is none of that name, there are several splits and none is named, or it
            consists of tar shards.
    """
    from datasets import config, load_dataset

    load: Callable[..., Any] = load_dataset
    loaded = _load(partial(load, name, name=subset, streaming=streaming), name)
    chosen = _take(loaded, split, name)
    _refuse_shards(chosen, name)
    # Images that come as files lie in the library's own folders.
    return _wrap(chosen, Path(config.HF_CACHE_HOME), name, is_split=True)


def _refuse_shards(dataset: Any, name: str) -> None:
    """Refuse tar shards: the library gives every sample the columns of the first five.

    Raises:
        DataError: with the way to read them whole.
    """
    if "__key__" in (dataset.column_names or ()):
        raise DataError(
            f"'{name}' is a data set of tar shards, of which the datasets library would leave out "
            "every file that the first five samples have not; download it (hf download "
            f"{name} --repo-type dataset --local-dir FOLDER) and give path: FOLDER/*.tar"
        )


def _load(load: Callable[[], Any], place: str) -> Any:
    """Load without progress bars; whatever goes wrong becomes a sentence."""
    try:
        with _quiet():
            return load()
    # The library lets through pyarrow's, fsspec's, the hub's and the operating system's errors.
    except Exception as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300] or type(cause).__name__
        raise DataError(f"'{place}' cannot be read by the datasets library: {reason}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    from datasets.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were_shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            enable_progress_bars()


def _take(loaded: Any, split: str | None, place: str) -> Any:
    """Return the split that is asked for."""
    if not isinstance(loaded, dict):
        return loaded
    if split is None and len(loaded) == 1:
        return next(iter(loaded.values()))
    known = ", ".join(map(str, loaded))
    if split is None:
        raise DataError(f"'{place}' has the splits {known}; say which one is meant (split: ...)")
    if split not in loaded:
        raise DataError(f"'{place}' has no split '{split}' but {known}{nearest(split, loaded)}")
    return loaded[split]


def _wrap(dataset: Any, folder: Path, place: str, is_split: bool) -> Any:
    from datasets import IterableDataset

    if isinstance(dataset, IterableDataset):
        rows = partial(_stream, dataset.decode(False), place)
        return StreamedRecords(rows, folder, place, is_split)
    return ArrowRecords(dataset, folder, place, is_split)


def _stream(dataset: IterableDataset, place: str) -> Iterator[Record | DataError]:
    rows, features = iter(dataset), dict(dataset.features or {})
    number = 0
    while True:
        try:
            row = next(rows, None)
        except Exception as error:  # as in `_load`; the stream cannot go on after it
            reason = " ".join(str(error.__cause__ or error).split())[:300]
            raise DataError(f"{place}: row {number} cannot be read: {reason}") from error
        if row is None:
            return
        try:
            decoded = _decoded(features, row)
            yield Record(place, f"row {number}", _plain(decoded, f"{place}: row {number}"))
        except DataError as error:
            yield error
        number += 1
