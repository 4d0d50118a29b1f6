"""Keys and values of conversations that were read before, for their next turn.

A prefix fits a prompt as far as their token ids and their pictures are the same, the same lane
read both and the same client sent both: the time to an answer tells nobody of others' prompts.
Of two prompts that share their beginning, both can go on from it.

Letters: T tokens, V tokens an image takes.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from varifocal.serving.kv_rows import Keys


@dataclass(frozen=True)
class Seen:
    """What a model has read.

    Attributes:
        reader: whose weights read it, and for which client.
        ids: [T] token ids.
        pictures: for each picture its first token's place and its content's fingerprint.
        tokens_per_image: V.
    """

    reader: tuple[str, str]
    ids: npt.NDArray[np.int64]
    pictures: tuple[tuple[int, str], ...]
    tokens_per_image: int

    def shared_with(self, other: Seen) -> int:
        """Count the tokens at the beginning that are the same for both; no picture is split."""
        if self.reader != other.reader:
            return 0
        shortest = min(len(self.ids), len(other.ids))
        differs = self.ids[:shortest] != other.ids[:shortest]
        common = int(differs.argmax()) if differs.any() else shortest
        for mine, theirs in zip(self.pictures, other.pictures, strict=False):
            if mine != theirs:
                common = min(common, mine[0], theirs[0])
        return self.whole_pictures(common)

    def whole_pictures(self, length: int) -> int:
        """Shorten a length that would end inside a picture to where the picture begins."""
        for start, _ in self.pictures:
            if start < length < start + self.tokens_per_image:
                return start
        return length


@dataclass(frozen=True)
class Found:
    """A prefix of a prompt.

    Attributes:
        length: tokens; 0 where nothing fits.
        keys: keys and values of that length, views of what is held.
        is_whole: whether it is all that was read then, the answer too, and not a beginning of it.
    """

    length: int = 0
    keys: Keys = field(default_factory=list)
    is_whole: bool = False


class PrefixCache:
    """The prefixes used last, up to a number of bytes.

    Args:
        max_bytes: of keys and values together.

    Attributes:
        num_bytes: what is held.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._entries: OrderedDict[int, tuple[Seen, Keys]] = OrderedDict()
        self._next = 0

    def find(self, wanted: Seen) -> Found:
        """Find the longest prefix of a prompt, short of its last token, whose logits are needed."""
        best, longest = None, 0
        for name, (seen, _) in self._entries.items():
            shared = wanted.whole_pictures(min(wanted.shared_with(seen), len(wanted.ids) - 1))
            if shared > longest:
                best, longest = name, shared
        if best is None:
            return Found()
        self._entries.move_to_end(best)
        seen, keys = self._entries[best]
        shorter = [(key[:, :, :longest], value[:, :, :longest]) for key, value in keys]
        return Found(longest, shorter, is_whole=longest == len(seen.ids))

    def holds(self, seen: Seen) -> bool:
        """Say whether all of it is held already."""
        return any(seen.shared_with(known) == len(seen.ids) for known, _ in self._entries.values())

    def put(self, seen: Seen, keys: Keys) -> None:
        """Hold what was read; what it continues goes, and then what was used longest ago."""
        size = _num_bytes(keys)
        if size > self.max_bytes:
            return
        for name, (known, _) in list(self._entries.items()):
            if seen.shared_with(known) == len(known.ids):
                self._drop(name)
        self._entries[self._next] = (seen, keys)
        self._next += 1
        self.num_bytes += size
        while self.num_bytes > self.max_bytes:
            self._drop(next(iter(self._entries)))

    def _drop(self, name: int) -> None:
        self.num_bytes -= _num_bytes(self._entries.pop(name)[1])


def _num_bytes(keys: Keys) -> int:
    return sum(part.numel() * part.element_size() for pair in keys for part in pair)
