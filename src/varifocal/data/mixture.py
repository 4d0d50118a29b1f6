"""How much of each source an epoch holds, and which of its records.

Opens no files: it is handed sizes, modalities and tasks, and gives back numbers of records.

A *cell* is what is counted out together: the records of a source, or, where a share of language
was asked for, its records of one modality.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from varifocal.errors import DataError, RecipeError
from varifocal.recipe import MixtureSection, SourceSection

TEXT, IMAGE, BROKEN = 0, 1, -1
"""What `Part.modalities` says of a record."""
MODALITY_NAMES = {TEXT: "text", IMAGE: "image", None: "any"}

# What is drawn at random has a stream of its own, so that one draw does not move another.
_CAP_STREAM, _REMAINDER_STREAM = 0, 1


@dataclass(frozen=True)
class Part:
    """What a mixture has to know of a source.

    Attributes:
        name: what reports call it.
        size: its records.
        modalities: int8 [size], `TEXT`, `IMAGE` or `BROKEN`; None while nobody has looked.
        tasks: int32 [size], codes of the records' tasks; None while nobody has looked.
        task_names: code -> name of a task.
        epochs: how often its records are taken, instead of a share of the rest.
        weight: its share relative to the other weights, instead of its size.
        max_per_task: most records of a task.
    """

    name: str
    size: int
    modalities: NDArray[np.int8] | None = None
    tasks: NDArray[np.int32] | None = None
    task_names: tuple[str, ...] = ()
    epochs: float | None = None
    weight: float | None = None
    max_per_task: int | None = None


@dataclass(frozen=True)
class ReportRow:
    """What was asked of the records of one source and modality, and what is drawn.

    Attributes:
        part: the source's name.
        modality: `TEXT`, `IMAGE`, or None where nobody has looked.
        held: records there are to draw from, after caps.
        asked: records that the shares alone ask for; a fraction.
        realised: records drawn, repeats counted.
    """

    part: str
    modality: int | None
    held: int
    asked: float
    realised: int


@dataclass(frozen=True)
class Draw:
    """The records of an epoch: source by source, each pass over one in the order of its file.

    Attributes:
        parts: int32 [n], the source of each.
        records: int64 [n], its number in that source.
        report: asked and realised counts, by source and modality.
        notes: a sentence for everything that is not as it was asked for.
    """

    parts: NDArray[np.int32]
    records: NDArray[np.int64]
    report: tuple[ReportRow, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Count the records, repeats included."""
        return len(self.records)


@dataclass
class _Cell:
    """Records that are counted out together.

    Attributes:
        part: number of the source.
        modality: of all its records; None for any.
        records: int64 [n], ascending.
        share: relative to the other cells; 0 where the count is fixed.
        count: how many are drawn.
        asked: the same before rounding.
    """

    part: int
    modality: int | None
    records: NDArray[np.int64]
    share: float = 0.0
    count: int = 0
    asked: float = 0.0


@dataclass
class _Plan:
    """The cells, and what could not be had."""

    cells: list[_Cell]
    notes: list[str] = field(default_factory=list)


def needs_scan(sources: Iterable[SourceSection], mixture: MixtureSection) -> bool:
    """Say whether modalities or tasks must be known before records can be drawn.

    >>> from varifocal.recipe import FileSection
    >>> needs_scan([FileSection(path="a.json")], MixtureSection(total=10))
    False
    >>> needs_scan([FileSection(path="a.json")], MixtureSection(language_fraction=0.5))
    True
    """
    capped = any(source.max_per_task is not None for source in sources)
    return capped or mixture.language_fraction is not None or mixture.max_per_task is not None


def draw_epoch(parts: Sequence[Part], section: MixtureSection, seed: int) -> Draw:
    """Choose the records of an epoch.

    A source with `epochs` gives `round(size * epochs)` records. The rest of the total is shared by
    the others, by `weight` or by `size ** (1 / temperature)`, to the record (largest remainder).
    With `language_fraction` text and images are two sides: the total is split between them, and
    on each side a source counts by its share times the part of its records that belong there. So
    the fraction that the data have of themselves changes nothing. A source asked for more than it
    holds gives whole passes, and the remainder is drawn; one asked for less is drawn without
    repeats.

    Without `total` an epoch is as large as the sources (after caps and `epochs`); a side whose
    fraction is 0 is not counted.

    Args:
        parts: the sources; `modalities` and `tasks` are needed where `needs_scan` says so. Records
            marked `BROKEN` are never drawn, and noted.
        section: what is asked.
        seed: decides the caps and the remainders, 0 or more.

    Raises:
        RecipeError: what is asked contradicts itself.
        DataError: a total is asked for and there is no record to draw.
        ValueError: modalities or tasks are needed and missing.

    >>> parts = [Part("alpaca", 300), Part("science", 100)]
    >>> [row.realised for row in draw_epoch(parts, MixtureSection(total=8), seed=0).report]
    [6, 2]
    """
    _check_weights(parts)
    plan = _Plan(_cells(parts, section, seed), _note_broken(parts))
    fixed = _fix_epochs(plan.cells, parts)
    total = _total(plan.cells, parts, section, fixed)
    _set_shares(plan.cells, parts, section.temperature)
    if section.language_fraction is None:
        _share_out(plan.cells, total - fixed)
    else:
        _share_out_sides(plan, total, section.language_fraction)
    return _fill(plan, parts, seed)


