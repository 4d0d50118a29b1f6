"""What `varifocal data` shows: tables and bars of a check, a row in colours."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from varifocal.data.inspect.counts import binned
from varifocal.data.inspect.findings import HEADINGS, KINDS, NUM_LISTED, SIDES
from varifocal.data.inspect.rows import collapsed
from varifocal.errors import VarifocalError
from varifocal.writing import write_text

if TYPE_CHECKING:
    from varifocal.data.inspect.check import DataReport
    from varifocal.data.inspect.counts import SourceCounts
    from varifocal.data.inspect.rows import Segment, ShownRow
    from varifocal.data.mlan import Mixture

_BAR = 40
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_PIPED_WIDTH = 240
_MOST_TASKS = 12
_MODALITY_STYLES = ("blue", "dark_orange")
_MODALITIES = ("text", "image")
_TOKEN_STYLES = {
    "prompt": "dim",
    "trained": "bold black on green",
    "image": "black on dark_orange",
    "pad": "dim reverse",
}
_TOKEN_MARKS = {"trained": ("[+", "+]")}
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def screen() -> Console:
    """Return a console that is as wide as the terminal, or wide and plain into a pipe."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def print_check(report: DataReport) -> None:
    """Print everything a check found but its last sentence."""
    console = screen()
    console.print(_sources(console, report.sources))
    console.print(_tasks(console, report.sources))
    trained = [source for source in report.sources if source.side == "train"]
    _print_lengths(console, trained, report.data.max_length)
    _print_image_tokens(console, trained)
    if report.epoch and len(report.epoch.mixture) and _is_mixed(report):
        console.print(_mixture(console, report))
    _print_findings(console, report)
    notes = dict.fromkeys(note for source in report.sources for note in source.notes)
    for line in (*_limit(report, trained), *_epoch(report), *(f"note: {note}" for note in notes)):
        console.print(Text(line), soft_wrap=True)


def print_mixture(mixture: Mixture, data: Path) -> None:
    """Print how many examples a mixture has of each set, what is absent, and how it is read."""
    console = screen()
    table = _table(console, str(mixture.file), "set", "examples", "of")
    for name, (taken, of) in mixture.counts.items():
        table.add_row(name, f"{taken:,}", f"{of:,}")
    table.add_row("all", *(f"{sum(part):,}" for part in zip(*mixture.counts.values(), strict=True)))
    console.print(table)
    lines = [f"absent: {each.name}, from {each.place}" for each in mixture.absent]
    lines.append(f"next: a source {{path: {mixture.file}, image_folder: {data}, format: mlan}}")
    for line in lines:
        console.print(Text(line), soft_wrap=True)


def _table(console: Console, title: str, *names: str, left: int = 1) -> Table:
    """Return a table of which the first `left` columns are words and the others numbers."""
    lines = box.SIMPLE_HEAD if console.is_terminal else None
    table = Table(title=title, title_justify="left", box=lines, title_style="bold")
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number < left else "right", overflow="fold")
    return table


def _sources(console: Console, sources: Sequence[SourceCounts]) -> Table:
    names = ("for", "source", "records", "usable", "text", "image", "tokens", "median", "longest")
    table = _table(console, "Sources", *names, "trained", left=2)
    for source in sources:
        counts = source.to_dict()
        numbers = [counts[key] for key in ("records", "usable", "text", "image")]
        tokens = [counts["tokens"], counts["median_length"] or 0, counts["longest"]]
        share = source.num_trained_tokens / max(source.num_tokens_in_limit, 1)
        trained = f"{share:.1%}" if source.side == "train" else ""
        shown = [f"{n:,}" for n in numbers]
        shown += [f"{n:,.0f}" if source.side != "captions" else "" for n in tokens]
        table.add_row(source.side, Text(source.name), *shown, trained)
    return table


def _tasks(console: Console, sources: Sequence[SourceCounts]) -> Table:
    table = _table(console, "Tasks", "for", "source", "task", "records", left=3)
    for source in sources:
        for task, count in source.tasks.most_common(_MOST_TASKS):
            table.add_row(source.side, Text(source.name), Text(task or "(none)"), f"{count:,}")
        if (more := len(source.tasks) - _MOST_TASKS) > 0:
            rest = source.tasks.total() - sum(n for _, n in source.tasks.most_common(_MOST_TASKS))
            table.add_row(source.side, Text(source.name), f"... {more} more", f"{rest:,}")
    return table


def _mixture(console: Console, report: DataReport) -> Table:
    table = _table(
        console, "Mixture of an epoch", "source", "modality", "held", "asked", "drawn", left=2
    )
    for row in report.epoch.mixture if report.epoch else ():
        modality = "any" if row.modality is None else _MODALITIES[row.modality]
        numbers = (f"{row.held:,}", f"{row.asked:,.1f}", f"{row.realised:,}")
        table.add_row(Text(row.part), modality, *numbers)
    return table


