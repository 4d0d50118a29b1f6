"""What LaVIN's authors measured next to what we compute for the same setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from varifocal.data.encoding.encoder import Encoded
from varifocal.data.rows.packing import Collator
from varifocal.planning.devices import GPUS
from varifocal.planning.shapes import Shapes
from varifocal.recipe import Recipe
from varifocal.training.cost import Spent

EXAMPLES = 12_726
"""Of ScienceQA's training split."""


@dataclass(frozen=True)
class Measured:
    """One line of the authors' figures.

    Attributes:
        memory_gb: of a GPU, as they give it.
        hours: of 20 epochs.
        num_gpus: that ran; A100s with 80 GB.
        source: where it stands.
    """

    memory_gb: float
    hours: float
    num_gpus: int
    source: str


_TABLE = "arXiv 2305.15023, table 6 (8 x A100)"
_README = "model zoo in the README of the paper's code (1 GPU, which one is not told)"
_7B, _13B = "huggyllama/llama-7b", "huggyllama/llama-13b"

MEASURED: dict[tuple[str, str | None], Measured] = {
    (_7B, None): Measured(33.9, 1.4, 8, _TABLE),
    (_13B, None): Measured(55.9, 2.0, 8, _TABLE),
    (_7B, "nf4"): Measured(9.0, 29.0, 1, _README),
    (_13B, "nf4"): Measured(14.0, 42.0, 1, _README),
}


def compare_with_paper(recipe: Recipe, shapes: Shapes) -> dict[str, Any] | None:
    """Lay the authors' figures next to ours for their loop; None for other recipes.

    Their loop, as their code has it: every example padded to 512 tokens, the vision tower for
    every one, logits at every position.
    """
    measured = MEASURED.get((recipe.model.language_model, recipe.model.quantization))
    if measured is None or recipe.tuner.type != "mma" or not shapes.images.load:
        return None
    flops = _flops_of_their_loop(recipe, shapes)
    device = GPUS["a100-80g"]
    rate = device.flops_per_second("bfloat16") * measured.num_gpus
    seconds = measured.hours * 3600 * measured.num_gpus
    reached = flops / seconds / (device.teraflops["bfloat16"] * 1e12)
    return {
        "source": measured.source,
        "measured_memory_gb": measured.memory_gb,
        "measured_hours": measured.hours,
        "num_gpus": measured.num_gpus,
        "hours_of_their_loop": round(flops / rate / 3600, 2),
        "flops_of_their_loop": flops,
        "reasons": _reasons(recipe, device.utilisation, reached),
    }


def _reasons(recipe: Recipe, assumed: float, reached: float) -> list[str]:
    """Say why our figures and theirs differ."""
    reasons = [
        f"hours: their figure means that {reached:.0%} of an A100's peak was reached, and "
        f"{assumed:.0%} is assumed here",
        "hours: theirs pads every example to 512 tokens and runs the vision tower for text, too; "
        "a run here pays for the tokens there are",
        "memory: theirs computes logits at all 512 positions and keeps attention's scores where "
        "its attention is not fused; how they measured it is not told, and an allocator's reserve "
        "counts in nvidia-smi",
    ]
    if recipe.model.quantization:
        reasons.append(
            "hours: turning 4-bit weights back, forward, backward and in recomputation, takes time "
            "that operations do not count"
        )
    return reasons


def _flops_of_their_loop(recipe: Recipe, shapes: Shapes) -> int:
    length = 512
    visual = shapes.images.tokens
    ids = np.zeros(length, np.int32)
    ids[:visual] = shapes.images.token_id or 0
    image: Any = (None,)
    sample = Encoded(ids, np.arange(length) < 1, modality=1, images=image)
    spent = Spent()
    batch = Collator(0, None, shapes.images.load)([[sample]])
    spent.add(batch, shapes.formula, shapes.images.token_id)
    spent.add_passes(1, shapes.formula)
    return round(spent.flops * EXAMPLES * recipe.training.num_train_epochs)
