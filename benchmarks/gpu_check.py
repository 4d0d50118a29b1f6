"""What one GPU does with this build: one page of JSON, within eight minutes.

    python -m benchmarks.gpu_check [--out gpu_check.json] [--seconds 460]
    python -m benchmarks.gpu_check --small            # the same on a CPU, tiny and in float32

Random weights of LLaMA-7B's and SmolLM2-135M's shape with CLIP ViT-L/14, packed rows of two
samples, bfloat16. Steps by tuner and knob: samples a second, the share of the GPU's peak that the
counted operations take (`mfu`), peak memory next to the one `plan` predicts. Then losses and
gradients of each knob next to the plain ones in float32, and decoding. Nothing is downloaded.
Every entry is caught by itself and the page is written after each, so that what fails or is
stopped loses nothing else.
"""

import argparse
import json
import platform
import re
import signal
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu_decoding import decode
from benchmarks.gpu_models import (
    SCALES,
    SMALL,
    TUNERS,
    Scale,
    Stepper,
    Way,
    batch_of,
    forget_peak,
    free,
    planned_gib,
    used_gib,
    wait,
)
from torch import Tensor

from varifocal.models.loss import supervised_loss
from varifocal.planning.devices import GPUS, Device, this_cpu

Entry = Callable[[], dict[str, Any]]
PLAIN = Way(attention="eager", dtype=torch.float32, autocast=False, loss_chunk=None, rows=2)
"""What every knob is compared with."""
KNOBS: dict[str, dict[str, Any]] = {
    "sdpa": {"attention": "sdpa"},
    "loss_chunk": {"loss_chunk": 16},
    "checkpointed": {"checkpointing": True},
    "compiled": {"compiled": True},
    "liger": {"loss_kernel": "liger"},
}
SHEETS = {"H200": "h100", "H100": "h100", "A100": "a100-80g", "4090": "rtx4090", "L40S": "l40s"}
"""A word of a GPU's name -> the data sheet whose rates it has."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="tiny shapes in float32 on the CPU")
    parser.add_argument("--seconds", type=float, default=460.0, help="for everything together")
    parser.add_argument("--steps", type=int, default=5, help="measured of each way")
    parser.add_argument("--only", default="", help="entries whose name matches this expression")
    parser.add_argument("--out", type=Path, default=Path("gpu_check.json"))
    return parser.parse_args()


def main() -> None:
    """Measure what fits into the time, write the page after each entry."""
    given = arguments()
    warnings.simplefilter("ignore", FutureWarning)  # transformers' of its own names
    if not given.small and not torch.cuda.is_available():
        raise SystemExit("gpu_check: there is no CUDA device; run it with --small on a CPU")
    page = check(given)
    for name, found in page["entries"].items():
        print(f"{name:34} {json.dumps(found)[:180]}")


def check(given: argparse.Namespace) -> dict[str, Any]:
    """Run all entries; return the page."""
    device = "cpu" if given.small else "cuda"
    page: dict[str, Any] = {"machine": machine(device), "seconds": given.seconds, "entries": {}}
    end = time.monotonic() + given.seconds
    for name, entry in entries(device, given).items():
        if not re.search(given.only, name):
            continue
        page["entries"][name] = attempt(entry, end - time.monotonic())
        free(device)
        given.out.write_text(json.dumps(page, indent=1) + "\n")
    return page


def attempt(entry: Entry, seconds: float) -> dict[str, Any]:
    """Run one entry within some seconds; what goes wrong becomes a sentence."""
    if seconds <= 1:
        return {"skipped": "no time was left"}
    began = time.monotonic()
    try:
        with time_limit(seconds):
            found = entry()
    except ImportError as error:
        return {"skipped": str(error)}
    except Exception as error:  # one entry must not lose the page
        lines = str(error).splitlines() or [""]
        return {"error": f"{type(error).__name__}: {lines[0][:300]}"}
    return {**found, "entry_seconds": round(time.monotonic() - began, 2)}


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError inside the block when the time is up."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done within the {seconds:.0f} s that were left")

    former = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def entries(device: str, given: argparse.Namespace) -> dict[str, Entry]:
    """List what is measured, the most wanted first; what compiles comes last."""
    small = given.small
    large, little = ("small", "small") if small else ("llama-7b", "smollm2-135m")
    plain = Way(dtype=torch.float32, autocast=False) if small else Way()
    ways = {tuner: replace(plain, tuner=tuner) for tuner in TUNERS}
    more = {
        "mma checkpointed": replace(plain, checkpointing=True),
        "mma nf4": replace(plain, quantization="nf4"),
        "lora nf4": replace(plain, tuner="lora", quantization="nf4"),
        "mma 16 rows": replace(plain, rows=16),
        "mma liger": replace(plain, loss_kernel="liger"),
    }
    compiled = {f"{name} compiled": replace(way, compiled=True) for name, way in ways.items()}
    found: dict[str, Entry] = {"products": partial(products, device, small)}

    def add(shape: str, named: dict[str, Way]) -> None:
        for name, way in named.items():
            found[f"{shape} {name}"] = partial(measure, scale_of(shape), way, device, given.steps)

    def add_equal(knobs: dict[str, dict[str, Any]]) -> None:
        for tuner in TUNERS:
            for name, knob in knobs.items():
                found[f"equal {tuner} {name}"] = partial(
                    equal, scale_of(little), device, tuner, knob
                )

    add(large, ways)
    add(little, ways)
    for tuner in TUNERS:
        found[f"equal {tuner} packed"] = partial(packed_apart, scale_of(little), device, tuner)
    add_equal({name: knob for name, knob in KNOBS.items() if name != "compiled"})
    for shape in (large, little):
        found[f"{shape} decoding"] = partial(decode, scale_of(shape), plain, device)
    add(large, more)
    add(little, compiled)
    add_equal({"compiled": KNOBS["compiled"]})
    add(large, compiled)
    return found


def scale_of(name: str) -> Scale:
    """Look a shape up."""
    return SMALL if name == "small" else SCALES[name]


def machine(device: str) -> dict[str, Any]:
    """Name the device and the libraries."""
    on_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else this_cpu().source,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
    }


def sheet(device: str) -> Device | None:
    """The device's data sheet; None for a GPU that is not listed."""
    if device == "cpu":
        return this_cpu()
    name = torch.cuda.get_device_name()
    known = (GPUS[key] for word, key in SHEETS.items() if word in name)
    return next(known, None)


