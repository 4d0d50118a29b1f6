"""Varifocal next to the paper's loop and next to transformers' Trainer with PEFT.

    python -m benchmarks.side_by_side                   # `make bench`; ten minutes alone, 12 GiB
    python -m benchmarks.side_by_side --rounds 30 --losses-only      # longer curves of losses
    python -m benchmarks.side_by_side --before 839c2ea             # an earlier revision next to it
    python -m benchmarks.side_by_side --summarise

The arm `products` is no training: it is what the machine allows, and every arm has its share of it.

One model, one LoRA and connector to train, one number format, the same samples in every step. Each
arm is a process of its own, all of them stand loaded next to one another, and in each round each
takes one step, in turn. What is measured goes line by line to DIR/rounds.jsonl: call it again for
more rounds. It ends with bench.json and a figure of the losses.
"""

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import yaml
from benchmarks.side_by_side.arms import ARMS, samples_per_step
from benchmarks.side_by_side.children import OF_BEFORE, check_out
from benchmarks.side_by_side.figure import draw_losses
from benchmarks.side_by_side.material import Shape
from benchmarks.side_by_side.page import write_page
from benchmarks.side_by_side.rounds import read_lines, take_rounds
from benchmarks.side_by_side.summary import summarise

from varifocal.recipe import load_recipe


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="side_by_side", description=__doc__.splitlines()[0])
    parser.add_argument("--kind", choices=("QCM-ALE", "QCM-A"), default="QCM-ALE")
    parser.add_argument("--rows", type=int, default=2, help="packed rows a step")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--max-seconds", type=float, default=600.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--arms", default=",".join(ARMS), help=f"of {', '.join(ARMS)}")
    parser.add_argument("--before", help="a git revision, for the arms before and before_plain")
    parser.add_argument("--dir", type=Path, default=Path("/tmp/varifocal-bench"))
    parser.add_argument("--out", type=Path, default=Path("bench.json"))
    parser.add_argument("--losses-only", action="store_true", help="keep the losses, not the times")
    parser.add_argument("--summarise", action="store_true", help="of the rounds so far")
    return parser.parse_args()


def main() -> None:
    """Take rounds, sum up, print."""
    given = options()
    shape = Shape(kind=given.kind)
    recipe = given.dir / "recipe.yaml"
    if not recipe.is_file():
        recipe = write_page(given.dir, shape, rows=given.rows)
    arms = given.arms.split(",")
    before = None
    if given.before:
        before = check_out(given.before, given.dir)
        arms += [arm for arm in OF_BEFORE if arm not in arms]
    if not given.summarise:
        take_rounds(
            arms,
            recipe,
            given.dir,
            rounds=given.rounds,
            max_seconds=given.max_seconds,
            threads=given.threads,
            timed=not given.losses_only,
            before=before,
        )
    setting = {"shape": asdict(shape), "recipe": yaml.safe_load(recipe.read_text())}
    setting |= {"threads": given.threads}
    sizes = known_sizes(given.dir / "sizes.json", recipe)
    page = summarise(read_lines(given.dir), sizes, setting)
    given.out.write_text(json.dumps(page, indent=2) + "\n")
    draw_losses(page["losses"], given.out.with_name(f"{given.out.stem}-loss.png"))
    print_page(page)


def known_sizes(file: Path, recipe: Path) -> list[tuple[int, int, int]]:
    """Samples, tokens and operations of each step; counted once."""
    if not file.is_file():
        file.write_text(json.dumps(list(samples_per_step(load_recipe(recipe)))))
    return [tuple(each) for each in json.loads(file.read_text())]


def print_page(page: dict) -> None:
    """Print what a person reads."""
    machine = page["machine"]
    print(f"{machine['processor']}, {', '.join(machine['features'])}")
    print(f"{page['rounds']} rounds; median (minimum to maximum)")
    for arm, own in page["arms"].items():
        speed, above = own["samples_per_second"], own["above_weights_mib"]
        print(f"{arm:18} {_show(speed)} samples/s   {_show(above, 0)} MiB above the weights")
        print(f"{'':18} {_show(own['step_cpu_seconds'])} CPU seconds a step", end="")
        share = own.get("share_of_limit")
        print(f"   {_show(share)} of the limit" if share else "")
    for dtype, rate in page.get("limit", {}).get("gflops", {}).items():
        print(f"products alone, {dtype}: {rate:,.1f} GFLOP a CPU second")
    for name, ratios in page.items():
        if name.startswith("vs_"):
            speed, memory = ratios["samples_per_second"], ratios["peak_memory"]
            print(f"{name:26} {_show(speed)} x samples/s   {_show(memory)} x memory")
    print(f"losses differ by {page['largest_difference_of_losses']:.2g} at most")


def _show(spread: dict[str, float], digits: int = 2) -> str:
    low, middle, high = (f"{spread[key]:.{digits}f}" for key in ("min", "median", "max"))
    return f"{middle:>6} ({low} to {high})"


if __name__ == "__main__":
    main()
