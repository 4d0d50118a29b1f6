"""What of a source's rows no reader looks at: a column that is lost must not be lost in silence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from varifocal.data.formats.base import Format, ParseOptions
from varifocal.data.readers.base import Record
from varifocal.errors import DataError


class _Watched(dict[str, Any]):
    """A row that knows which of its columns were looked at."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        super().__init__(row)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)


def unread_columns(
    records: Iterable[Record | DataError], reader: Format, asked: ParseOptions
) -> list[str]:
    """Return the columns that hold something and that a format does not look at, in their order.

    Args:
        records: some of a source's; broken ones are passed.
        reader: the format.
        asked: what the recipe asks of the records.
    """
    filled: dict[str, None] = {}
    seen: set[str] = set(asked.columns.values()) | {"split", "skill"}
    for record in records:
        if isinstance(record, DataError):
            continue
        row = _Watched(record.row)
        try:
            reader.parse(Record(record.source, record.place, row), asked)
        except DataError:  # what follows the fault was not looked at
            continue
        filled |= dict.fromkeys(name for name, cell in row.items() if cell not in (None, "", []))
        seen |= row.seen
    return [str(name) for name in filled if name not in seen]