def _check_weights(parts: Sequence[Part]) -> None:
    """Refuse weights next to sizes: 1 record and weight 1 are not the same measure."""
    free = [part for part in parts if part.epochs is None]
    weighted = [part for part in free if part.weight is not None]
    if weighted and len(weighted) < len(free):
        without = next(part for part in free if part.weight is None)
        raise RecipeError(
            f"data.train: '{weighted[0].name}' has a weight and '{without.name}' has none; give "
            "every source without epochs a weight, or none of them"
        )


def _note_broken(parts: Sequence[Part]) -> list[str]:
    counts = [0 if p.modalities is None else int((p.modalities == BROKEN).sum()) for p in parts]
    return [
        f"{part.name}: {count} broken records are left out"
        for part, count in zip(parts, counts, strict=True)
        if count
    ]


def _cells(parts: Sequence[Part], section: MixtureSection, seed: int) -> list[_Cell]:
    """Sort every source's records into cells, after its cap."""
    cells: list[_Cell] = []
    for number, part in enumerate(parts):
        records = _candidates(part, section.max_per_task, (seed, number, _CAP_STREAM))
        if section.language_fraction is None:
            cells.append(_Cell(number, None, records))
            continue
        if part.modalities is None:
            raise ValueError(f"language_fraction needs the modalities of '{part.name}'")
        of_each = part.modalities[records]
        cells += [_Cell(number, side, records[of_each == side]) for side in (TEXT, IMAGE)]
    return cells


