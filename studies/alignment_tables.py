"""The alignment study's tables, as markdown."""

from typing import Any

from studies.alignment_figures import TITLES
from studies.alignment_results import STAGES, TASKS


def tables(results: dict[str, Any]) -> str:
    """Write the tables of `alignment_results.collect`: stages, then each task."""
    parts = [_stages(results["stages"])]
    for task in TASKS:
        if results[task]:
            parts += [f"{TITLES[task]}:", _along(results[task]), _reached(results[task])]
    return "\n\n".join(parts)


def _stages(stages: dict[str, Any]) -> str:
    lines = ["| stage | pictures seen | processor seconds |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {stages[name]['pictures']['mean']:,.0f} | "
        f"{60 * stages[name]['minutes']['mean']:.1f} |"
        for name in STAGES
        if name in stages
    ]
    return "\n".join(lines)


def _along(settings: dict[str, Any]) -> str:
    """Accuracy at each checkpoint, and the paired difference to no stage at the end."""
    steps = sorted({int(point["step"]) for one in settings.values() for point in one["curve"]})
    head = ["before tuning", "seeds", *(f"{step} steps" for step in steps)]
    head += ["over no stage, equal steps", "equal minutes"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for name, one in settings.items():
        at = {int(point["step"]): spread(point["accuracy"]) for point in one["curve"]}
        against = one["against_none"] if name != "none" else {}
        cells = [name, str(len(one["seeds"])), *(at.get(step, "") for step in steps)]
        cells += [spread(against.get(key), "+") for key in ("equal_steps", "equal_minutes")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _reached(settings: dict[str, Any]) -> str:
    """Steps and minutes to each target, by seed; a dash where it was not reached."""
    targets = list(next(iter(settings.values()))["reached"])
    head = [f"{target} %: {axis}" for target in targets for axis in ("steps", "minutes")]
    lines = ["| before tuning | " + " | ".join(head) + " |", "|---|" + "---:|" * len(head)]
    for name, one in settings.items():
        cells = [
            ", ".join("-" if value is None else f"{value:.{digits}f}" for value in found)
            for target in targets
            for found, digits in (
                (one["reached"][target]["step"], 0),
                (one["reached"][target]["minutes"], 1),
            )
        ]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def spread(found: dict[str, Any] | None, sign: str = "") -> str:
    """Write a mean with its interval.

    >>> spread({"mean": 50.0, "low": 40.04, "high": 60.0})
    '50.0 (40.0 to 60.0)'
    >>> spread({"mean": 5.0, "low": None, "high": None}, "+"), spread(None)
    ('+5.0', '')
    """
    if not found:
        return ""
    mean = format(found["mean"], f"{sign}.1f")
    if found["low"] is None:
        return mean
    return f"{mean} ({found['low']:{sign}.1f} to {found['high']:{sign}.1f})"
