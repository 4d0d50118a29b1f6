"""What 1 to 512 GPUs would do, on paper: communication, memory and time from a model's shapes.

    python benchmarks/scale_on_paper.py [--gpus 1 8 64 512] [--samples 1e9] [--json]

Nothing here was run on a GPU. Parameters are counted and operations are summed on the meta device,
from the recipes' own models and tuners; everything else is an assumption, and an option.
"""

import argparse
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from varifocal.models import load_model
from varifocal.recipe import load_recipe
from varifocal.training.flops import FlopFormula
from varifocal.training.tuner import attach_tuner

SIZES = {
    "7B": ("lavin-7b-scienceqa", "huggyllama/llama-7b"),
    "13B": ("lavin-13b-scienceqa", "huggyllama/llama-13b"),
    "70B": ("lavin-13b-scienceqa", "meta-llama/Llama-2-70b-hf"),
}
FROZEN_BYTES = 2  # bfloat16
TRAINED_BYTES = 16  # weight, gradient and Adam's two moments, float32
REDUCED_BYTES = 4  # a gradient, float32
GPUS_A_NODE = 8


@dataclass(frozen=True)
class Shape:
    """What is read off a model: parameters, and what one row of a batch takes."""

    name: str
    frozen: int
    trained: int
    layers: int
    width: int
    row_flops: float
    row_flops_checkpointed: float


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    model: str
    gpus: int
    engine: str
    gib: float
    mib_sent_a_step: float
    seconds_computing: float
    seconds_sending: float
    days: float


def shape_of(name: str, given: argparse.Namespace) -> Shape:
    """Build a recipe's model on the meta device, and count."""
    recipe, language_model = SIZES[name]
    page = load_recipe(recipe, {"model.language_model": language_model}, check_paths=False)
    base = load_model(page.model, meta=True).model
    model = attach_tuner(base, page.tuner)
    config = base.config.get_text_config()
    parameters = [p for n, p in model.named_parameters() if ".original_module." not in n]
    samples = given.row_length / given.sample_tokens
    images = samples * given.images

    def flops(checkpointing: bool) -> float:
        formula = FlopFormula.of(base, checkpointing=checkpointing)
        language = formula.language(
            tokens=given.row_length,
            pairs=round(samples * given.sample_tokens**2),
            positions=round(given.row_length * given.supervised),
            num_images=round(images),
        )
        return language + images * (formula.images(1, 0) + formula.image.tower)

    return Shape(
        name=name,
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        row_flops=flops(False),
        row_flops_checkpointed=flops(True),
    )


def line_of(shape: Shape, gpus: int, given: argparse.Namespace) -> Line:
    """Take the quickest way that fits: whole copies or shards, activations kept or computed again.

    Shards fit everything once there are enough of them; what fits nowhere is named so.
    """
    ways = ["ddp", "ddp+checkpointing"]
    ways += ["fsdp2", "fsdp2+checkpointing"] if gpus > 1 else []
    lines = [_line(shape, gpus, way, given) for way in ways]
    fitting = [line for line in lines if line.gib <= given.gib]
    if not fitting:
        return replace(min(lines, key=lambda line: line.gib), engine="does not fit")
    return min(fitting, key=lambda line: line.days)


def _line(shape: Shape, gpus: int, engine: str, given: argparse.Namespace) -> Line:
    shards = gpus if engine.startswith("fsdp2") else 1  # processes that share one copy
    again = engine.endswith("checkpointing")
    state = (shape.frozen * FROZEN_BYTES + shape.trained * TRAINED_BYTES) / shards
    # Two layers stand whole while the others are shards: the one at work, and the next one.
    whole = 2 * shape.frozen * FROZEN_BYTES / shape.layers if shards > 1 else 0
    tokens = given.rows * given.row_length
    kept = tokens * shape.width * shape.layers * (2 if again else 34)
    kept += 34 * tokens * shape.width if again else 0
    others = (gpus - 1) / gpus
    sent = shape.trained * REDUCED_BYTES * others * (2 if shards == 1 else 1)
    sent += 2 * shape.frozen * FROZEN_BYTES * others if shards > 1 else 0
    speed = given.inside if gpus <= GPUS_A_NODE else given.between
    row = shape.row_flops_checkpointed if again else shape.row_flops
    computing = given.rows * row / (given.peak * given.utilisation)
    sending = sent / speed
    steps = given.samples * given.sample_tokens / (gpus * tokens)
    return Line(
        model=shape.name,
        gpus=gpus,
        engine=engine,
        gib=(state + whole + kept) / 2**30,
        mib_sent_a_step=sent / 2**20,
        seconds_computing=computing,
        seconds_sending=sending,
        days=steps * max(computing, sending) / 86400,
    )


def arguments() -> argparse.Namespace:
    """Read the assumptions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add: Any = parser.add_argument
    add("--models", nargs="+", default=list(SIZES), choices=list(SIZES))
    add("--gpus", nargs="+", type=int, default=[1, 8, 64, 512])
    add("--samples", type=float, default=1e9, help="of the data, each seen once")
    add("--sample-tokens", type=float, default=200, help="mean length of a sample")
    add("--images", type=float, default=0.5, help="share of samples with an image")
    add("--supervised", type=float, default=0.3, help="share of tokens with a loss")
    add("--row-length", type=int, default=2048, help="tokens of a packed row, all in use")
    add("--rows", type=int, default=4, help="rows of a GPU's step; more GPUs take more rows")
    add("--gib", type=float, default=76, help="memory of a GPU that may be used")
    add("--peak", type=float, default=312e12, help="operations a second: A100, bfloat16, dense")
    add("--utilisation", type=float, default=0.4, help="share of the peak that is reached")
    add("--inside", type=float, default=200e9, help="bytes a second of a GPU within a node")
    add("--between", type=float, default=20e9, help="bytes a second of a GPU between nodes")
    add("--json", action="store_true", help="print JSON")
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    given = arguments()
    lines = [
        line_of(shape, gpus, given)
        for shape in (shape_of(name, given) for name in given.models)
        for gpus in given.gpus
    ]
    if given.json:
        print(json.dumps([asdict(line) for line in lines], indent=2))
        return
    print("| model | GPUs | way | GiB a GPU | MiB sent a step | s computing | s sending | days |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for line in lines:
        print(
            f"| {line.model} | {line.gpus} | {line.engine} | {line.gib:.1f} "
            f"| {line.mib_sent_a_step:,.0f} | {line.seconds_computing:.2f} "
            f"| {line.seconds_sending:.3f} | {line.days:,.1f} |"
        )


if __name__ == "__main__":
    main()
