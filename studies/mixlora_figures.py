"""The MixLoRA study's images and tables, from what `mixlora.json` holds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from varifocal.plotting import FAINT, INK, new_figure, save_figure

COLOURS = {"lora": "#e69f00", "weighted": "#0072b2", "hard": "#009e73", "random": "#7f7f7f"}
"""Okabe and Ito's, told apart by colour-blind readers."""
NAMES = {"lora": "LoRA", "weighted": "learnt", "hard": "fixed", "random": "random"}


def kind_of(setting: str) -> str:
    """Name the way of choosing factors.

    >>> kind_of("r4-hard-independent"), kind_of("lora-r16")
    ('hard', 'lora')
    """
    return next(kind for kind in COLOURS if kind in setting.split("-"))


def title_of(setting: str) -> str:
    """Write a setting out.

    >>> title_of("r4-hard-independent"), title_of("r2-random"), title_of("lora-r16")
    ('E16 r4 fixed, independent', 'E16 r2 random', 'LoRA r16')
    """
    words = setting.split("-")
    if words[0] == "lora":
        return f"LoRA {words[1]}"
    rest = ", ".join([NAMES[words[1]], *words[2:]])
    return f"E16 {words[0]} {rest}"


def draw_all(results: Mapping[str, Any], out: Path) -> None:
    """Draw what is there: `mixlora.png`, `mixlora-interference.png`, `mixlora-factors.png`."""
    if results["settings"]:
        draw_losses(results, out / "mixlora.png")
    if results["interference"]["before"] or results["interference"]["after"]:
        draw_interference(results["interference"], out / "mixlora-interference.png")
    if results["routing"]:
        draw_factors(results["routing"], out / "mixlora-factors.png")


