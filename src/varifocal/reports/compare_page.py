"""A comparison as one HTML file: tables, and the items won and lost with their images.

Made of what `compare.json` holds. The file needs nothing next to it and nothing from the network;
every text in it is escaped, images are made small, and there is a most to everything.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from varifocal.data.example import Image
from varifocal.errors import DataError
from varifocal.writing import write_json, write_text

STYLE = """
:root { --ink: #22272e; --faint: #6b7480; --line: #dfe3e8; --ground: #f6f7f9;
  --first: #2f6db5; --second: #b5611c; --right: #2e7d43; --wrong: #b93a32; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 48px; }
h1 { font-size: 24px; line-height: 1.25; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 4px; padding-top: 20px; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
h3 { font-size: 15px; margin: 28px 0 12px; overflow-wrap: anywhere; }
h3::before { content: ""; display: inline-block; width: 10px; height: 10px; border-radius: 2px;
  margin-right: 8px; background: var(--right); }
h3.lost::before { background: var(--wrong); }
.count { color: var(--faint); font-weight: normal; }
.first { color: var(--first); }
.second { color: var(--second); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 8px 0; }
th, td { text-align: right; padding: 5px 12px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { font-weight: 600; font-size: 13px; color: var(--faint); vertical-align: bottom;
  white-space: normal; max-width: 220px; overflow-wrap: break-word; }
tbody th { font-weight: 600; min-width: 64px; max-width: 340px; white-space: normal;
  overflow-wrap: break-word; }
td svg { display: block; }
small { color: var(--faint); }
details { margin: 10px 0; }
summary { cursor: pointer; color: var(--faint); }
.notes { margin: 10px 0; padding: 10px 14px 10px 30px; background: #fdf5e4; border-radius: 6px;
  overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(330px, 1fr)); gap: 14px; }
article { background: var(--ground); border: 1px solid var(--line); border-radius: 8px;
  overflow: hidden; display: flex; flex-direction: column; }
.images { background: #fff; border-bottom: 1px solid var(--line); text-align: center;
  padding: 8px; }
.images img { max-width: 100%; height: auto; max-height: 220px; width: auto; margin: 0 2px; }
.text { padding: 12px 14px; display: flex; flex-direction: column; flex: 1; }
.question { margin: 0 0 8px; font-weight: 600; white-space: pre-line; overflow-wrap: anywhere; }
article ul { list-style: none; margin: 0; padding: 0; }
article li { display: flex; gap: 8px; align-items: baseline; padding: 3px 8px; border-radius: 5px;
  flex-wrap: wrap; }
article li span { flex: 1; min-width: 60%; overflow-wrap: anywhere; white-space: pre-line; }
article li b { color: var(--faint); }
article li.gold { background: #e2f1e6; box-shadow: inset 3px 0 var(--right); }
em { font-style: normal; font-size: 12px; padding: 0 7px; border-radius: 9px; color: #fff;
  max-width: 130px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
em.first { background: var(--first); color: #fff; }
em.second { background: var(--second); color: #fff; }
.about, .gone, .more, footer { color: var(--faint); font-size: 12.5px; overflow-wrap: anywhere; }
.about { margin: auto 0 0; padding-top: 10px; }
.gone { margin: 6px; }
@media (max-width: 620px) {
  main { padding: 20px 16px 32px; }
  th, td { padding: 5px 8px; }
  td small { display: block; }
  .cards { grid-template-columns: 1fr; }
}
footer { margin-top: 40px; border-top: 1px solid var(--line); padding-top: 12px; }
"""


MOST_CARDS = 60
"""Items of a suite and a kind that are drawn; the JSON has all."""

MOST_TEXT = 600
"""Characters of a question or an answer that are shown."""

MOST_IMAGES = 2
"""Images of an item that are shown."""

IMAGE_SIDE = 320
"""Longest side of an image on the page, in pixels."""

MOST_BYTES = 12_000_000
"""Of all images together; items beyond stand without theirs."""

_DULL = ("split", "hint", "task")  # tags that tell nothing on a card

_KINDS = (
    ("won", "Won: {first} wrong, {second} right"),
    ("lost", "Lost: {first} right, {second} wrong"),
)
_HEAD = ("", "items", "{first} %", "{second} %", "difference, points", "", "won", "lost", "p")


def write_comparison(comparison: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write `compare.json` and `compare.html` of a comparison, and return their paths.

    Args:
        comparison: as `compare.json` has it.
        folder: where they go.

    Raises:
        RunError: the disk is full.
    """
    files = folder / "compare.json", folder / "compare.html"
    write_json(files[0], comparison)
    write_text(files[1], page(comparison))
    return files


def page(comparison: Mapping[str, Any]) -> str:
    """Return the page of a comparison as HTML."""
    names = {key: escape(str(comparison[key])) for key in ("first", "second")}
    album = _Album()
    body = "\n".join(_suite(suite, names, album) for suite in comparison["suites"])
    notes = _notes(comparison.get("notes", ()))
    title = f"{names['first']} and {names['second']}"
    return (
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>\n"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
        "<meta http-equiv='Content-Security-Policy' "
        "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">\n"
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1><span class='first'>{names['first']}</span> and "
        f"<span class='second'>{names['second']}</span> on the same items</h1>\n"
        f"{notes}\n{body}\n<footer>{_FOOT.format(seed=int(comparison['seed']))}</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


_FOOT = (
    "Difference: second minus first. Intervals are 95 %: Wilson's for shares of right answers, the "
    "percentile bootstrap over items (seed {seed}) for averages, paired for differences. p: "
    "McNemar's exact test, two-sided, of each line by itself; of twenty lines about one falls "
    "below 0.05 by chance."
)


class _Album:
    """Images as data addresses, until their bytes are spent."""

    def __init__(self) -> None:
        self._left = MOST_BYTES

    def show(self, place: str) -> str:
        """Return an image element, or what stands in its place."""
        try:
            image = Image(path=Path(place)).open()
        except DataError as error:
            return f"<p class='gone'>{escape(_cut(str(error)))}</p>"
        image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=85)
        content = base64.b64encode(file.getvalue()).decode()
        if len(content) > self._left:
            return f"<p class='gone'>{escape(_cut(place))}</p>"
        self._left -= len(content)
        return (
            f"<img src='data:image/jpeg;base64,{content}' width='{image.width}' "
            f"height='{image.height}' alt='{escape(Path(place).name)}'>"
        )


def _suite(suite: Mapping[str, Any], names: Mapping[str, str], album: _Album) -> str:
    parts = [f"<section>\n<h2>{escape(suite['suite'])}</h2>", _notes(suite["notes"])]
    parts.append(f"<p>{int(suite['shared']):,} shared items.</p>")
    parts += [f"<p>{escape(sentence)}.</p>" for sentence in suite["blind_rules"]]
    rows = list(suite["rows"])
    plain = [row for row in rows if ": " not in row["name"]]
    by_tag = [row for row in rows if ": " in row["name"]]
    if plain:
        parts.append(_table(plain, names))
    if by_tag:
        summary = f"<summary>By tag: {len(by_tag)} lines</summary>"
        parts.append(f"<details>{summary}{_table(by_tag, names)}</details>")
    for kind, title in _KINDS:
        items = [item for item in suite["items"] if item["kind"] == kind]
        items.sort(key=lambda item: not item["images"])  # those with something to see come first
        parts += _cards(items, title.format(**names), kind, names, album)
    changed = sum(item["kind"] == "changed" for item in suite["items"])
    if changed:
        parts.append(
            f"<p class='more'>{changed:,} more with another answer that earns as much: in the "
            "JSON.</p>"
        )
    return "\n".join([*parts, "</section>"])


def _cards(
    items: Sequence[Mapping[str, Any]],
    title: str,
    kind: str,
    names: Mapping[str, str],
    album: _Album,
) -> Iterator[str]:
    yield f"<h3 class='{kind}'>{title} <span class='count'>{len(items):,}</span></h3>"
    if not items:
        yield "<p class='more'>None.</p>"
        return
    cards = "\n".join(_card(item, names, album) for item in items[:MOST_CARDS])
    yield f"<div class='cards'>\n{cards}\n</div>"
    if len(items) > MOST_CARDS:
        yield f"<p class='more'>{len(items) - MOST_CARDS:,} more in the JSON.</p>"


def _card(item: Mapping[str, Any], names: Mapping[str, str], album: _Album) -> str:
    images = "".join(album.show(str(place)) for place in item["images"][:MOST_IMAGES])
    more = len(item["images"]) - MOST_IMAGES
    beyond = f"<p class='gone'>and {more} more images</p>" if more > 0 else ""
    shown = f"<div class='images'>{images}{beyond}</div>" if images else ""
    question = escape(_cut(_bare(item))) or "<i>the file does not keep the question</i>"
    values = [str(value) for key, value in item["tags"].items() if value and key not in _DULL]
    tags = ", ".join(dict.fromkeys(values))
    about = escape(_cut(f"{item['id']}" + (f" · {tags}" if tags else ""), 160))
    return (
        f"<article>{shown}<div class='text'><p class='question'>{question}</p>"
        f"{_options(item, names)}<p class='about'>{about}</p></div></article>"
    )


def _bare(item: Mapping[str, Any]) -> str:
    """The question without the line of options, which the card shows in its own way."""
    lines = str(item["question"]).strip().splitlines()
    shown = [line for line in lines if not (item["options"] and line.startswith("Options:"))]
    return "\n".join(shown).removeprefix("Question: ")


def _options(item: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Options with who chose which; or the two answers and the gold one, where it was written."""
    options, gold = list(item["options"]), str(item["gold"])
    sides = list(zip(("first", "second"), item["answers"], item["read"], strict=True))
    lines = []
    if options:
        for letter, option in zip(ascii_uppercase, options, strict=False):
            right = " class='gold'" if option == gold else ""
            choosers = [side for side, answer, read in sides if read and answer == option]
            marks = "".join(_mark(side, names) for side in choosers)
            text = f"<span>{escape(_cut(option))}</span>"
            lines.append(f"<li{right}><b>{letter}</b>{text}{marks}</li>")
    for side, answer, read in sides:
        if not (read and answer in options):
            text = escape(_cut(str(answer))) or "nothing"
            note = "" if read else " <i>(names no answer)</i>"
            lines.append(f"<li class='free'>{_mark(side, names)}<span>{text}{note}</span></li>")
    if gold not in options:
        lines.append(f"<li class='gold free'><b>right</b><span>{escape(_cut(gold))}</span></li>")
    return f"<ul>{''.join(lines)}</ul>"


def _mark(side: str, names: Mapping[str, str]) -> str:
    return f"<em class='{side}'>{names[side]}</em>"


def _table(rows: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> str:
    head = "".join(f"<th>{title.format(**names)}</th>" for title in _HEAD)
    reach = max((abs(row["difference"][end]) for row in rows for end in ("low", "high")), default=1)
    lines = "".join(_line(row, max(reach, 1.0)) for row in rows)
    table = f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody>"
    return f"<div class='wide'><table>{table}</table></div>"


def _line(row: Mapping[str, Any], reach: float) -> str:
    cells = [f"<th>{escape(row['name'])}</th>", f"<td>{row['count']:,}</td>"]
    cells += [f"<td>{_interval(row[side])}</td>" for side in ("first", "second")]
    cells.append(f"<td>{_interval(row['difference'], '+.1f')}</td>")
    cells.append(f"<td>{_whisker(row['difference'], reach)}</td>")
    cells += [f"<td>{'' if row[key] is None else row[key]}</td>" for key in ("won", "lost")]
    cells.append(f"<td>{'' if row['p'] is None else say_p(row['p'])}</td>")
    return f"<tr>{''.join(cells)}</tr>"


def _interval(score: Mapping[str, float], form: str = ".1f") -> str:
    low, high = format(score["low"], form), format(score["high"], form)
    return f"{format(score['value'], form)} <small>{low} to {high}</small>"


def _whisker(score: Mapping[str, float], reach: float) -> str:
    """Draw a difference and its interval about a line at zero, `reach` points to either side."""

    def place(points: float) -> float:
        return 70 + 66 * points / reach

    low, value, high = (place(score[key]) for key in ("low", "value", "high"))
    sure = score["low"] > 0 or score["high"] < 0
    colour = "#22272e" if not sure else "#2e7d43" if score["value"] > 0 else "#b93a32"
    return (
        "<svg width='140' height='14' viewBox='0 0 140 14' aria-hidden='true'>"
        "<line x1='70' y1='0' x2='70' y2='14' stroke='#c3c9d1'/>"
        f"<line x1='{low:.1f}' y1='7' x2='{high:.1f}' y2='7' stroke='{colour}' stroke-width='2'/>"
        f"<circle cx='{value:.1f}' cy='7' r='3.5' fill='{colour}'/></svg>"
    )


def say_p(p: float) -> str:
    """Say a p-value.

    >>> say_p(0.0390625), say_p(0.00002)
    ('0.039', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    return f"<ul class='notes'>{''.join(f'<li>{escape(note)}</li>' for note in notes)}</ul>"


def _cut(text: str, most: int = MOST_TEXT) -> str:
    return text if len(text) <= most else f"{text[: most - 4].rstrip()} ..."
