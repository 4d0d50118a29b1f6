"""The frontier study's figures over seeds, their table, and gained against kept as a figure."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from studies.record import over_seeds

ARMS = {
    "mma": "MMA",
    "mma-base-text": "MMA, text_route: base",
    "mma-keep": "MMA, keep",
    "lora": "LoRA, all linears",
    "lora-base-text": "LoRA, text_route: base",
    "full": "full tuning",
    "lora-keep": "LoRA, keep",
    "mma-keep-4": "MMA, keep, weight 4",
    "mma-replay": "MMA, replay",
    "lora-attention": "LoRA, attention only",
    "lora-gate-up": "LoRA, gate and up only",
}
"""Label in studies/retention-frontier.yaml -> what the figure calls it, in the order of running."""

SAME_STEPS = {"mma-base-text": "mma", "lora-base-text": "lora"}
"""Arms that take as many steps as another."""

STRENGTHS = {"mma": (1.0, 0.5, 0.25), "mma-keep": (1.0, 0.5), "lora": (1.0, 0.5)}
"""Arms that are measured at several strengths; the others at 1 alone."""

COLUMNS = {
    "IMG": "questions with an image",
    "TXT": "questions with a text",
    "NO": "questions with neither",
}
"""ScienceQA's column -> what it holds."""
MIN_SEEDS = 3
"""Of fewer, no interval is written: Student's of two seeds is as wide as the scale."""
FIGURES = ("prose_factor", "after_image_factor", "answers_same", "cpu_seconds", "steps")
COLOURS = ("#0072b2", "#56b4e9", "#009e73", "#004d40", "#cc79a7")
COLOURS += ("#d55e00", "#882255", "#e69f00", "#a05000", "#f0a080", "#000000")

Points = Mapping[str, Mapping[int, Mapping[str, Any]]]


def family(arm: str) -> str:
    """Say whose learning rate an arm takes.

    >>> family("mma-keep-4")
    'mma'
    """
    return arm.partition("-")[0]


def gathered(base: Mapping[str, Any], done: Points) -> dict[str, Any]:
    """Put the measured arms together.

    Args:
        base: of the language model alone: `accuracy`, `prose_nats`, `after_image_nats`.
        done: arm (`mma at 0.5` for a strength) -> seed -> what was measured.

    Returns:
        `base`, and `arms` over seeds: accuracy by column, perplexity over the base's of prose and
        of answers after an image, answers unchanged in percent, CPU seconds, steps, and the cost
        of a step over that of the same seed's `mma`; `less_mma`: accuracy less that seed's.
    """
    arms = {}
    for name, points in done.items():
        each = {seed: _relative(points[seed], base) for seed in sorted(points)}
        usual = {seed: done["mma"][seed]["step_seconds"] for seed in each}
        arms[name] = {
            "seeds": sorted(points),
            "accuracy": {
                column: over_seeds([one["accuracy"][column] for one in each.values()])
                for column in (*COLUMNS, "average")
            },
            "less_mma": {
                column: over_seeds(
                    [
                        one["accuracy"][column] - done["mma"][seed]["accuracy"][column]
                        for seed, one in each.items()
                    ]
                )
                for column in (*COLUMNS, "average")
            },
            **{key: over_seeds([one[key] for one in each.values()]) for key in FIGURES},
            "step_cost": over_seeds(
                [one["step_seconds"] / usual[seed] for seed, one in each.items()]
            ),
        }
    return {"base": dict(base), "arms": arms}


