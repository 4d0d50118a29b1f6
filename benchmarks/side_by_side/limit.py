"""What the machine allows: the products of a decoder layer alone, and the step's limit from them.

An arm of its own, `products`, takes its turn in every round like the others, so that neighbours on
the machine slow it as they slow them. Its step is every frozen product of one decoder layer,
forward and for the gradient of its input, on as many tokens as a step of the others has. Nothing
but these products would be the fastest training of these weights.

Legend: N tokens of a step, I inputs and O outputs of a linear.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from benchmarks.side_by_side.gate import Gate
from torch import Tensor, nn
from torch.nn import functional as F

from varifocal.data.encoding.encoder import Encoded
from varifocal.planning.shapes import Shapes, build_shapes
from varifocal.recipe import Recipe

FEATURES = (
    *("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile"),
    *("amx_bf16", "amx_int8", "asimd", "asimddp", "bf16", "i8mm", "sve"),
)
"""What products of 32, 16 and 8 bits are made of, by Linux's names."""
_SECONDS = 0.5
"""How long each number format's rate is measured, once."""


def processor_features() -> list[str]:
    """List those of `FEATURES` that the processor has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    told = next((one for one in lines if one.lower().startswith(("flags", "features"))), "")
    named = set(told.partition(":")[2].split())
    return [feature for feature in FEATURES if feature in named]


def products(recipe: Recipe, directory: Path, gate: Gate) -> None:
    """Take steps of products alone, in the recipe's number format."""
    shapes = layer_shapes(build_shapes(recipe))
    tokens = recipe.training.per_device_train_batch_size * cast(int, recipe.data.row_length)
    pairs = list(_tensors(shapes, tokens, getattr(torch, recipe.model.dtype)))
    flops = 2 * 2 * tokens * sum(inputs * outputs for inputs, outputs in shapes)
    gate.loaded(nn.Module(), product_flops=flops, gflops=rates(shapes, min(tokens, 256)))
    while True:
        for states, weight, grad in pairs:
            F.linear(states, weight)
            torch.mm(grad, weight)
        gate.step(0.0)


def layer_shapes(shapes: Shapes) -> list[tuple[int, int]]:
    """List the linears (I, O) of a decoder layer, those of tuners left out."""
    layer = cast(Any, shapes.base).get_decoder().layers[0]
    weights = [part.weight for part in layer.modules() if isinstance(part, nn.Linear)]
    frozen = [weight for weight in weights if not weight.requires_grad]
    return [(weight.shape[1], weight.shape[0]) for weight in frozen]


def _tensors(
    shapes: list[tuple[int, int]], tokens: int, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield states [N, I], weight [O, I] and gradient [N, O] of each linear."""
    for inputs, outputs in shapes:
        sizes = (tokens, inputs), (outputs, inputs), (tokens, outputs)
        states, weight, grad = (torch.randn(size).to(dtype) for size in sizes)
        yield states, weight, grad


def rates(shapes: list[tuple[int, int]], tokens: int) -> dict[str, float]:
    """Measure 1e9 operations a CPU second of all linears' forward products, by number format."""
    found = {
        dtype: _rate(
            [(states, weight.T) for states, weight, _ in _tensors(shapes, tokens, kind)], torch.mm
        )
        for dtype, kind in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
    }
    whole = [
        (torch.randint(-127, 128, (tokens, inputs), dtype=torch.int8),
         torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8).T)
        for inputs, outputs in shapes
    ]  # fmt: skip
    return {**found, "int8": _rate(whole, torch._int_mm)}


def _rate(pairs: list[tuple[Tensor, Tensor]], product: Any) -> float:
    """Measure a product over pairs of matrices; where it is slow, over fewer of them."""
    product(*(part[:1] if part is pairs[0][0] else part for part in pairs[0]))  # its first call
    flops, began = 0, time.process_time()
    while True:
        for states, weight in pairs:
            product(states, weight)
            flops += 2 * states.shape[0] * weight.numel()
            spent = time.process_time() - began
            if spent > _SECONDS:
                return round(flops / spent / 1e9, 1)


def flops_of(samples: list[Encoded], shapes: Shapes) -> int:
    """Count the operations that a step of these samples needs, features from the table.

    Neither padding nor what a loss computes again is needed; the tower has run before.
    """
    images = sum(len(sample.images) for sample in samples)
    language = shapes.formula.language(
        tokens=sum(map(len, samples)),
        pairs=sum(len(sample) ** 2 for sample in samples),
        positions=sum(int((~sample.prompt_mask).sum()) for sample in samples),
        num_images=images,
    )
    return language + shapes.formula.images(0, images)
