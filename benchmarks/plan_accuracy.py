"""Plans held against runs: three language models, MMA and MixLoRA, each in a process of its own.

    python benchmarks/plan_accuracy.py WORK [--only MODEL-METHOD] [--steps 6]

Each pair is calibrated, planned and trained; WORK/results.jsonl keeps what is done, so that a run
that was broken off goes on. It is the `demo` recipe without the connector's alignment; in place of
SmolLM2 stand two models with some 60 million random weights, and SmolLM2's tokenizer.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MODELS = ("smollm2", "llama", "gpt-neox")
METHODS = {
    "mma": "tuner={type: mma, router_temperature: 1.0}",
    "mixlora": "tuner={type: mixlora}",
}
NEOX_LINEARS = ("query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h")
WIDTH, LAYERS, HEADS = 512, 12, 8
BOOK_SIZE = 120


def main() -> None:
    """Run what is not done, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--steps", type=int, default=6)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    results = given.work / "results.jsonl"
    for model in MODELS:
        for method in METHODS:
            name = f"{model}-{method}"
            if name not in _read(results) and given.only in ("", name):
                found = _hold(given.work.resolve(), model, method, given.steps)
                with results.open("a") as file:
                    file.write(json.dumps({"name": name, **found}) + "\n")
    for line in table(_read(results)):
        print(line)


def _read(results: Path) -> dict[str, dict[str, Any]]:
    lines = results.read_text().splitlines() if results.is_file() else []
    return {page["name"]: page for page in map(json.loads, lines)}


def _hold(work: Path, model: str, method: str, steps: int) -> dict[str, Any]:
    """Calibrate, then train one pair; return its `plan.json`."""
    recipe = [*_recipe(work, model), "--set", METHODS[method]]
    if (model, method) == ("gpt-neox", "mixlora"):
        recipe += ["--set", f"tuner.target_modules=[{', '.join(NEOX_LINEARS)}]"]
    recipe += ["--set", f"training.max_steps={steps}", "--set", "training.save_steps=1000"]
    run = work / f"{model}-{method}"
    for arguments in (
        ["plan", *recipe, "--calibrate", "--json"],
        ["train", *recipe, "--out", str(run)],
    ):
        command = [sys.executable, "-c", "from varifocal.cli import main; main()", *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((run / "plan.json").read_text())


def _recipe(work: Path, model: str) -> list[str]:
    """Write data, and a model if it is random; return the recipe and its overrides."""
    from varifocal.sciencebook import make_sciencebook

    book = work / "sciencebook"
    if not (book / "problems.json").is_file():
        make_sciencebook(book, train=BOOK_SIZE, val=0, test=8, seed=0)
    own = ["demo", "--set", f"data.root={work}", "--set", "alignment=null"]
    if model == "smollm2":
        return own
    return [*own, "--set", f"model.language_model={_random(work, model)}"]


def _random(work: Path, model: str) -> Path:
    """Save a model with random weights."""
    place = work / model
    if place.is_dir():
        return place
    import torch
    from transformers import (
        AutoTokenizer,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    from varifocal.models.packaged_weights import packaged_directory

    tokenizer = AutoTokenizer.from_pretrained(packaged_directory("smollm2-135m-instruct"))
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    torch.manual_seed(0)
    built: Any = (
        LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=3 * WIDTH))
        if model == "llama"
        else GPTNeoXForCausalLM(GPTNeoXConfig(**sizes, intermediate_size=4 * WIDTH))
    )
    built.to(torch.bfloat16).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def table(pages: dict[str, dict[str, Any]]) -> list[str]:
    """Lay predicted and measured next to one another, in Markdown."""
    lines = [
        "| run | peak GiB, predicted | measured | off | tokens | seconds, predicted | measured "
        "| off |",
        "|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name, page in pages.items():
        predicted, measured = page["predicted"], page["measured"]
        peaks = predicted["peak_memory_gib"], measured["peak_memory_gib"]
        seconds = predicted["seconds"]["training"], measured["seconds"]["training"]
        tokens = "exact" if predicted["tokens"] == measured["tokens"] else "differ"
        lines.append(
            f"| {name} | {peaks[0]:.2f} | {peaks[1]:.2f} | {peaks[0] / peaks[1] - 1:+.0%} "
            f"| {measured['tokens']:,}, {tokens} | {seconds[0]:.1f} | {seconds[1]:.1f} "
            f"| {seconds[0] / seconds[1] - 1:+.0%} |"
        )
    return lines


if __name__ == "__main__":
    main()
