"""The LaVIN study's figures over seeds, the differences its ablation asks for, their image."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from studies.record import over_seeds

SETTINGS = {
    "text-only": "text only",
    "images": "+ images",
    "tower-adapters": "+ adapters in the encoder",
    "router": "+ router (MMA)",
    "router-token": "+ router, by patch",
    "lora": "LoRA",
    "connector": "connector alone",
}
"""Label in studies/lavin.yaml -> what the figure calls it."""

STEPS = (
    ("images", "text-only"),
    ("tower-adapters", "images"),
    ("router", "tower-adapters"),
    ("router-token", "router"),
    ("lora", "images"),
    ("connector", "images"),
)
"""Settings whose difference, seed by seed, is asked for."""

MIN_SEEDS = 3
"""Student's interval of two seeds is as wide as the scale, so fewer than these are shown alone."""

COLUMNS = ("TXT", "IMG", "NO", "average")
BLUE, ORANGE, GRAY = "#0072b2", "#d55e00", "#777777"
"""Of Okabe and Ito's colours, which the colour-blind can tell apart."""

Points = Mapping[str, Mapping[int, Mapping[str, Any]]]


def gathered(base: Mapping[str, Any], done: Points) -> dict[str, Any]:
    """Put the measured points together.

    Args:
        base: of the language model alone: `accuracy`, `questions`, `chance`, `text_nats`.
        done: setting -> seed -> what was measured; a setting may have no seed yet.

    Returns:
        `base`; `settings` with accuracy by column, nats a token of plain text above the base's,
        CPU seconds, tokens and trained parameters; `differences` paired by seed.
    """
    settings = {name: _over(base, points) for name, points in done.items() if points}
    differences = {
        f"{later} - {earlier}": {
            column: over_seeds([_percent(done, later, s, column, earlier) for s in seeds])
            for column in COLUMNS
        }
        for later, earlier in STEPS
        if (seeds := sorted(done.get(later, {}).keys() & done.get(earlier, {}).keys()))
    }
    return {"base": dict(base), "settings": settings, "differences": differences}


def _percent(done: Points, later: str, seed: int, column: str, earlier: str) -> float:
    one, other = (done[name][seed]["accuracy"][column] for name in (later, earlier))
    return one - other


def _over(base: Mapping[str, Any], points: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    each = [points[seed] for seed in sorted(points)]
    started = base["text_nats"]
    return {
        "seeds": sorted(points),
        "accuracy": {
            column: over_seeds([one["accuracy"][column] for one in each]) for column in COLUMNS
        },
        "text_nats_gained": None
        if started is None
        else over_seeds([one["text_nats"] - started for one in each]),
        "cpu_seconds": over_seeds([one["cpu_seconds"] for one in each]),
        "tokens": over_seeds([one["tokens"] for one in each]),
        "trained_parameters": each[0]["trained_parameters"],
    }


def table(results: Mapping[str, Any]) -> str:
    """Write the figures as the page's Markdown table."""
    lines = [
        "| setting | TXT | IMG | NO | average | trained | CPU min | plain text, nats |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    base = results["base"]
    start = [f"{base['accuracy'][column]:.1f}" for column in COLUMNS]
    nats = "" if base["text_nats"] is None else f"{base['text_nats']:.2f}"
    lines.append(f"| language model alone | {' | '.join(start)} | 0 | | {nats} |")
    for name, figures in results["settings"].items():
        cells = [_mean(figures["accuracy"][column], ".1f") for column in COLUMNS]
        trained = f"{sum(figures['trained_parameters'].values()):,}"
        minutes = f"{figures['cpu_seconds']['mean'] / 60:.1f}"
        gained = figures["text_nats_gained"]
        told = "" if gained is None else _mean(gained, "+.2f")
        lines.append(f"| {SETTINGS[name]} | {' | '.join(cells)} | {trained} | {minutes} | {told} |")
    return "\n".join(lines)


def differences(results: Mapping[str, Any]) -> str:
    """Write the paired differences as a Markdown table."""
    lines = ["| difference, points | TXT | IMG | NO | average |", "|---|---:|---:|---:|---:|"]
    for name, columns in results["differences"].items():
        later, earlier = (SETTINGS[each] for each in name.split(" - "))
        cells = [_mean(columns[column], "+.1f") for column in COLUMNS]
        lines.append(f"| {later} less {earlier} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(figure: Mapping[str, Any], form: str) -> str:
    """Write a mean with its interval, or of fewer than three seeds with the seeds themselves.

    >>> _mean(over_seeds([1.0, 2.0, 3.0]), "+.1f"), _mean(over_seeds([1.0, 3.0]), ".1f")
    ('+2.0 (-0.5 to +4.5)', '2.0 (1.0, 3.0)')
    """
    values = figure["values"]
    if len(values) == 1:
        return f"{values[0]:{form}}"
    if len(values) < MIN_SEEDS:
        return f"{figure['mean']:{form}} ({', '.join(f'{value:{form}}' for value in values)})"
    return f"{figure['mean']:{form}} ({figure['low']:{form}} to {figure['high']:{form}})"


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Draw accuracy by column, and what the plain text cost, a row a setting."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    names = [name for name in SETTINGS if name in results["settings"]]
    for panel, column in zip(panels, ("IMG", "TXT", "NO"), strict=False):
        _dots(panel, [results["settings"][name]["accuracy"][column] for name in names], BLUE)
        base = results["base"]
        panel.axvline(base["chance"][column], color=GRAY, ls=":", lw=1, label="a blind guess")
        panel.axvline(base["accuracy"][column], color=GRAY, lw=1, label="language model alone")
        panel.set(title=column, xlabel="right, %", xlim=(0, 103))
    gained = [results["settings"][name]["text_nats_gained"] for name in names]
    if all(gained) and gained:
        _dots(panels[3], gained, ORANGE)
        values = [value for one in gained for value in one["values"]]
        panels[3].set_xlim(min(0, *values) - 0.3, max(1, *values) + 0.3)
    panels[3].axvline(0, color=GRAY, linewidth=1)
    panels[3].set(title="cost in plain text", xlabel="nats a token more")
    panels[0].set_yticks(range(len(names)), [SETTINGS[name] for name in names])
    panels[0].invert_yaxis()
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, dpi=150)


def _dots(panel: Any, figures: list[Mapping[str, Any]], colour: str) -> None:
    """Mark each row's seeds, mean, and interval where there is one."""
    for row, one in enumerate(figures):
        if len(one["values"]) >= MIN_SEEDS:
            low, high = one["low"], one["high"]
            panel.plot([low, high], [row, row], color=colour, linewidth=1.5, alpha=0.6)
        values = one["values"]
        panel.plot(values, [row] * len(values), "o", color="white", markeredgecolor=colour, ms=4)
        panel.plot([one["mean"]], [row], "|", color=colour, markersize=14, markeredgewidth=2.5)
    panel.grid(axis="x", linewidth=0.4, alpha=0.5)
    panel.spines[["top", "right"]].set_visible(False)
