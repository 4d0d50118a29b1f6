"""Word alignment of the connector: off, on, and a caption stage of the same length in its place.

Each variant trains the demo's recipe on the demo's data with the same number of steps, and is
scored on the same new questions. `captions` spends the seconds that the alignment took on what it
replaces: the connector learns to make the frozen language model write the descriptions.

    python studies/word_alignment.py runs/alignment          # about 12 minutes on two idle cores

Finished variants are kept, so a stopped study goes on. Results: runs/alignment/alignment.json
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from varifocal.assemble import open_run
from varifocal.data.formats import load_source
from varifocal.demo import FULL, prepare
from varifocal.evaluation.scienceqa import evaluate
from varifocal.recipe import Recipe, load_recipe
from varifocal.run import RunDirectory, write_json
from varifocal.training.train import train

VARIANTS = ("words", "off", "captions")


def main() -> None:
    """Run the variants that are missing, then print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    file = options.root / "alignment.json"
    results: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    book = prepare(RunDirectory(options.root), FULL, _tell).data.evaluate[0]
    for variant in VARIANTS:
        key = f"{variant}-{options.seed}"
        if key not in results:
            results[key] = run_variant(variant, options, results)
            write_json(file, results)
    examples = len(list(load_source(book)))
    print(f"{examples} new questions; percent right after {options.steps} steps")
    for key, one in results.items():
        low, high = one["IMG_interval"]
        print(
            f"{key:12} IMG {one['IMG']:5.1f} ({low:.1f} to {high:.1f})  average "
            f"{one['average']:5.1f}  before training: {one['seconds_before']:.0f} s"
        )


def run_variant(
    variant: str, options: argparse.Namespace, results: dict[str, Any]
) -> dict[str, Any]:
    """Train and score one variant."""
    root, seed = options.root, options.seed
    overrides: dict[str, Any] = {
        "data.root": str(root.resolve()),
        "seed": seed,
        "training.max_steps": options.steps,
    }
    seconds = 0.0
    if variant != "words":
        overrides["model.connector.alignment"] = None
    if variant == "captions":
        seconds = results[f"words-{seed}"]["seconds_before"]
        overrides["model.connector.weights"] = str(caption_stage(root, seed, seconds, overrides))
    run = root / f"{variant}-{seed}"
    result = train(load_recipe("demo", overrides), run, progress=_tell)
    recipe, parts = open_run(run)
    examples = list(load_source(recipe.data.evaluate[0]))
    report = evaluate(parts.model, parts.encoder, examples, parts.load_images, suite=variant)
    report.write(RunDirectory(run).evaluations)
    image = report.columns["IMG"]
    return {
        "IMG": image.accuracy,
        "IMG_interval": [image.low, image.high],
        "average": report.columns["average"].accuracy,
        "steps": result.steps,
        "loss": result.loss,
        "seconds_before": result.alignment_seconds or seconds,
        "minutes": result.minutes,
    }


def caption_stage(root: Path, seed: int, seconds: float, overrides: dict[str, Any]) -> Path:
    """Train the connector alone on the captions for so many seconds, and return its run."""
    run = root / f"caption-stage-{seed}"
    if (run / "adapter").is_dir():
        return run
    recipe = captions_recipe({**overrides, "training.max_steps": 4}, root)
    trial = root / f"caption-trial-{seed}-{int(time.time())}"
    steps = int(4 * seconds / train(recipe, trial, progress=_tell).training_seconds)
    recipe = captions_recipe({**overrides, "training.max_steps": max(steps, 1)}, root)
    train(recipe, run, progress=_tell)
    return run


def captions_recipe(overrides: dict[str, Any], root: Path) -> Recipe:
    """The demo's recipe, describing pictures with nothing but the connector trained."""
    source = {"path": str(root / "sciencebook"), "split": "train", "prompt_format": "caption"}
    page = {"tuner": {"type": "none"}, "data.train": [source], "training.learning_rate": 1e-3}
    return load_recipe("demo", {**overrides, **page})


def _tell(stage: str, done: int, total: int, note: str = "") -> None:
    if done == total:
        print(stage, total, note, flush=True)


if __name__ == "__main__":
    main()
