"""Decode with Varifocal's engine, with llama.cpp and with transformers, in one interleaved run.

All have the weights of one run: the engine folds its adapter, the others read its GGUF export
(`varifocal export RUN --to gguf`), llama.cpp in float32 and in Q8_0, transformers in float32.
Measured are the tokens after the prompt, of 1 and of 8 rows, to the same number of prompt tokens.
With images, the engine reads an image; the others get as many tokens of text, since decoding does
not know where a token came from. llama.cpp is npm's `node-llama-cpp`, which computes with AVX2.

    python -m benchmarks.decode_peers RUN NODE_MODULES [--threads 2] [--rounds 5] [--tokens 32]
    python -m benchmarks.decode_peers --products

The second writes how long the products of SmolLM2-135M take by the number of rows: as the engine
multiplies, and as `F.linear` does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, StoppingCriteria

from varifocal.assemble import open_run
from varifocal.data.example import Image, Message
from varifocal.exporting.export import export_run
from varifocal.exporting.parity import prompts
from varifocal.exporting.request import Order
from varifocal.run import RunDirectory
from varifocal.serving.adapter_routes import multiply
from varifocal.serving.engine import Engine, Sampling

PROMPT = "Explain to a child of ten years why the sky is blue and the evening red. " * 3
MOST_ROWS = 8
Seconds = tuple[float, float]
"""Of wall and of CPU time."""
Measure = Callable[[int, int], Seconds]
"""Rows, tokens -> how long these tokens of every row took."""


def clocks() -> Seconds:
    """Read the wall clock, and this process's CPU time."""
    return time.perf_counter(), time.process_time()


def since(start: Seconds) -> Seconds:
    """Return the seconds that passed."""
    now = clocks()
    return now[0] - start[0], now[1] - start[1]


class EngineArm:
    """Varifocal's engine, step by step.

    Args:
        root: a run directory.
        image: what the conversation shows; None for text alone.
    """

    def __init__(self, root: Path, image: Image | None) -> None:
        _, parts = open_run(root)
        self.engine = Engine(parts.model, parts.encoder, parts.load_images, prefix_cache_gib=0)
        self.engine.stop_ids = frozenset()
        content = (PROMPT,) if image is None else (image, PROMPT)
        self.messages = [Message("user", content)]
        ids = self.engine._request(self.messages, Sampling(), True).encoded.input_ids.tolist()
        placeholder = parts.encoder.image_token_id
        self.ids = [ids[-1] if token == placeholder else token for token in ids]

    @torch.inference_mode()
    def __call__(self, rows: int, tokens: int) -> Seconds:
        """Measure the steps after the prompts."""
        scheduler = self.engine._scheduler
        for _ in range(rows):
            scheduler.start(self.engine._request(self.messages, Sampling(tokens + 1), True))
        start = clocks()
        for _ in range(tokens):
            scheduler.step()
        assert not scheduler.batches
        return since(start)


class _Watch(StoppingCriteria):
    """Reads the clocks at the first token; nothing stops."""

    start: Seconds | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.start = self.start or clocks()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class GenerateArm:
    """transformers' `generate` with its defaults.

    Args:
        file: a GGUF file in float32.
        ids: the prompt.
    """

    def __init__(self, file: Path, ids: list[int]) -> None:
        loaded = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
        self.model: Any = loaded.eval()
        self.ids = ids

    def __call__(self, rows: int, tokens: int) -> Seconds:
        """Measure from the first token to the last one."""
        ids = torch.tensor([self.ids] * rows)
        watch = _Watch()
        length = {"min_new_tokens": tokens + 1, "max_new_tokens": tokens + 1}
        self.model.generate(
            ids, attention_mask=ids * 0 + 1, do_sample=False, stopping_criteria=[watch], **length
        )
        assert watch.start is not None
        return since(watch.start)


