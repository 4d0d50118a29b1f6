"""How MixLoRA should choose: learnt, fixed or random routing, beside LoRA, on skills that conflict.

Each variant trains SmolLM2-135M on the same questions of six text skills of sciencebook with the
same steps, and is scored on new questions. The skills pull one model in different directions:
"which word means the opposite of ..." and "... nearly the same as ..." ask for opposite answers to
like words. All updates are scaled alike (--scaling), so that a step moves them alike.

    python studies/mixlora_selection.py runs/selection    # about 25 minutes on two idle cores

Finished variants are kept, so a stopped study goes on. Results: runs/selection/selection.json and
runs/selection/selection.png. The loss is of the right answer among a question's options, in nats:
it says more than percent right on few questions.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from varifocal.assemble import Assembly, open_run
from varifocal.data.example import Example
from varifocal.data.formats import load_source
from varifocal.data.sciencebook import SKILLS, make_sciencebook
from varifocal.evaluation.scienceqa import Prediction, evaluate
from varifocal.recipe import load_recipe
from varifocal.run import RunDirectory, write_json
from varifocal.training.train import train

CONFLICTING = (
    "weather_or_climate",
    "goods_or_services",
    "parts_of_speech",
    "opposites",
    "synonyms",
    "sentence_kinds",
)
VARIANTS: dict[str, dict[str, Any]] = {
    "weighted": {"type": "mixlora", "selection": "weighted"},
    "straight_through": {"type": "mixlora", "selection": "straight_through"},
    "hard": {"type": "mixlora", "selection": "hard"},
    "random": {"type": "mixlora", "selection": "random"},
    "lora": {"type": "lora"},
}
MORE: dict[str, dict[str, Any]] = {
    "weighted, IFS": {"type": "mixlora", "selection": "weighted", "conditional": False},
    "weighted, balanced": {"type": "mixlora", "selection": "weighted", "balance": 0.01},
    "lora r=16": {"type": "lora", "rank": 16},
}
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 4


def main() -> None:
    """Run the variants that are missing, then print and draw all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--test", type=int, default=240, help="new questions, over all skills")
    parser.add_argument("--scaling", type=float, default=2.0, help="lora_alpha / rank, for all")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--more", action="store_true", help=f"also {', '.join(MORE)}")
    options = parser.parse_args()
    file = options.root / "selection.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    make_book(options)
    for seed in range(options.seeds):
        for name in VARIANTS | (MORE if options.more else {}):
            key = f"{name}-{seed}"
            if key not in results:
                results[key] = run_variant(name, seed, options)
                write_json(file, results)
    print_table(results)
    draw_losses(results, options.root / "selection.png")


def make_book(options: argparse.Namespace) -> None:
    """Make the questions, if they are not there yet: more than the steps can read."""
    book = options.root / "sciencebook"
    if not (book / "problems.json").is_file():
        sizes = {"train": 32 * options.steps, "val": 0, "test": options.test}
        make_sciencebook(book, **sizes, seed=0, skills=CONFLICTING)


