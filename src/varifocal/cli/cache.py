"""The verb `cache`: what Varifocal keeps to save work, and how to be rid of it."""

from __future__ import annotations

from typing import Annotated

import typer

from varifocal.errors import VarifocalError, nearest


def add_cache_verb(app: typer.Typer) -> None:
    """Give an app the verb of this file."""
    app.command(epilog="Example: varifocal cache --clear features --older-than 30")(cache)


def cache(
    clear: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Delete this kind, as listed, or `all`."),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(min=0, metavar="DAYS", help="With --clear: only what was not used since."),
    ] = None,
) -> None:
    """Show what is kept to save work, by kind and size; delete what is no longer wanted."""
    from varifocal.cache import ALL, cache_kinds, cache_root, clear_cache

    if older_than is not None and clear is None:
        raise VarifocalError("--older-than says what --clear deletes; give --clear KIND, too")
    kinds = cache_kinds()
    if clear is not None:
        if clear not in (ALL, *kinds):
            known = ", ".join((*kinds, ALL))
            hint = nearest(clear, [*kinds, ALL])
            raise VarifocalError(f"--clear {clear}: nothing of that kind{hint}; there is {known}")
        gone = clear_cache(clear, older_than)
        print(f"deleted {gone.num_entries} entries, {_size(gone.num_bytes)}")
        kinds = cache_kinds()
    for name, kind in kinds.items():
        print(f"{name:<12}{kind.num_entries:>7} entries {_size(kind.num_bytes):>12}")
    print(
        f"{'in all':<12}{sum(k.num_entries for k in kinds.values()):>7} entries "
        f"{_size(sum(k.num_bytes for k in kinds.values())):>12}  {cache_root()}"
    )


def _size(num_bytes: int) -> str:
    """Write a size in the unit that leaves one to four digits before the point.

    >>> _size(999), _size(3 * 2**20)
    ('999 B', '3.0 MiB')
    """
    size, units = float(num_bytes), iter(("KiB", "MiB", "GiB", "TiB"))
    unit = "B"
    while size >= 1024 and (larger := next(units, None)):
        size, unit = size / 1024, larger
    return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
