"""Decode with a folded MMA adapter, with the same adapter as it is, and without any.

One process, one engine each, and rounds that take turns, so that a busy machine slows all of them
alike. Measured are CPU seconds of the scheduler's steps after the prompt; nothing ends early.

    python benchmarks/decode_speed.py [--model smollm2-135m-instruct] [--rounds 5] [--tokens 24]
"""

import argparse
import statistics
import time

import torch
from peft import get_peft_model

from varifocal.assemble import open_model
from varifocal.data.example import Message
from varifocal.serving.engine import Engine, Sampling
from varifocal.tuners import MMAConfig

PROMPT = "Explain to a child of ten years why the sky is blue and the evening red. " * 3


def engine_of(model: str, kind: str) -> Engine:
    """Open a model of its own, with an adapter that does something, or bare."""
    _, parts = open_model(model)
    if kind == "bare":
        whole = parts.model
    else:
        torch.manual_seed(0)
        whole = get_peft_model(parts.base, MMAConfig())
        for name, parameter in whole.named_parameters():
            if "mma_up" in name:
                torch.nn.init.normal_(parameter, std=0.01)
    engine = Engine(whole, parts.encoder, fold=kind != "unfolded", prefix_cache_gib=0)
    engine.stop_ids = frozenset()
    return engine


@torch.inference_mode()
def cpu_seconds(engine: Engine, batch: int, tokens: int, without: int = 0) -> float:
    """Return the CPU seconds of a number of steps with so many rows.

    Args:
        engine: the engine.
        batch: rows.
        tokens: steps.
        without: how many of the rows leave the adapter out.
    """
    scheduler = engine._scheduler
    for row in range(batch):
        messages = [Message("user", (PROMPT,))]
        sampling = Sampling(tokens + 2)
        scheduler.start(engine._request(messages, sampling, adapter=row >= without))
    scheduler.step()
    start = time.process_time()
    for _ in range(tokens):
        scheduler.step()
    seconds = time.process_time() - start
    assert not scheduler.batches
    return seconds


def main() -> None:
    """Print a table of tokens a CPU second, and of ratios to the bare model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    engines = {kind: engine_of(given.model, kind) for kind in ("bare", "folded", "unfolded")}
    print("rows  what                tokens / CPU s  ratio to bare, median (least - most)")
    for batch in (1, 8):
        cases = {kind: (engine, 0) for kind, engine in engines.items()}
        if batch > 1:
            cases["folded, half without"] = (engines["folded"], batch // 2)
        for engine, without in cases.values():
            cpu_seconds(engine, batch, 2, without)
        spent: dict[str, list[float]] = {name: [] for name in cases}
        for _ in range(given.rounds):
            for name, (engine, without) in cases.items():
                spent[name].append(cpu_seconds(engine, batch, given.tokens, without))
        for name, seconds in spent.items():
            speed = batch * given.tokens / statistics.median(seconds)
            ratios = [bare / own for bare, own in zip(spent["bare"], seconds, strict=True)]
            middle = statistics.median(ratios)
            spread = f"({min(ratios):.3f} - {max(ratios):.3f})"
            print(f"{batch:4d}  {name:20s}  {speed:12.1f}  {middle:.3f} {spread}", flush=True)


if __name__ == "__main__":
    main()