def measure(scale: Scale, way: Way, device: str, steps: int) -> dict[str, Any]:
    """Take steps; set their speed and memory next to what is predicted."""
    planned = sum(planned_gib(scale, way).values())
    free(device)
    step = Stepper(scale, way, device)
    forget_peak(device)  # a base in 4 bits was larger while it was built
    first = step()
    seconds = statistics.median(step() for _ in range(steps))
    needed, masked = step.flops()
    samples = (way.rows or scale.rows) * (scale.row_length // scale.sample_length)
    page = {
        "samples_per_second": samples / seconds,
        "tokens_per_second": (way.rows or scale.rows) * scale.row_length / seconds,
        "step_seconds": seconds,
        "first_step_seconds": first,
        "tflops_per_step": needed / 1e12,
        **used_gib(device),
        "planned_gib_without_framework": planned,
    }
    if (known := sheet(device)) is not None:
        kind = str(way.dtype).removeprefix("torch.")
        peak = 1e12 * known.teraflops.get(kind, known.teraflops["float32"])
        page["mfu"] = needed / seconds / peak
        page["planned_seconds"] = (needed + masked) / known.flops_per_second(kind)
    return {name: float(f"{value:.5g}") for name, value in page.items()}


def products(device: str, small: bool) -> dict[str, Any]:
    """Measure the rate of the two shapes' own products, in 1e12 operations a second."""
    scales = {"small": SMALL} if small else SCALES
    found: dict[str, Any] = {}
    for dtype in (torch.float32,) if small else (torch.bfloat16, torch.float32):
        for name, scale in scales.items():
            width, inner = scale.language["hidden_size"], scale.language["intermediate_size"]
            tokens = scale.rows * scale.row_length
            for outputs in (width, inner):
                rate = product_rate(tokens, width, outputs, dtype, device)
                key = f"{str(dtype).removeprefix('torch.')} {tokens} x {width} x {outputs} ({name})"
                found[key] = float(f"{rate / 1e12:.4g}")
    return found


def product_rate(rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: str) -> float:
    """Operations a second of one product, for a tenth of a second."""
    states = torch.randn(rows, inputs, dtype=dtype, device=device)
    weight = torch.randn(outputs, inputs, dtype=dtype, device=device)
    count, began = -3, time.perf_counter()
    while count < 1 or time.perf_counter() - began < 0.1:
        if count == 0:
            wait(device)
            began = time.perf_counter()
        torch.nn.functional.linear(states, weight)
        wait(device)
        count += 1
    return 2 * rows * inputs * outputs * count / (time.perf_counter() - began)


def equal(scale: Scale, device: str, tuner: str, knob: dict[str, Any]) -> dict[str, Any]:
    """Compare loss and gradient under a knob with the plain ones, in float32.

    Values are relative: of the loss, and of the largest number of the gradient.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    plain = replace(PLAIN, tuner=tuner)
    right = loss_and_gradient(scale, plain, device)
    return apart(right, loss_and_gradient(scale, replace(plain, **knob), device))


def loss_and_gradient(scale: Scale, way: Way, device: str) -> tuple[Tensor, Tensor]:
    """Return the loss, and all gradients in one row, of the first step."""
    step = Stepper(scale, way, device)
    loss = step.loss()
    loss.backward()
    grads = [each.grad.flatten() for each in step.model.parameters() if each.grad is not None]
    return loss.detach(), torch.cat(grads)


def apart(right: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """Measure how far two losses and gradients are apart."""
    (loss, grad), (its_loss, its_grad) = right, other
    return {
        "loss": ((its_loss - loss).abs() / loss.abs()).item(),
        "gradient": ((its_grad - grad).abs().max() / grad.abs().max()).item(),
    }


def packed_apart(scale: Scale, device: str, tuner: str) -> dict[str, Any]:
    """Compare the loss of packed rows with that of their samples, each alone in a row."""
    way = replace(PLAIN, tuner=tuner)
    alone = replace(scale, row_length=scale.sample_length)
    many = (way.rows or scale.rows) * scale.row_length // scale.sample_length
    step = Stepper(scale, way, device)
    rows = batch_of(alone, replace(way, rows=many), step.base, device)
    for name in ("pixel_values", "image_features"):
        if name in rows:  # drawn anew for each batch
            rows[name] = step.batch[name]
    with torch.no_grad():
        packed, single = step.loss(), supervised_loss(step.model, rows)
    return {"loss": ((packed - single).abs() / single.abs()).item()}


if __name__ == "__main__":
    main()