def run_variant(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one variant."""
    run = options.root / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    result = train(load_recipe("scienceqa-text", page_of(name, seed, options)), run, progress=_tell)
    recipe, parts = open_run(run)
    examples = list(load_source(recipe.data.evaluate[0]))
    return {
        "variant": name,
        "seed": seed,
        "scaling": options.scaling,
        "steps": result.steps,
        "trained_parameters": sum(result.trained_parameters.values()),
        "training_loss": result.loss,
        "minutes": result.minutes,
        **score(parts, examples),
        **routing_figures(run),
    }


def page_of(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """What differs from the shipped recipe."""
    tuner = {"rank": RANK, "target_modules": SEVEN, **(VARIANTS | MORE)[name]}
    tuner["lora_alpha"] = options.scaling * tuner["rank"]
    source = {"path": "sciencebook", "format": "scienceqa"}
    return {
        "seed": seed,
        "tuner": tuner,
        "data.root": str(options.root.resolve()),
        "data.train": [{**source, "split": "train"}],
        "data.evaluate": [{**source, "split": "test"}],
        "data.max_length": 256,
        "data.overflow": "error",
        "data.system_prompt": "",
        "training.num_train_epochs": 1,
        "training.max_steps": options.steps,
        "training.per_device_train_batch_size": 4,
        "training.learning_rate": options.learning_rate,
        "training.logging_steps": min(4, options.steps),
        "training.save_steps": 10 * options.steps,
    }


def score(parts: Assembly, examples: list[Example]) -> dict[str, Any]:
    """Loss and percent right, by skill and over all questions."""
    titles = {skill.title: name for name, skill in SKILLS.items()}
    report = evaluate(parts.model, parts.encoder, examples, parts.load_images, suite="selection")
    by_skill: dict[str, list[Prediction]] = defaultdict(list)
    for example, prediction in zip(examples, report.predictions, strict=True):
        by_skill[titles[example.tags["skill"]]].append(prediction)
    return {
        "loss": fmean(map(loss_of, report.predictions)),
        "accuracy": 100 * fmean(one.correct for one in report.predictions),
        "losses": {name: fmean(map(loss_of, own)) for name, own in by_skill.items()},
        "accuracies": {
            name: 100 * fmean(one.correct for one in own) for name, own in by_skill.items()
        },
    }


def loss_of(prediction: Prediction) -> float:
    """The right answer's loss among the options, in nats."""
    import torch

    scores = torch.tensor(prediction.scores, dtype=torch.float64)
    return float(-scores.log_softmax(dim=0)[prediction.gold])


def routing_figures(run: Path) -> dict[str, float]:
    """How the factors were used at the last logged step; {} for LoRA."""
    lines = RunDirectory(run).metrics.read_text().splitlines()
    names = ("factor_entropy", "factor_top_load", "router_sharpness")
    for line in reversed(lines):
        found = {name: value for name, value in json.loads(line).items() if name in names}
        if found:
            return found
    return {}


def print_table(results: dict[str, Any]) -> None:
    """One line a variant: means over seeds, and how far the seeds lie apart."""
    print(
        f"\n{'variant':20}{'loss':>8}{'+-':>7}{'right %':>9}{'entropy':>9}{'trained':>12}", end=""
    )
    print("".join(f"{name[:12]:>14}" for name in CONFLICTING))
    for name, runs in by_variant(results).items():
        losses = [one["loss"] for one in runs]
        spread = stdev(losses) if len(losses) > 1 else float("nan")
        entropy = fmean(one.get("factor_entropy", float("nan")) for one in runs)
        print(
            f"{name:20}{fmean(losses):>8.3f}{spread:>7.3f}"
            f"{fmean(one['accuracy'] for one in runs):>9.1f}{entropy:>9.2f}"
            f"{runs[0]['trained_parameters']:>12,}",
            end="",
        )
        print("".join(f"{fmean(r['losses'][s] for r in runs):>14.3f}" for s in CONFLICTING))


def by_variant(results: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Group runs, seed by seed, under their variants."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for one in results.values():
        grouped.setdefault(one["variant"], []).append(one)
    return grouped


def draw_losses(results: dict[str, Any], file: Path) -> None:
    """A dot for each seed, a bar for their mean; all skills, then each."""
    from matplotlib.figure import Figure

    grouped = by_variant(results)
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    panels = figure.subplots(1, len(CONFLICTING) + 1, sharey=False)
    for panel, skill in zip(panels, ("all", *CONFLICTING), strict=True):
        for place, runs in enumerate(grouped.values()):
            losses = [r["loss"] if skill == "all" else r["losses"][skill] for r in runs]
            panel.barh(place, fmean(losses), color="#c9d7e8")
            panel.plot(losses, [place] * len(losses), "o", color="#1f4e79", markersize=4)
        panel.set_title(skill.replace("_", " "), fontsize=9)
        panel.set_yticks(range(len(grouped)), list(grouped) if skill == "all" else [])
        panel.invert_yaxis()
    figure.supxlabel("loss of the right answer among the options, nats (lower is better)")
    figure.savefig(file, dpi=150)


def _tell(stage: str, done: int, total: int, note: str = "") -> None:
    if done == total:
        print(stage, total, note, flush=True)


if __name__ == "__main__":
    main()