def _is_mixed(report: DataReport) -> bool:
    """Whether an epoch is anything but every record once."""
    drawn = report.epoch.mixture if report.epoch else ()
    return any(row.realised != row.held for row in drawn)


def _print_lengths(console: Console, trained: Sequence[SourceCounts], limit: int) -> None:
    series = [
        np.concatenate([np.zeros(0, np.int64), *(counts.lengths_of(side) for counts in trained)])
        for side in (0, 1)
    ]
    rows = [
        (f"{bin.low:,}-{bin.high:,}", bin.counts, "over max_length" if bin.low > limit else "")
        for bin in binned(series)
    ]
    _print_bars(console, f"Tokens of an example to train on (data.max_length {limit:,})", rows)


def _print_image_tokens(console: Console, trained: Sequence[SourceCounts]) -> None:
    counts = count_image_tokens(trained)
    if not set(counts) - {0}:
        return
    if len(counts) <= _MOST_TASKS:
        rows = [
            (f"{tokens:,}", (counts[tokens], 0) if not tokens else (0, counts[tokens]), "")
            for tokens in sorted(counts)
        ]
    else:
        every = np.repeat(list(counts), list(counts.values()))
        bins = binned([np.asarray(every, np.int64)])
        rows = [(f"{bin.low:,}-{bin.high:,}", (0, *bin.counts), "") for bin in bins]
    _print_bars(console, "Image tokens of an example to train on", rows)


def count_image_tokens(sources: Sequence[SourceCounts]) -> Counter[int]:
    """Add up how many records have how many image tokens."""
    return sum((source.image_tokens for source in sources), Counter())


def _print_bars(
    console: Console, title: str, rows: Sequence[tuple[str, tuple[int, ...], str]]
) -> None:
    """Print one bar a row, text and image one after the other."""
    if not rows:
        return
    console.print(Text(title, "bold"))
    most = max(sum(counts) for _, counts, _ in rows)
    width = max(len(name) for name, _, _ in rows)
    for name, counts, note in rows:
        line = Text(f"  {name:>{width}} ")
        for count, style in zip(counts, _MODALITY_STYLES, strict=True):
            line.append(bar(count, most, _BAR, plain=not console.is_terminal), style)
        line.append(f" {sum(counts):,}")
        line.append(f"  {note}" if note else "", "red")
        console.print(line, soft_wrap=True)
    if console.is_terminal:
        names = zip(_MODALITIES, _MODALITY_STYLES, strict=True)
        console.print(Text.assemble("  ", *((f"█ {name}  ", style) for name, style in names)))
    console.print()


def bar(count: int, most: int, width: int, *, plain: bool = False) -> str:
    """Draw a bar of eighths of a character; of number signs where it is not for a terminal.

    >>> bar(3, 4, 4), bar(1, 64, 4), bar(3, 4, 4, plain=True)
    ('███', '▏', '###')
    """
    if not count:
        return ""
    if plain:
        return "#" * max(round(count / most * width), 1)
    eighths = max(math.floor(count / most * width * 8 + 0.5), 1)
    return _EIGHTHS[-1] * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _print_findings(console: Console, report: DataReport) -> None:
    findings = report.findings
    if not sum(findings.counts.values()):
        console.print(Text("No record is broken, too long, without answer or there twice.\n"))
        return
    table = _table(console, "Findings", "what", *SIDES)
    for kind in KINDS:
        if findings.count(kind):
            numbers = (findings.count(kind, side=side) for side in SIDES)
            table.add_row(HEADINGS[kind], *(f"{n:,}" if n else "" for n in numbers))
    console.print(table)
    for kind in KINDS:
        if not findings.count(kind):
            continue
        console.print(Text(f"{HEADINGS[kind]}:", "bold"))
        for finding in findings.first[kind]:
            console.print(
                Text(f"  {finding.side} {finding.record}  {finding.text}"), soft_wrap=True
            )
        if (more := findings.count(kind) - NUM_LISTED) > 0:
            console.print(Text(f"  ... and {more:,} more; --json FILE lists all", "dim"))
        console.print()


def _limit(report: DataReport, trained: Sequence[SourceCounts]) -> Iterator[str]:
    over = report.findings.count("too_long", side="train")
    if not over:
        yield f"limit: every example to train on fits data.max_length {report.data.max_length:,}"
        return
    cut, turns, out = (
        sum(getattr(source, name) for source in trained)
        for name in ("num_cut", "num_shortened", "num_left_out")
    )
    lost = sum(source.num_lost_tokens for source in trained)
    held = lost + sum(source.num_tokens_in_limit for source in trained)
    examples = "1 example takes" if over == 1 else f"{over:,} examples take"
    fate = "stop the run" if report.data.overflow == "error" else "are left out"
    yield (
        f"limit: {examples} more than data.max_length {report.data.max_length:,} "
        f"(overflow: {report.data.overflow}): {cut:,} are cut, {turns:,} lose their oldest turns, "
        f"{out:,} {fate}; {lost:,} of {held:,} tokens ({lost / max(held, 1):.1%}) are lost"
    )