def _relative(figures: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Turn nats a token into perplexity over the base's."""
    factors = {
        f"{kind}_factor": math.exp(figures[f"{kind}_nats"] - base[f"{kind}_nats"])
        for kind in ("prose", "after_image")
    }
    return {**figures, **factors}


def title(name: str) -> str:
    """Write an arm as the table and the figure call it.

    >>> title("mma at 0.5")
    'MMA, strength 0.5'
    """
    arm, _, strength = name.partition(" at ")
    return ARMS[arm] + (f", strength {strength}" if strength else "")


def table(results: Mapping[str, Any]) -> str:
    """Write the figures as a Markdown table."""
    head = ["arm", *COLUMNS, "prose, x base", "after an image, x base", "answers unchanged, %"]
    head += ["a step, x MMA's", "steps", "CPU s", "seeds"]
    lines = [row(head), "|---|" + "---:|" * (len(head) - 1)]
    base = results["base"]
    start = [f"{base['accuracy'][column]:.1f}" for column in COLUMNS]
    lines.append(row(["language model alone", *start, "1", "1", "100", "", "", "", ""]))
    for name, figures in results["arms"].items():
        cells = [in_brackets(figures["accuracy"][column], ".1f") for column in COLUMNS]
        cells += [in_brackets(figures[key], ".3f") for key in FIGURES[:2]]
        cells += [
            in_brackets(figures["answers_same"], ".1f"),
            f"{figures['step_cost']['mean']:.2f}",
        ]
        cells += [f"{figures[key]['mean']:.0f}" for key in ("steps", "cpu_seconds")]
        lines.append(row([title(name), *cells, str(len(figures["seeds"]))]))
    return "\n".join(lines)


def differences(results: Mapping[str, Any]) -> str:
    """Write what each arm gained or lost against MMA as it is, seed by seed."""
    lines = [row(["less MMA, points", *COLUMNS, "average"]), "|---|" + "---:|" * 4]
    for name, figures in results["arms"].items():
        if name != "mma":
            less = [figures["less_mma"][column] for column in (*COLUMNS, "average")]
            lines.append(row([title(name), *(in_brackets(one, "+.1f") for one in less)]))
    return "\n".join(lines)


def rates_table(results: Mapping[str, Any]) -> str:
    """Write what each learning rate answered, of the questions that choose."""
    lines = [row(["family", "learning rate", *COLUMNS, "average"]), "|---|" + "---:|" * 5]
    for name, tried in results["rates"].items():
        for rate, accuracy in tried.items():
            cells = [f"{accuracy[column]:.1f}" for column in (*COLUMNS, "average")]
            lines.append(row([name, rate, *cells]))
    return "\n".join(lines)


def row(cells: list[str]) -> str:
    """Write a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def in_brackets(figure: Mapping[str, Any], form: str) -> str:
    """Write a mean with its interval, of few seeds without.

    >>> in_brackets(over_seeds([1.0, 2.0, 3.0]), ".1f"), in_brackets(over_seeds([1.0, 2.0]), ".1f")
    ('2.0 (-0.5 to 4.5)', '1.5')
    """
    mean = f"{figure['mean']:{form}}"
    if len(figure["values"]) < MIN_SEEDS:
        return mean
    return f"{mean} ({figure['low']:{form}} to {figure['high']:{form}})"


def draw(results: Mapping[str, Any], file: Path) -> None:
    """Draw each column's right answers against what prose costs; a dial's strengths are a line."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    panels = figure.subplots(1, len(COLUMNS))
    arms = results["arms"]
    for panel, column in zip(panels, COLUMNS, strict=True):
        for (arm, name), colour in zip(ARMS.items(), COLOURS, strict=True):
            names = [each for each in arms if each.partition(" at ")[0] == arm]
            if not names:
                continue
            kept = [arms[each]["prose_factor"]["mean"] for each in names]
            gained = [arms[each]["accuracy"][column]["mean"] for each in names]
            panel.plot(kept, gained, "-", color=colour, lw=1, alpha=0.6)
            panel.plot(kept[1:], gained[1:], ".", color=colour, ms=5)
            panel.plot(kept[:1], gained[:1], "o", color=colour, ms=7, label=name)
        panel.axhline(results["base"]["accuracy"][column], color="#777777", lw=1)
        panel.axvline(1, color="#777777", lw=1)
        panel.set(title=f"{column}: {COLUMNS[column]}", xscale="log")
        panel.set_xlabel("perplexity of prose over the base's")
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.grid(linewidth=0.4, alpha=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("right, %")
    lines, names = panels[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=150)