class LlamaCppArm:
    """llama.cpp in a process of Node.js of its own.

    Args:
        modules: a folder with npm's `node-llama-cpp`.
        file: a GGUF file.
        ids: the prompt.
        threads: threads of the products.
    """

    def __init__(self, modules: Path, file: Path, ids: list[int], threads: int) -> None:
        script = Path(__file__).with_suffix(".mjs")
        package = str((modules / "node-llama-cpp").resolve())
        self.process = subprocess.Popen(
            ["node", script, package, file, str(threads), str(MOST_ROWS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ids = ids

    def __call__(self, rows: int, tokens: int) -> Seconds:
        """Measure the tokens after the prompts."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps({"rows": [self.ids] * rows, "tokens": tokens}) + "\n")
        stdin.flush()
        found = json.loads(stdout.readline())
        assert found["written"] == [tokens] * rows
        return found["wall"], found["cpu"]


def arms_of(given: argparse.Namespace, folder: Path, image: Image | None) -> dict[str, Measure]:
    """Open all programs on one run's route.

    Args:
        given: the command line.
        folder: where the exports lie, one for each number format.
        image: takes the image route; None the text route.
    """
    engine = EngineArm(given.run, image)
    route = "text" if image is None else "image"
    files = {
        dtype: next((folder / dtype).glob(f"**/{route}/model.gguf"))
        for dtype in ("float32", "q8_0")
    }
    llama = {
        dtype: LlamaCppArm(given.modules, file, engine.ids, given.threads)
        for dtype, file in files.items()
    }
    return {
        "varifocal": engine,
        "llama.cpp, float32": llama["float32"],
        "llama.cpp, Q8_0": llama["q8_0"],
        "transformers": GenerateArm(files["float32"], engine.ids),
    }


def measure(arms: dict[str, Measure], rows: int, given: argparse.Namespace, what: str) -> None:
    """Print a row for each program: tokens a second, and the engine's ratio to it by round."""
    spent: dict[str, list[Seconds]] = {name: [] for name in arms}
    for arm in arms.values():
        arm(rows, 2)
    for _ in range(given.rounds):
        for name, arm in arms.items():
            spent[name].append(arm(rows, given.tokens))
    own = spent["varifocal"]
    for name, seconds in spent.items():
        cells = [f"{rows}", what, name]
        for clock in (0, 1):
            middle = statistics.median(each[clock] for each in seconds)
            ratios = [
                theirs[clock] / ours[clock] for theirs, ours in zip(seconds, own, strict=True)
            ]
            cells.append(f"{rows * given.tokens / middle:.1f}")
            spread = f"({min(ratios):.2f} - {max(ratios):.2f})"
            cells.append(f"{statistics.median(ratios):.2f} {spread}")
        print(f"| {' | '.join(cells)} |", flush=True)


@torch.inference_mode()
def print_products(rounds: int) -> None:
    """Print CPU milliseconds of a pass over all of a model's matrices, least of the rounds."""
    shapes = [*[(576, 576)] * 2, *[(192, 576)] * 2, *[(1536, 576)] * 2, (576, 1536)] * 30
    weights = [torch.randn(shape) for shape in [*shapes, (49152, 576)]]
    print("| rows | `F.linear`, ms | as the engine multiplies, ms |")
    print("|---|---|---|")
    for rows in (1, 2, 4, 8, 16, 32):
        xs = {width: torch.randn(rows, 1, width) for width in (576, 1536)}
        spent: dict[Any, list[float]] = {F.linear: [], multiply: []}
        for _ in range(rounds):
            for product, seconds in spent.items():
                start = time.process_time()
                for weight in weights:
                    product(xs[weight.shape[1]], weight)
                seconds.append(time.process_time() - start)
        print(f"| {rows} | {' | '.join(f'{1e3 * min(each):.0f}' for each in spent.values())} |")


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("modules", type=Path, metavar="NODE_MODULES", nargs="?")
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--exports", type=Path, help="keep the exported files here, or take them")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.products:
        print_products(given.rounds)
    elif given.modules is None:
        parser.error("name a run and a folder of node modules, or --products")
    else:
        print_speeds(given)


def print_speeds(given: argparse.Namespace) -> None:
    """Print the table of the programs."""
    with tempfile.TemporaryDirectory() as name:
        folder = given.exports or Path(name)
        for dtype in ("float32", "q8_0"):
            if not (folder / dtype).exists():
                order = Order(RunDirectory.open(given.run), "gguf", dtype=dtype, num_prompts=2)
                export_run(order, folder / dtype)
        print("| rows | prompt | program | tokens/s | varifocal's ratio | tokens/CPU s | ratio |")
        print("|---|---|---|---|---|---|---|")
        for image in (None, next(prompts(1, images=True)).messages[0].content[0]):
            arms = arms_of(given, folder, image)
            for rows in (1, MOST_ROWS):
                measure(arms, rows, given, "text" if image is None else "image")
            for arm in arms.values():
                if isinstance(arm, LlamaCppArm):
                    arm.process.kill()


if __name__ == "__main__":
    main()
