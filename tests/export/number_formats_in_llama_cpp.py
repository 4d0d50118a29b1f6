"""What the number formats of a GGUF file cost: the same questions to llama.cpp in each of them.

    python tests/export/number_formats_in_llama_cpp.py RUN BOOK NODE_MODULES

RUN is a trained run, BOOK a folder in ScienceQA's layout whose questions without an image are asked
as the run's recipe asks; the text route answers, greedily. NODE_MODULES has npm's `node-llama-cpp`
and `@node-llama-cpp/linux-x64`, whose build computes with AVX2, and whose libllama writes the
Q4_K_M file. Minutes; no suite collects this file.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from varifocal.assemble import open_run
from varifocal.data.example import Example
from varifocal.data.loading import load_source
from varifocal.evaluation.statistics import paired_bootstrap, wilson
from varifocal.exporting.export import export_run
from varifocal.exporting.request import Order
from varifocal.run import RunDirectory

HERE = Path(__file__).parent
TOKENS = 16
Q4_K_M = 15  # of llama.h's llama_ftype


class _Settings(ctypes.Structure):
    """llama_model_quantize_params, whose first two numbers alone are set; the rest is room."""

    _fields_ = (
        ("num_threads", ctypes.c_int32),
        ("number_format", ctypes.c_int),
        ("rest", ctypes.c_ubyte * 248),
    )


def quantize(libraries: Path, source: Path, target: Path) -> None:
    """Make a Q4_K_M file of a float32 one, by llama.cpp's own function."""
    for pattern in ("libggml-base.so", "libggml.v*.so", "libllama.v*.so"):
        (file,) = libraries.glob(pattern)
        library = ctypes.CDLL(str(file), mode=ctypes.RTLD_GLOBAL)
    library.llama_model_quantize_default_params.restype = _Settings
    settings = library.llama_model_quantize_default_params()
    settings.num_threads, settings.number_format = 1, Q4_K_M
    library.llama_model_quantize.restype = ctypes.c_uint32
    names = (str(source).encode(), str(target).encode())
    if library.llama_model_quantize(*names, ctypes.byref(settings)) != 0:
        raise SystemExit(f"llama.cpp did not quantise {source}")


def answers(file: Path, prompts: Sequence[str], modules: Path) -> list[str]:
    """Ask llama.cpp; return what it writes to each prompt."""
    job = {
        "package": str((modules / "node-llama-cpp").resolve()),
        "model": str(file),
        "prompts": list(prompts),
        "tokens": TOKENS,
    }
    answered = subprocess.run(
        ["node", HERE / "node_llama_cpp.mjs"],
        input=json.dumps(job).encode(),
        check=True,
        stdout=subprocess.PIPE,
    )
    return [text.strip() for text in json.loads(answered.stdout)]


def files(root: Path, folder: Path, modules: Path) -> dict[str, Path]:
    """Write a run's text route in each number format."""
    found = {}
    for dtype in ("float32", "q8_0"):
        order = Order(RunDirectory.open(root), "gguf", dtype=dtype, num_prompts=2)
        found[dtype] = export_run(order, folder / dtype)[0].directory / "model.gguf"
    found["q4_k_m"] = folder / "q4_k_m.gguf"
    libraries = modules / "@node-llama-cpp" / "linux-x64" / "bins" / "linux-x64"
    quantize(libraries, found["float32"], found["q4_k_m"])
    return found


def prompt_of(example: Example, encoder: Any) -> str:
    """Write a question as the run asks it."""
    turns = [{"role": "system", "content": encoder.system}] if encoder.system is not None else []
    turns.append({"role": "user", "content": example.messages[0].text})
    return encoder.template.render(turns, add_generation_prompt=True)


def main() -> None:
    """Print a table: right answers, and how many are those of float32."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("book", type=Path)
    parser.add_argument("modules", type=Path, metavar="NODE_MODULES")
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args()
    recipe, parts = open_run(asked.run)
    section: Any = recipe.data.evaluate[0]
    section = section.at(str(asked.book.resolve())).model_copy(update={"skills": None})
    texts = {one.messages[0].text: one for one in load_source(section) if not one.images}
    examples = list(texts.values())[: asked.limit]  # each question once
    golds = [example.messages[-1].text.strip() for example in examples]
    prompts = [prompt_of(example, parts.encoder) for example in examples]
    print("| number format | size | right | 95 % | against float32 | as float32 writes | 95 % |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        first: list[str] = []
        for dtype, file in files(asked.run, Path(name), asked.modules).items():
            written = answers(file, prompts, asked.modules)
            first = first or written
            right = [float(a == gold) for a, gold in zip(written, golds, strict=True)]
            before = [float(a == gold) for a, gold in zip(first, golds, strict=True)]
            same, n = sum(a == b for a, b in zip(written, first, strict=True)), len(written)
            lost = paired_bootstrap(before, right)
            print(
                f"| {dtype} | {file.stat().st_size / 2**20:.0f} MiB "
                f"| {sum(right):.0f} of {n} ({sum(right) / n:.1%}) | {_range(int(sum(right)), n)} "
                f"| {100 * lost.value:+.1f} ({100 * lost.low:+.1f} to {100 * lost.high:+.1f}) "
                f"| {same} of {n} | {_range(same, n)} |",
                flush=True,
            )


def _range(successes: int, n: int) -> str:
    low, high = wilson(successes, n)
    return f"{100 * low:.1f} to {100 * high:.1f}"


if __name__ == "__main__":
    sys.exit(main())