def _epoch(report: DataReport) -> Iterator[str]:
    epoch = report.epoch
    if epoch is None:
        return
    yield (
        f"an epoch: {epoch.num_samples:,} samples, {epoch.num_tokens:,} tokens, of which "
        f"{epoch.num_trained_tokens:,} ({epoch.trained_share:.1%}) train"
    )
    how = "packed" if report.data.packing else "one sample a row"
    yield (
        f"rows: {epoch.num_rows:,} of data.row_length {epoch.row_length:,} ({how}), "
        f"{epoch.efficiency:.1%} full"
    )
    yield from (f"note: {note}" for note in epoch.notes)


def draw_check(report: DataReport, folder: Path) -> list[Path]:
    """Draw the histograms of what is trained into a folder.

    Returns:
        The files written.
    """
    from varifocal.reports.histogram import image_token_histogram, length_histogram

    trained = [source for source in report.sources if source.side == "train"]
    lengths: Mapping[str, np.ndarray] = {
        name: np.concatenate(
            [np.zeros(0, np.int64), *(counts.lengths_of(side) for counts in trained)]
        )
        for side, name in enumerate(_MODALITIES)
    }
    files: list[Path] = []
    if any(len(values) for values in lengths.values()):
        files.append(folder / "token_lengths.png")
        length_histogram(lengths, files[-1], limit=report.data.max_length)
    counts = count_image_tokens(trained)
    if set(counts) - {0}:
        files.append(folder / "image_tokens.png")
        image_token_histogram(counts, files[-1])
    return files


def print_row(row: ShownRow) -> None:
    """Print a row's tokens in the colours of what they are to the model."""
    console = screen()
    used = row.length - row.num_pad
    console.print(
        Text(
            f"row {row.index} of {row.num_rows:,}: {len(row.segments)} samples, {used:,} of "
            f"{row.length:,} tokens used, {row.num_trained:,} train"
        ),
        soft_wrap=True,
    )
    console.print(_legend(console), soft_wrap=True)
    for segment in row.segments:
        _print_segment(console, segment)
    if row.num_pad:
        _print_border(console, f"segment {len(row.segments)}: padding")
        console.print(_styled(console, "pad", collapsed("pad", row.num_pad)))


def _legend(console: Console) -> Text:
    words = ("prompt", "trained", "image", "pad")
    if not console.is_terminal:
        return Text("what trains stands between [+ and +]; ↵ is a line break")
    styled = ((f" {word} ", _TOKEN_STYLES[word]) for word in words)
    return Text.assemble(
        *(part for part_of_legend in styled for part in (part_of_legend, "  ")), "↵ is a line break"
    )


def _print_segment(console: Console, segment: Segment) -> None:
    member = segment.member
    facts = [
        f"segment {segment.number}: {member.name}",
        *([f"task {member.task}"] if member.task else []),
        _MODALITIES[segment.modality],
        f"positions 0-{segment.num_tokens - 1}",
        f"{segment.num_trained} of {segment.num_tokens} train",
        *(["prompt cut"] if member.encoded.was_cut else []),
        *(["oldest turns left out"] if member.encoded.dropped_turns else []),
        *(["earlier answers are prompt"] if member.encoded.rewritten_answers else []),
        *(["system message left out"] if member.encoded.lost_system else []),
    ]
    _print_border(console, ", ".join(facts))
    for image in segment.images:
        console.print(Text(f"image: {image.name}", "dim"), soft_wrap=True)
    line = Text()
    runs: list[tuple[str, str]] = []
    for token in segment.tokens:
        if runs and runs[-1][0] == token.kind and token.kind != "image":
            runs[-1] = (token.kind, runs[-1][1] + token.text)
        else:
            runs.append((token.kind, token.text))
    for kind, text in runs:
        line.append(_styled(console, kind, text))
    console.print(line, soft_wrap=not console.is_terminal)


def _print_border(console: Console, words: str) -> None:
    if console.is_terminal:
        console.rule(Text(words), align="left", style="dim")
    else:
        console.print(Text(f"--- {words}"), soft_wrap=True)


def _styled(console: Console, kind: str, text: str) -> Text:
    """Colour a run of tokens, or mark it where there is no colour; control characters are named."""
    shown = _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text).replace("\n", "↵\n")
    if console.is_terminal:
        return Text(shown, _TOKEN_STYLES[kind])
    before, after = _TOKEN_MARKS.get(kind, ("", ""))
    return Text(f"{before}{shown}{after}")


def write_page(row: ShownRow, title: str, path: Path) -> None:
    """Write a row as an HTML page; the file is whole or not there.

    Raises:
        VarifocalError: it cannot be written.
    """
    from varifocal.data.inspect.html import html_page

    try:
        write_text(path, html_page(row, title))
    except OSError as error:
        raise VarifocalError(f"'{path}' cannot be written: {error}") from error
