"""From the lines of all rounds to `bench.json` and the table a person reads.

A round's ratio is of one step's seconds, on the same samples; a piece's ratio of memory is of the
peaks of its processes. Minimum, median and maximum are over rounds, or over pieces.
"""

import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.side_by_side.limit import processor_features

Lines = Sequence[dict[str, Any]]
OTHERS = ("paper_loop", "trainer_peft", "before", "before_plain")
LIMIT = "products"
"""The arm that computes a decoder layer's products alone (`limit.py`)."""
Sizes = Sequence[tuple[int, int, int]]


def spread(values: Iterable[float], digits: int = 3) -> dict[str, float]:
    """Minimum, median and maximum.

    >>> spread([3, 1, 2])
    {'min': 1, 'median': 2, 'max': 3}
    """
    found = sorted(values)
    middle = statistics.median(found)
    named = zip(("min", "median", "max"), (found[0], middle, found[-1]), strict=True)
    return {name: round(value, digits) for name, value in named}


def summarise(lines: Lines, sizes: Sizes, setting: Any) -> dict[str, Any]:
    """Make the page of a benchmark.

    Args:
        lines: of `rounds.jsonl`; those not timed give losses alone.
        sizes: samples, tokens and needed operations of each step.
        setting: written as it is.
    """
    timed = [line for line in lines if line["timed"]]
    arms = [arm for arm in dict.fromkeys(line["arm"] for line in timed) if arm != LIMIT]
    page: dict[str, Any] = {"setting": setting, "machine": _machine()}
    page["rounds"] = len({(line["piece"], line["round"]) for line in _steps(timed)})
    for ours in (arm for arm in ("varifocal", "varifocal_plain") if arm in arms):
        for other in (arm for arm in OTHERS if arm in arms):
            suffix = ours.removeprefix("varifocal")
            page[f"vs_{other}{suffix}"] = _ratios(timed, ours, other)
    page["arms"] = {arm: _arm(timed, arm, sizes) for arm in arms}
    for arm, share in _shares(timed, sizes).items():
        page["arms"][arm]["share_of_limit"] = share
    page |= _limit(timed)
    page["losses"] = losses_of([line for line in lines if line["arm"] != LIMIT])
    page["largest_difference_of_losses"] = _difference(page["losses"])
    return page


def _ratios(lines: Lines, ours: str, other: str) -> dict[str, Any]:
    """Ours over another arm's: samples a second, and peak memory above the weights."""
    seconds, cpu = (_by_round(lines, key) for key in ("seconds", "cpu_seconds"))
    above, peaks = (_by_piece(lines, key) for key in ("above_weights_mib", "peak_mib"))
    return {
        "samples_per_second": spread(of[other] / of[ours] for of in _both(seconds, ours, other)),
        "peak_memory": spread(of[ours] / of[other] for of in _both(above, ours, other)),
        "samples_per_cpu_second": spread(of[other] / of[ours] for of in _both(cpu, ours, other)),
        "peak_memory_of_the_process": spread(
            of[ours] / of[other] for of in _both(peaks, ours, other)
        ),
    }


def _both(groups: dict[Any, dict[str, float]], one: str, other: str) -> list[dict[str, float]]:
    return [of for of in groups.values() if {one, other} <= of.keys()]


def _steps(lines: Lines) -> list[dict[str, Any]]:
    """Lines of rounds; neither what was loaded nor the warm-up."""
    return [line for line in lines if line.get("round", -1) >= 0]


def _by_round(lines: Lines, key: str) -> dict[Any, dict[str, float]]:
    found: dict[Any, dict[str, float]] = defaultdict(dict)
    for line in _steps(lines):
        found[line["piece"], line["round"]][line["arm"]] = line[key]
    return found


def _by_piece(lines: Lines, key: str) -> dict[Any, dict[str, float]]:
    """The largest value of each process, its warm-up included."""
    found: dict[Any, dict[str, float]] = defaultdict(dict)
    for line in lines:
        if key in line:
            of = found[line["piece"]]
            of[line["arm"]] = max(line[key], of.get(line["arm"], 0.0))
    return found


def _limit(lines: Lines) -> dict[str, Any]:
    """The machine's rates, as the arm of products found them; nothing without it."""
    starts = [line for line in lines if "product_flops" in line]
    if not starts:
        return {}
    flops = {line["piece"]: line["product_flops"] for line in starts}
    steps = [line for line in _steps(lines) if line["arm"] == LIMIT]
    rates = {
        key: spread((flops[one["piece"]] / one[key] / 1e9 for one in steps), 1)
        for key in ("seconds", "cpu_seconds")
    }
    rates = {"gflop_per_second": rates["seconds"], "gflop_per_cpu_second": rates["cpu_seconds"]}
    return {"limit": {**rates, "gflops": starts[-1]["gflops"]}}


def _shares(lines: Lines, sizes: Sizes) -> dict[str, dict[str, float]]:
    """Each arm's share of the limit: CPU seconds that its step's operations would take as products.

    Of a round's own products, divided by its CPU seconds.
    """
    flops = {line["piece"]: line["product_flops"] for line in lines if "product_flops" in line}
    steps = {(line["piece"], line["round"]): line["step"] for line in _steps(lines)}
    found: dict[str, list[float]] = defaultdict(list)
    for (piece, number), of in _by_round(lines, "cpu_seconds").items():
        limit = of.pop(LIMIT, None)
        for arm, seconds in of.items() if limit else ():
            needed = sizes[steps[piece, number]][2]
            found[arm].append(needed * limit / flops[piece] / seconds)
    return {arm: spread(values) for arm, values in found.items()}


def _arm(lines: Lines, arm: str, sizes: Sizes) -> dict[str, Any]:
    """One arm's own figures."""
    own = [line for line in lines if line["arm"] == arm]
    steps, starts = _steps(own), [line for line in own if "loaded_mib" in line]
    first = [line["seconds"] for line in own if line.get("round", 0) < 0]
    memory = {
        key: spread(of[arm] for of in _by_piece(own, key).values())
        for key in ("peak_mib", "above_weights_mib")
    }
    more = {
        key: starts[0][key]
        for key in ("features_seconds", "packing_efficiency")
        if key in starts[0]
    }
    return {
        "samples_per_second": spread(sizes[one["step"]][0] / one["seconds"] for one in steps),
        "tokens_per_second": spread((sizes[one["step"]][1] / one["seconds"] for one in steps), 1),
        "step_seconds": spread(one["seconds"] for one in steps),
        "step_cpu_seconds": spread(one["cpu_seconds"] for one in steps),
        "first_step_seconds": spread(first),
        "loaded_mib": spread(line["loaded_mib"] for line in starts),
        **memory,
        "trained_parameters": starts[0]["trained_parameters"],
        **more,
    }


def losses_of(lines: Lines) -> dict[str, list[float]]:
    """Losses by step of each arm's longest piece."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if "loss" in line:
            found[line["arm"]][line["piece"]].append(line["loss"])
    return {arm: max(pieces.values(), key=len) for arm, pieces in found.items()}


def _difference(losses: dict[str, list[float]]) -> float:
    """The most that two arms' losses of one step differ by."""
    return max((max(step) - min(step) for step in zip(*losses.values(), strict=False)), default=0.0)


def _machine() -> dict[str, Any]:
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    told = Path("/proc/cpuinfo").read_text().splitlines()
    model = [line for line in told if line.startswith("model name")]
    named = {"processor": model[0].split(":")[1].strip(), "features": processor_features()}
    return {"cores": os.cpu_count(), **named, **versions}
