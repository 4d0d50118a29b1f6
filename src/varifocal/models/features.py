"""Vision features, computed once per picture and kept in a memory-mapped file.

A wholly frozen tower gives the same features for the same picture in every epoch and every run,
so they are a table. The table is keyed by the picture's bytes and lies in a directory keyed by
the tower; this file knows neither towers nor connectors, only a function from pictures to features.

Legend: N pictures, K cells or states a picture, C tower width.
"""

import fcntl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from varifocal.run import disk_full_is_an_error

DIGEST_BYTES = 32


class Picture(Protocol):
    """What the store needs of a picture (the data layer's `Image` has it)."""

    def fingerprint(self) -> str:
        """SHA-256 of the picture's content, in hex."""
        ...


class FeatureStore:
    """A table of frozen vision features.

    Args:
        compute: pictures -> features [N, K, C]; called under `no_grad` for pictures not yet known.
        shape: (K, C).
        dtype: of the features as stored and returned.
        directory: where the table lies; it may be shared by processes and runs.
        batch_size: pictures computed at once.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[Picture]], torch.Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        directory: Path,
        batch_size: int = 32,
    ) -> None:
        self._compute, self._shape, self._dtype = compute, shape, dtype
        self._batch_size = batch_size
        with disk_full_is_an_error(directory):
            directory.mkdir(parents=True, exist_ok=True)
        self._keys_path, self._table_path = directory / "keys.bin", directory / "features.bin"
        self._slots: dict[bytes, int] = {}
        self._table = torch.empty(0)
        self._reload()

    def beside(self, directory: Path) -> "FeatureStore":
        """Open another table of the same features elsewhere."""
        return FeatureStore(self._compute, self._shape, self._dtype, directory, self._batch_size)

    def __len__(self) -> int:
        """The number of pictures in the table."""
        return len(self._slots)

    def __call__(self, pictures: Sequence[Picture]) -> torch.Tensor:
        """Look features up, computing those that are missing.

        Returns:
            features [N, K, C], a copy.
        """
        return self.lookup(self.fill(pictures))

    def lookup(self, keys: Sequence[bytes]) -> torch.Tensor:
        """Read the features of known keys, [N, K, C], a copy."""
        return self._table.index_select(0, torch.tensor([self._slots[key] for key in keys]))

    def fill(
        self,
        pictures: Sequence[Picture],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[bytes]:
        """Compute what is missing, without reading features back.

        Args:
            pictures: any pictures, known ones and repeats included.
            progress: called with (done, total) of the missing ones.

        Returns:
            the pictures' keys.
        """
        keys = [bytes.fromhex(picture.fingerprint()) for picture in pictures]
        wanted = dict(zip(keys, pictures, strict=True))
        if not wanted.keys() <= self._slots.keys():
            self._reload()  # another process may have computed them meanwhile
        missing = {key: picture for key, picture in wanted.items() if key not in self._slots}
        todo = list(missing.items())
        for start in range(0, len(todo), self._batch_size):
            part = todo[start : start + self._batch_size]
            with torch.no_grad():
                features = self._compute([picture for _, picture in part])
            self._append([key for key, _ in part], features)
            if progress is not None:
                progress(start + len(part), len(todo))
        if todo:
            self._reload()
        return keys

    def _append(self, keys: list[bytes], features: torch.Tensor) -> None:
        """Write features, then keys: a key stands only for features that are whole."""
        rows = features.detach().to("cpu", self._dtype).contiguous()
        if tuple(rows.shape) != (len(keys), *self._shape):
            raise ValueError(f"features have shape {tuple(rows.shape)}, not [N, {self._shape}]")
        with (
            disk_full_is_an_error(self._table_path),
            self._keys_path.open("ab") as key_file,
            self._table_path.open("ab") as table,
        ):
            fcntl.flock(key_file, fcntl.LOCK_EX)
            known = self._count()
            table.truncate(known * self._row_bytes)
            table.seek(0, 2)
            table.write(rows.view(torch.uint8).numpy().tobytes())
            table.flush()
            key_file.truncate(known * DIGEST_BYTES)
            key_file.write(b"".join(keys))

    @property
    def _row_bytes(self) -> int:
        return self._shape[0] * self._shape[1] * self._dtype.itemsize

    def _count(self) -> int:
        """Count the whole records: a crash can cut either file short."""
        if not (self._keys_path.exists() and self._table_path.exists()):
            return 0
        keys = self._keys_path.stat().st_size // DIGEST_BYTES
        return min(keys, self._table_path.stat().st_size // self._row_bytes)

    def _reload(self) -> None:
        """Read the keys and map the table."""
        count = self._count()
        raw = self._keys_path.read_bytes() if count else b""
        keys = (raw[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES] for i in range(count))
        self._slots = {key: slot for slot, key in enumerate(keys)}
        if count:
            flat = torch.from_file(
                str(self._table_path),
                shared=False,
                size=count * self._shape[0] * self._shape[1],
                dtype=self._dtype,
            )
            self._table = flat.view(count, *self._shape)