def draw_losses(results: Mapping[str, Any], path: Path) -> None:
    """Draw each setting's loss of the right answer by task, and its share of right answers."""
    settings = _in_order(results["settings"])
    panels = [(task, "loss") for task in results["tasks"]]
    panels.insert(1, ("all", "accuracy"))
    rows = -(-len(panels) // 4)
    figure = new_figure(10.5, rows * (0.9 + 0.2 * len(settings)))
    figure.set_layout_engine("constrained")
    places = figure.subplots(rows, 4, sharey=True).flat
    for (task, key), axes in zip(panels, places, strict=False):
        _dots(axes, [results["settings"][name]["tasks"][task][key] for name in settings], settings)
        blind = results["tasks"][task]["even_loss" if key == "loss" else "chance"]
        axes.axvline(blind, color=INK, linewidth=0.8, linestyle=":")
        what = "loss, nats" if key == "loss" else "right, %"
        name = "all tasks" if task == "all" else task
        axes.set_title(f"{name}: {what}", color=INK, fontsize=9.5, loc="left")
    for axes in places:  # those that are left
        axes.set_axis_off()
    figure.supxlabel(
        "dots: seeds; strokes: their means; dotted: every option alike (a guess)",
        fontsize=9.5,
        color=INK,
    )
    save_figure(figure, path)


def _dots(axes: Any, figures: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> None:
    for place, (name, one) in enumerate(zip(settings, figures, strict=True)):
        colour, values = COLOURS[kind_of(name)], one["values"]
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.65, markersize=4.5)
        axes.plot([one["mean"]] * 2, [place - 0.36, place + 0.36], color=colour, linewidth=2)
    axes.grid(axis="x", color=FAINT, alpha=0.25)
    axes.set_yticks(range(len(settings)), [title_of(name) for name in settings])
    axes.tick_params(labelsize=8.5)
    axes.set_ylim(len(settings) - 0.5, -0.5)


def _in_order(settings: Mapping[str, Any]) -> list[str]:
    """LoRA first, then by rank, by way of choosing, conditional before independent."""
    order = ("lora", "r4", "r2")
    kinds = list(COLOURS)
    return sorted(
        settings,
        key=lambda name: (
            order.index(name.split("-")[0]),
            kinds.index(kind_of(name)),
            name.endswith("independent"),
            len(name),
        ),
    )


def draw_interference(interference: Mapping[str, Any], path: Path) -> None:
    """Draw the mean matrix of each setting, before training above and after it below."""
    columns = _in_order({**interference["after"], **interference["before"]})
    figure = new_figure(1.2 + 3.1 * len(columns), 6.6)
    figure.set_layout_engine("constrained")
    rows = figure.subplots(2, len(columns), squeeze=False)
    image: Any = None
    for cells, when in zip(rows, ("before", "after"), strict=True):
        for axes, name in zip(cells, columns, strict=True):
            one = interference[when].get(name)
            if one is None:
                axes.set_axis_off()
                continue
            image = _matrix(axes, one, f"{title_of(name)}, {when}")
    figure.colorbar(image, ax=rows, shrink=0.5, label="a step's effect, own task's = 1")
    save_figure(figure, path)


def _matrix(axes: Any, one: Mapping[str, Any], title: str) -> Any:
    cells = mean_matrix(one["matrices"])
    share = one["negative_share"]["all"]["mean"]
    image = axes.imshow(cells, cmap="RdBu", vmin=-0.5, vmax=0.5)
    for (row, column), value in np.ndenumerate(cells):
        colour = "white" if abs(value) > 0.36 else INK
        text = "" if np.isnan(value) else f"{value:.2f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(cells)), one["tasks"], fontsize=7.5, rotation=40, ha="right")
    axes.set_yticks(range(len(cells)), one["tasks"], fontsize=7.5)
    axes.set_title(f"{title}\n{share:.0%} of pairs negative", fontsize=9, color=INK, loc="left")
    return image


def mean_matrix(matrices: Sequence[Sequence[Sequence[float | None]]]) -> Any:
    """Average over seeds; a cell without a number in one seed is the others' mean.

    >>> mean_matrix([[[1.0, None]], [[3.0, None]]]).tolist()
    [[2.0, nan]]
    """
    cells = np.array(matrices, dtype=float)  # None becomes NaN
    counts = (~np.isnan(cells)).sum(0)
    return np.where(counts > 0, np.nansum(cells, 0) / np.maximum(counts, 1), np.nan)


def draw_factors(routing: Mapping[str, Any], path: Path) -> None:
    """Draw which factors the tasks use where they differ most, and what they share on average."""
    settings = _in_order(routing)
    columns = 1 + max(len(routing[name]["telling"]) for name in settings)
    figure = new_figure(3.1 * columns, 0.6 + 2.5 * len(settings))
    figure.set_layout_engine("constrained")
    rows = figure.subplots(len(settings), columns, squeeze=False)
    for cells, name in zip(rows, settings, strict=True):
        one = routing[name]
        _overlap(cells[0], one, title_of(name))
        for axes, (router, usage) in zip(cells[1:], one["telling"].items(), strict=True):
            axes.imshow(usage, cmap="Blues", vmin=0, aspect="auto")
            axes.set_title(f"layer {router}: use of 16 factors", fontsize=8.5, color=INK)
            axes.set_yticks(range(len(one["tasks"])), one["tasks"], fontsize=7)
            axes.set_xticks([0, 5, 10, 15])
            axes.tick_params(labelsize=7)
    save_figure(figure, path)


def _overlap(axes: Any, one: Mapping[str, Any], title: str) -> None:
    cells = np.mean(np.array(one["overlaps"], dtype=float), 0)
    axes.imshow(cells, cmap="Blues", vmin=0.5, vmax=1)
    for (row, column), value in np.ndenumerate(cells):
        colour = "white" if value > 0.8 else INK
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6.5, color=colour)
    axes.set_xticks(range(len(cells)), one["tasks"], fontsize=7, rotation=40, ha="right")
    axes.set_yticks(range(len(cells)), one["tasks"], fontsize=7)
    axes.set_title(f"{title}: overlap of tasks", fontsize=8.5, color=INK, loc="left")


def print_tables(results: Mapping[str, Any]) -> None:
    """Print the page's tables as Markdown."""
    for table in (settings_table, differences_table, interference_table, routing_table):
        print("\n".join(table(results)), end="\n\n")


