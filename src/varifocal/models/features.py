"""Vision features, computed once per image and kept in a memory-mapped file.

A wholly frozen tower gives the same features for the same image in every epoch and every run,
so they are a table. The table is keyed by the image's bytes and lies in a directory keyed by
the tower; this file knows neither towers nor connectors, only a function from images to features.

Legend: N images, K cells or states an image, C tower width.
"""

import fcntl
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch

from varifocal.progress import StepProgress
from varifocal.writing import unwritable_is_an_error

DIGEST_BYTES = 32


class FingerprintedImage(Protocol):
    """What the store needs of an image (the data layer's `Image` has it)."""

    def fingerprint(self) -> str:
        """SHA-256 of the image's content, in hex."""
        ...


class FeatureStore:
    """A table of frozen vision features.

    Args:
        compute: images -> features [N, K, C]; called under `no_grad` for images not yet known.
        shape: (K, C).
        dtype: of the features as stored and returned.
        directory: where the table lies; it may be shared by processes and runs.
        batch_size: images computed at once.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[FingerprintedImage]], torch.Tensor],
        shape: tuple[int, int],
        dtype: torch.dtype,
        directory: Path,
        batch_size: int = 32,
    ) -> None:
        self._compute, self._shape, self._dtype = compute, shape, dtype
        self._batch_size = batch_size
        with unwritable_is_an_error(directory):
            directory.mkdir(parents=True, exist_ok=True)
        self._keys_path, self._table_path = directory / "keys.bin", directory / "features.bin"
        self._slots: dict[bytes, int] = {}
        self._num_read = 0
        self._table = torch.empty(0)
        self._read_keys()
        self._map()

    def in_folder(self, directory: Path) -> "FeatureStore":
        """Open another table of the same features elsewhere."""
        return FeatureStore(self._compute, self._shape, self._dtype, directory, self._batch_size)

    def __len__(self) -> int:
        """The number of images in the table."""
        return len(self._slots)

    def __call__(self, images: Sequence[FingerprintedImage]) -> torch.Tensor:
        """Look features up, computing those that are missing.

        Returns:
            features [N, K, C], a copy.
        """
        return self.lookup(self.fill(images))

    def lookup(self, keys: Sequence[bytes]) -> torch.Tensor:
        """Read the features of known keys, [N, K, C], a copy."""
        return self._table.index_select(0, torch.tensor([self._slots[key] for key in keys]))

    def fill(
        self,
        images: Sequence[FingerprintedImage],
        progress: StepProgress | None = None,
    ) -> list[bytes]:
        """Compute what is missing, without reading features back.

        Several processes may do so at once. What another one has put into the table is not computed
        again; a process that finds itself after another goes on in the middle of what is left.

        Args:
            images: any images, known ones and repeats included.
            progress: called with (done, total) of the missing ones.

        Returns:
            the images' keys.
        """
        keys = [bytes.fromhex(image.fingerprint()) for image in images]
        wanted = dict(zip(keys, images, strict=True))
        if not wanted.keys() <= self._slots.keys():
            self._read_keys()  # another process may have computed them meanwhile
        todo = deque(each for each in wanted.items() if each[0] not in self._slots)
        total = len(todo)
        part = self._next_batch(todo)
        while part:
            with torch.no_grad():
                features = self._compute([image for _, image in part])
            if not self._append([key for key, _ in part], features):
                todo.rotate(-(len(todo) // 2))
            part = self._next_batch(todo)
            if progress is not None:
                progress(total - len(part) - len(todo), total)
        if len(self._table) < self._num_read:
            self._map()
        return keys

    def _next_batch(
        self, todo: deque[tuple[bytes, FingerprintedImage]]
    ) -> list[tuple[bytes, FingerprintedImage]]:
        """Take the next images that nobody has computed yet; none when all are known."""
        self._read_keys()
        part: list[tuple[bytes, FingerprintedImage]] = []
        while todo and len(part) < self._batch_size:
            pair = todo.popleft()
            if pair[0] not in self._slots:
                part.append(pair)
        return part

    def _append(self, keys: list[bytes], features: torch.Tensor) -> bool:
        """Write features, then keys: a key stands only for features that are whole.

        Returns:
            Whether all were new; what another process has written meanwhile stays.
        """
        rows = features.detach().to("cpu", self._dtype).contiguous()
        if tuple(rows.shape) != (len(keys), *self._shape):
            raise ValueError(f"features have shape {tuple(rows.shape)}, not [N, {self._shape}]")
        with (
            unwritable_is_an_error(self._table_path),
            self._keys_path.open("ab") as key_file,
            self._table_path.open("ab") as table,
        ):
            fcntl.flock(key_file, fcntl.LOCK_EX)
            self._read_keys()
            fresh = [place for place, key in enumerate(keys) if key not in self._slots]
            table.truncate(self._num_read * self._row_bytes)
            table.seek(0, 2)
            table.write(rows[fresh].view(torch.uint8).numpy().tobytes())
            table.flush()
            key_file.truncate(self._num_read * DIGEST_BYTES)
            key_file.write(b"".join(keys[place] for place in fresh))
        return len(fresh) == len(keys)

    @property
    def _row_bytes(self) -> int:
        return self._shape[0] * self._shape[1] * self._dtype.itemsize

    def _count(self) -> int:
        """Count the whole records: a crash can cut either file short."""
        if not (self._keys_path.exists() and self._table_path.exists()):
            return 0
        keys = self._keys_path.stat().st_size // DIGEST_BYTES
        return min(keys, self._table_path.stat().st_size // self._row_bytes)

    def _read_keys(self) -> None:
        """Read the keys that were written since the last time."""
        count = self._count()
        if count < self._num_read:  # somebody has deleted or cut the table
            self._slots, self._num_read, self._table = {}, 0, torch.empty(0)
        if count == self._num_read:
            return
        with self._keys_path.open("rb") as file:
            file.seek(self._num_read * DIGEST_BYTES)
            for slot in range(self._num_read, count):
                self._slots[file.read(DIGEST_BYTES)] = slot
        self._num_read = count

    def _map(self) -> None:
        """Map the table into memory as far as its keys were read."""
        if self._num_read:
            flat = torch.from_file(
                str(self._table_path),
                shared=False,
                size=self._num_read * self._shape[0] * self._shape[1],
                dtype=self._dtype,
            )
            self._table = flat.view(self._num_read, *self._shape)
