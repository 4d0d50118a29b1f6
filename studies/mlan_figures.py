"""The MLAN study's image and table, from what `mlan.json` holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.mlan_claims import ASKED
from varifocal.evaluation.statistics import wilson
from varifocal.plotting import FAINT, INK, new_figure, save_figure

ROWS, COST, BASE = "#0072b2", "#d55e00", "#7f7f7f"
"""Okabe and Ito's blue and vermilion, told apart by colour-blind readers; grey."""
SHOWN = {0.0: "#000000", 0.25: "#e69f00", 0.5: "#009e73", 0.75: "#56b4e9", 1.0: "#d55e00"}
"""Shares whose way is drawn."""


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Draw percent right and evidence against the share of language, and evidence against tokens.

    Args:
        results: as `mlan_results.collect` gives them, with one share at least.
        path: the PNG to write.
    """
    figure = new_figure(12, 12)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(len(ASKED), 3)
    for suite, (right, evidence, along) in zip(ASKED, grid, strict=True):
        _draw_shares(right, results, suite, "right")
        _draw_shares(evidence, results, suite, "evidence")
        _draw_tokens(along, results["points"], suite)
        right.set_title(f"{suite} skills", loc="left", color=INK)
        right.set_ylabel("right, %")
        evidence.set_ylabel("right choice's log-probability, nats")
        along.set_ylabel("right choice's log-probability, nats")
    grid[0, 1].legend(frameon=False, fontsize=8)
    grid[0, 2].legend(frameon=False, fontsize=8, title="language, %", title_fontsize=8)
    for place in (0, 1):
        grid[-1, place].set_xlabel("rows that are language, %")
    grid[-1, 2].set_xlabel("tokens of stage 2, thousands")
    save_figure(figure, path)


def _draw_shares(axes: Any, results: Mapping[str, Any], suite: str, measure: str) -> None:
    """Draw a mean and its interval at each share, the base as a band."""
    asked = results["chance"][suite]
    axes.axhline(asked[measure], color=FAINT, linestyle=":", linewidth=1, label="guessing")
    base = results["base"][measure][suite]
    axes.axhline(base["mean"], color=BASE, linestyle="--", linewidth=1, label="stage 1 alone")
    if ends := interval(base, asked["questions"], measure):
        axes.axhspan(*ends, color=BASE, alpha=0.15, linewidth=0)
    for key, colour, marker, aside, label in (
        ("equal_rows", ROWS, "o", -0.7, "equal rows"),
        ("equal_cost", COST, "s", 0.7, "equal tokens"),
    ):
        figures = [row[key][measure][suite] for row in results["shares"]]
        means = [one["mean"] for one in figures]
        places = [100 * row["share"] + aside for row in results["shares"]]
        axes.plot(places, means, marker + "-", color=colour, markersize=4, label=label)
        for place, one in zip(places, figures, strict=True):
            if ends := interval(one, asked["questions"], measure):
                axes.plot([place] * 2, ends, color=colour, alpha=0.5)
    _plain(axes)


def interval(figure: Mapping[str, Any], questions: int, measure: str) -> tuple[float, float] | None:
    """The 95 % interval over seeds; of one seed's percent right, over questions (Wilson's).

    >>> interval({"mean": 50.0, "low": 45.0, "high": 55.0}, 56, "right")
    (45.0, 55.0)
    >>> [round(end, 1) for end in interval({"mean": 50.0, "low": None}, 56, "right")]
    [37.3, 62.7]
    """
    if figure["low"] is not None:
        return figure["low"], figure["high"]
    if measure != "right":
        return None
    low, high = wilson(round(figure["mean"] * questions / 100), questions)
    return 100 * low, 100 * high


def _draw_tokens(axes: Any, points: Sequence[Mapping[str, Any]], suite: str) -> None:
    """Draw the way of some shares: the mean over seeds at each scored moment."""
    for share, colour in SHOWN.items():
        ways = [one["moments"] for one in points if one["share"] == share]
        if not ways:
            continue
        moments = paired(ways)
        tokens = [_mean(one["tokens"] for one in each) / 1000 for each in moments]
        evidence = [_mean(one["evidence"][suite] for one in each) for each in moments]
        axes.plot(tokens, evidence, "o-", color=colour, markersize=4, label=f"{100 * share:g}")
    _plain(axes)


def paired(ways: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Put the moments of several runs side by side, ends with ends, whatever their number.

    >>> paired([["start", "half", "late", "end"], ["start", "half", "end"]])
    [('start', 'start'), ('half', 'half'), ('end', 'end')]
    """
    fewest = min(map(len, ways))
    return list(zip(*([*way[: fewest - 1], way[-1]] for way in ways), strict=True))


def _mean(values: Any) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=FAINT, alpha=0.3, linewidth=0.6)


def print_table(results: Mapping[str, Any]) -> None:
    """Print a line a share: what it cost, and percent right with intervals."""
    base = results["base"]["right"]
    suites = [name for name, figures in base.items() if figures]
    print(f"\n{'language %':>11}{'tokens':>9}{'TFLOP':>8}{'minutes':>9}{'pictures':>10}", end="")
    print("".join(f"{name:>24}" for name in suites))
    print(f"{'stage 1':>11}{'':36}", end="")
    print("".join(f"{told(base[name]):>24}" for name in suites))
    for row in results["shares"]:
        cost = row["cost"]
        print(
            f"{100 * row['share']:>11g}{cost['tokens']:>9.0f}{cost['tflop']:>8.2f}"
            f"{cost['minutes']:>9.2f}{cost['pictures']:>10.0f}",
            end="",
        )
        print("".join(f"{told(row['equal_rows']['right'][name]):>24}" for name in suites))


def told(figure: Mapping[str, Any] | None) -> str:
    """Write a figure with its interval; nothing where it was not asked.

    >>> told({"mean": 41.24, "low": 38.0, "high": 44.5}), told({"mean": 41.24, "low": None})
    ('41.2 (38.0 to 44.5)', '41.2')
    """
    if figure is None:
        return ""
    if figure["low"] is None:
        return f"{figure['mean']:.1f}"
    return f"{figure['mean']:.1f} ({figure['low']:.1f} to {figure['high']:.1f})"