def settings_table(results: Mapping[str, Any]) -> list[str]:
    """Loss over all tasks, accuracy over all and by task."""
    tasks = list(results["tasks"])
    head = " | ".join("right" if task == "all" else task for task in tasks)
    lines = [
        f"| | seeds | trained | loss | {head} | entropy |",
        f"|---|---:|---:|---:|{'---:|' * len(tasks)}---:|",
        f"| a guess | | | {results['tasks']['all']['even_loss']:.3f} | "
        + " | ".join(f"{results['tasks'][task]['chance']:.0f}" for task in tasks)
        + " | |",
    ]
    for name in _in_order(results["settings"]):
        one = results["settings"][name]
        tuner = sum(n for part, n in one["trained_parameters"].items() if part != "connector")
        right = " | ".join(
            spread(one["tasks"][task]["accuracy"], ".0f")
            if task == "all"
            else f"{one['tasks'][task]['accuracy']['mean']:.0f}"
            for task in tasks
        )
        entropy = f"{one['factor_entropy']['mean']:.2f}" if "factor_entropy" in one else ""
        loss = spread(one["tasks"]["all"]["loss"], ".3f")
        what = f"{title_of(name)} | {len(one['seeds'])} | {tuner:,}"
        lines.append(f"| {what} | {loss} | {right} | {entropy} |")
    return lines


def spread(figures: Mapping[str, Any], form: str) -> str:
    """Write a mean with its interval.

    >>> spread({"mean": 1.0, "low": 0.5, "high": 1.5}, ".1f")
    '1.0 (0.5 to 1.5)'
    """
    mean = f"{figures['mean']:{form}}"
    if figures["low"] is None:
        return mean
    return f"{mean} ({figures['low']:{form}} to {figures['high']:{form}})"


def differences_table(results: Mapping[str, Any]) -> list[str]:
    """Differences paired by seed."""
    lines = ["| | seeds | loss | right, points |", "|---|---:|---:|---:|"]
    for one in results["differences"]:
        what = f"{one['claim']}: {title_of(one['of'])} - {title_of(one['against'])}"
        over_all = one["tasks"]["all"]
        cells = (spread(over_all["loss"], "+.3f"), spread(over_all["accuracy"], "+.1f"))
        lines.append(f"| {what} | {len(one['seeds'])} | {' | '.join(cells)} |")
    return lines


def interference_table(results: Mapping[str, Any]) -> list[str]:
    """Negative pairs before and after, over all parameters and by group of layers."""
    found = [
        (when, name, one)
        for when in ("before", "after")
        for name, one in results["interference"][when].items()
    ]
    blocks = list(found[0][2]["negative_share"]) if found else []
    head = " | ".join("all layers" if block == "all" else block for block in blocks)
    lines = [
        f"| | seeds | {head} | sure | mean cell | harm |",
        f"|---|---:|{'---:|' * len(blocks)}---:|---:|---:|",
    ]
    for when, name, one in found:
        shares = " | ".join(
            spread(_percent(one["negative_share"][block]), ".0f")
            if block == "all"
            else f"{100 * one['negative_share'][block]['mean']:.0f}"
            for block in blocks
        )
        sure = spread(_percent(one["surely_negative_share"]), ".0f")
        sizes = " | ".join(spread(one[key], ".2f") for key in ("mean_effect", "mean_harm"))
        what = f"{title_of(name)}, {when}"
        lines.append(f"| {what} | {len(one['pairs'])} | {shares} | {sure} | {sizes} |")
    for one in results["negative_share_differences"]:
        what = f"{title_of(one['of'])} - {title_of(one['against'])}, points"
        cells = (str(len(one["all"]["values"])), spread(_percent(one["all"]), "+.0f"))
        lines.append(f"| {what} | {' | '.join(cells)} |{' |' * (len(blocks) + 2)}")
    return lines


def _percent(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: None if figures[key] is None else 100 * figures[key] for key in ("mean", "low", "high")
    }


def routing_table(results: Mapping[str, Any]) -> list[str]:
    """Entropy of the load and overlap between tasks."""
    lines = ["| | entropy of the load | overlap of two tasks |", "|---|---:|---:|"]
    for name in _in_order(results["routing"]):
        one = results["routing"][name]
        cells = (spread(one[key], ".2f") for key in ("entropy", "overlap"))
        lines.append(f"| {title_of(name)} | {' | '.join(cells)} |")
    return lines
