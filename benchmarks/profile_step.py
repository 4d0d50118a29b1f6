"""Where a training step's time goes, by kind of operation and by tuner.

    python benchmarks/profile_step.py [--steps 3] [--threads 1]

The demo's model (SmolLM2-135M-Instruct, EfficientNet-Lite0, bfloat16) on packed rows of made
sciencebook questions, four rows of 256 tokens a step, features from the table. CPU milliseconds of
one step by torch's profiler, self time, the mean of the steps after the first.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from varifocal.assemble import assemble
from varifocal.recipe import load_recipe
from varifocal.run import RunDirectory
from varifocal.sciencebook import make_sciencebook
from varifocal.training.examples import load_training_data
from varifocal.training.train import build_trainer
from varifocal.training.tuner import attach_tuner

TUNERS = {
    "MMA": {"type": "mma"},
    "LoRA r8": {"type": "lora", "rank": 8},
    "MixLoRA E16 r4": {"type": "mixlora", "num_factors": 16, "rank": 4},
    "connector alone": {"type": "none"},
}
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"),
    "attention": ("attention", "softmax"),
    "copies and casts": ("aten::copy_", "aten::to", "aten::_to_copy", "aten::cat", "aten::clone"),
    "loss": ("cross_entropy", "nll_loss", "log_softmax"),
    "optimiser": ("Optimizer", "adam", "_foreach"),
    "norms and activations": ("aten::mul", "aten::add", "aten::pow", "aten::rsqrt", "aten::mean",
                              "silu", "aten::neg", "aten::div", "aten::sum"),
}  # fmt: skip


def kind_of(name: str) -> str:
    """Put an operation into a row of the table.

    >>> kind_of("aten::_softmax"), kind_of("aten::mm"), kind_of("aten::index")
    ('attention', 'matrix products', 'the rest')
    """
    if "log_softmax" in name:
        return "loss"
    found = (kind for kind, marks in KINDS.items() if any(mark in name for mark in marks))
    return next(found, "the rest")


def measure(tuner: dict, root: Path, steps: int) -> tuple[float, Counter[str], Counter[str]]:
    """Profile steps of one tuner: CPU ms a step, by kind, and the dearest of the rest by name."""
    settings = {
        "data.root": str(root),
        "tuner": tuner,
        "alignment": None,
        "training.max_steps": steps + 1,
        "training.save_strategy": "no",
    }
    recipe = load_recipe("demo", settings)
    parts = assemble(recipe)
    data = load_training_data(recipe.data, parts.encoder, seed=0)
    tuned = parts.with_model(attach_tuner(parts.base, recipe.tuner))
    if tuned.features is not None:
        tuned.features.fill(list(data.images()))
    run = RunDirectory.create(Path(tempfile.mkdtemp()) / "run")
    trainer = build_trainer(recipe, run, tuned, data, lambda *_: None)
    trainer.create_optimizer()
    rows = iter(trainer.get_train_dataloader())
    step(trainer, next(rows))
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            step(trainer, next(rows))
    kinds, rest = Counter(), Counter()
    for event in seen.key_averages():
        milliseconds = event.self_cpu_time_total / 1000 / steps
        kinds[kind_of(event.key)] += milliseconds
        if kind_of(event.key) == "the rest":
            rest[event.key] += milliseconds
    return sum(kinds.values()), kinds, rest


def step(trainer: Any, batch: dict[str, Any]) -> None:
    """One optimiser step."""
    trainer.compute_loss(trainer.model.train(), batch).backward()
    trainer.optimizer.step()
    trainer.model.zero_grad()


def main() -> None:
    """Profile each tuner, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    root = Path(tempfile.mkdtemp())
    make_sciencebook(root / "sciencebook", train=220, val=0, test=4, seed=0)
    print(f"| self CPU ms a step | {' | '.join(TUNERS)} |")
    print("|---|" + "---:|" * len(TUNERS))
    found = {name: measure(tuner, root, given.steps) for name, tuner in TUNERS.items()}
    for kind in (*KINDS, "the rest"):
        shares = [
            f"{kinds[kind]:,.0f} ({kinds[kind] / all_:.0%})" for all_, kinds, _ in found.values()
        ]
        print(f"| {kind} | {' | '.join(shares)} |")
    print(f"| all | {' | '.join(f'{all_:,.0f}' for all_, _, _ in found.values())} |")
    for name, (_, _, rest) in found.items():
        dearest = ", ".join(f"{key} {value:.0f}" for key, value in rest.most_common(5))
        print(f"\nthe rest, {name}: {dearest}")


if __name__ == "__main__":
    main()