def _candidates(part: Part, cap: int | None, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Return the records that may be drawn, ascending: the whole ones, capped by task."""
    whole = np.arange(part.size, dtype=np.int64)
    if part.modalities is not None:
        whole = whole[part.modalities != BROKEN]
    caps = [each for each in (cap, part.max_per_task) if each is not None]
    if not caps:
        return whole
    if part.tasks is None:
        raise ValueError(f"max_per_task needs the tasks of '{part.name}'")
    shuffled = np.random.default_rng(seed).permutation(whole)
    tasks = part.tasks[shuffled]
    by_task = np.argsort(tasks, kind="stable")
    _, first = np.unique(tasks[by_task], return_index=True)
    sizes = np.diff([*first, len(by_task)])
    rank = np.arange(len(by_task)) - np.repeat(first, sizes)  # of each within its task
    return np.sort(shuffled[by_task[rank < min(caps)]])


def _fix_epochs(cells: Sequence[_Cell], parts: Sequence[Part]) -> int:
    """Set the counts of sources with `epochs`; return their sum."""
    for number, part in enumerate(parts):
        if part.epochs is not None:
            own = [cell for cell in cells if cell.part == number]
            held = [len(cell.records) for cell in own]
            counts = largest_remainder(held, int(sum(held) * part.epochs + 0.5))
            for cell, count in zip(own, counts, strict=True):
                cell.count, cell.asked = count, len(cell.records) * part.epochs
    return sum(cell.count for cell in cells)


def _total(
    cells: Sequence[_Cell], parts: Sequence[Part], section: MixtureSection, fixed: int
) -> int:
    """Return the records of an epoch."""
    free = [
        len(cell.records)
        for cell in cells
        if parts[cell.part].epochs is None and _is_wanted(cell, section.language_fraction)
    ]
    if section.total is None:
        return fixed + sum(free)
    if section.total < fixed or (section.total > fixed and not free):
        raise RecipeError(
            f"data.mixture.total is {section.total:,}, and the sources with epochs make {fixed:,}"
            f"{'' if free else ', with none next to them'}; change total, or leave out an epochs"
        )
    if section.total > fixed and not sum(free):
        raise DataError(
            f"data.mixture.total is {section.total:,}, and {', '.join(p.name for p in parts)} "
            "have no record to draw"
        )
    return section.total


def _is_wanted(cell: _Cell, language_fraction: float | None) -> bool:
    """Say whether a cell's side has any share at all."""
    return (
        language_fraction is None
        or {TEXT: language_fraction, IMAGE: 1 - language_fraction}[cell.modality or TEXT] > 0
    )


def _set_shares(cells: Sequence[_Cell], parts: Sequence[Part], temperature: float) -> None:
    """Give every cell without a fixed count its part of its source's share."""
    for number, part in enumerate(parts):
        own = [cell for cell in cells if cell.part == number]
        held = sum(len(cell.records) for cell in own)
        if part.epochs is None and held:
            share = part.weight if part.weight is not None else held ** (1 / temperature)
            for cell in own:
                cell.share = share * len(cell.records) / held


def _share_out(cells: Sequence[_Cell], count: int) -> None:
    """Divide a count among the cells with a share."""
    free = [cell for cell in cells if cell.share]
    shares = [cell.share for cell in free]
    for cell, part in zip(free, largest_remainder(shares, count), strict=True):
        cell.count, cell.asked = part, count * cell.share / sum(shares)


def _share_out_sides(plan: _Plan, total: int, fraction: float) -> None:
    """Divide a total between text and images, and each side among its sources."""
    text, image = ([c for c in plan.cells if c.modality == side] for side in (TEXT, IMAGE))
    fixed_text, fixed_image = (sum(cell.count for cell in side) for side in (text, image))
    wanted = int(total * fraction + 0.5)
    most = total - fixed_image if any(cell.share for cell in text) else fixed_text
    least = fixed_text if any(cell.share for cell in image) else total - fixed_image
    realised = min(max(wanted, least), most)
    _share_out(text, realised - fixed_text)
    _share_out(image, total - realised - fixed_image)
    if realised != wanted:
        had = realised / total if total else 0.0
        plan.notes.append(
            f"data.mixture.language_fraction is {fraction:g}, and {had:.4g} is had: "
            f"{realised:,} of {total:,} records are text, {_why(realised < wanted)}"
        )


def _why(too_little_text: bool) -> str:
    short, other = ("text", "images") if too_little_text else ("images", "text")
    return f"for there is no further source of {short}, or the epochs of sources fix the {other}"


def largest_remainder(shares: Sequence[float], count: int) -> list[int]:
    """Divide a count in the proportion of shares, so that it comes out exactly.

    Each gets its quota rounded down; what is left goes one by one to the largest fractions, the
    first of equal ones first. A share of 0 gets nothing. (Hamilton's method.)

    >>> largest_remainder([3, 1, 1], 8)
    [5, 2, 1]
    """
    whole = sum(shares)
    if not whole:
        return [0] * len(shares)
    quotas = [count * share / whole for share in shares]
    counts = [int(quota) for quota in quotas]
    order = sorted(
        (number for number, share in enumerate(shares) if share),
        key=lambda number: counts[number] - quotas[number],
    )
    for number in order[: count - sum(counts)]:
        counts[number] += 1
    return counts


def _fill(plan: _Plan, parts: Sequence[Part], seed: int) -> Draw:
    """Draw every cell's records and write the report."""
    drawn = [
        _repeat(cell, (seed, cell.part, _REMAINDER_STREAM, cell.modality or 0))
        for cell in plan.cells
    ]
    counts = [len(records) for records in drawn]
    numbers = np.repeat(np.array([cell.part for cell in plan.cells], np.int32), counts)
    rows = [
        row
        for cell, records in zip(plan.cells, drawn, strict=True)
        for row in _rows(cell, parts[cell.part], records)
    ]
    return Draw(
        numbers,
        np.concatenate([np.empty(0, np.int64), *drawn]),
        tuple(rows),
        tuple(plan.notes),
    )


def _repeat(cell: _Cell, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """Return `count` records of a cell: whole passes, then a drawn remainder."""
    if not cell.count:
        return np.empty(0, np.int64)
    passes, rest = divmod(cell.count, len(cell.records))
    chosen = np.random.default_rng(seed).permutation(len(cell.records))[:rest]
    return np.concatenate([np.tile(cell.records, passes), cell.records[np.sort(chosen)]])


def _rows(cell: _Cell, part: Part, records: NDArray[np.int64]) -> list[ReportRow]:
    """Report a cell, by modality where it is known."""
    if cell.modality is not None or part.modalities is None:
        held = len(cell.records)
        row = ReportRow(part.name, cell.modality, held, cell.asked, len(records))
        return [row] if held else []
    rows: list[ReportRow] = []
    for side in (TEXT, IMAGE):
        held = int((part.modalities[cell.records] == side).sum())
        realised = int((part.modalities[records] == side).sum())
        if held:
            asked = cell.asked * held / len(cell.records)
            rows.append(ReportRow(part.name, side, held, asked, realised))
    return rows
