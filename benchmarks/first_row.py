"""How long until the first row of a large file has been trained, from the command on.

    python benchmarks/first_row.py [--rows 1000000] [--dir /tmp/varifocal-first-row]

Writes an Alpaca-like file of so many rows, starts `varifocal train` on it three times with one step
each (the first with an empty cache of encoded records), and prints the seconds from the command to
the end of the first step, and the memory next to that of a file with a thousand rows. What a step
takes is part of it: the model is SmolLM2-135M on the processor.
"""

import argparse
import json
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

RECIPE = """
model: {language_model: smollm2-135m-instruct, attn_implementation: eager}
tuner: {type: lora}
data:
  train: [{path: %s, format: alpaca}]
  max_length: 512
  overflow: drop
training: {max_steps: 1, per_device_train_batch_size: 1, logging_steps: 1}
"""
WORDS = ("why", "does", "the", "iron", "ship", "float", "on", "cold", "water", "while", "stone")


def write_rows(file: Path, count: int) -> None:
    """Write so many questions, each other than the rest."""
    draw = random.Random(0)
    with file.open("w") as out:
        for number in range(count):
            text = " ".join(draw.choices(WORDS, k=draw.randint(8, 40)))
            answer = " ".join(draw.choices(WORDS, k=draw.randint(5, 60)))
            row = {"instruction": f"{number}: {text}?", "input": "", "output": answer}
            out.write(json.dumps(row) + "\n")


def first_step(recipe: Path, out: Path, cache: Path) -> dict[str, float]:
    """Run the command; return seconds until the first step was logged, and peak memory in GiB."""
    shutil.rmtree(out, ignore_errors=True)
    program = str(Path(sys.executable).with_name("varifocal"))
    command = [program, "train", str(recipe), "--out", str(out)]
    measured = ["/usr/bin/env", f"VARIFOCAL_CACHE={cache}", *command]
    started = time.monotonic()
    with subprocess.Popen(measured, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (out / "metrics.jsonl").is_file():
            time.sleep(0.02)
        seconds = time.monotonic() - started
        said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(said)
    found = re.search(r"peak memory ([\d.]+) GiB", said)
    return {"seconds": round(seconds, 1), "peak_memory_gib": float(found[1]) if found else 0.0}


def main() -> None:
    """Write the files, run, print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--dir", type=Path, default=Path("/tmp/varifocal-first-row"))
    given = options.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    cache = given.dir / "cache"
    results = {}
    for count in (1000, given.rows):
        file, recipe = given.dir / f"{count}.jsonl", given.dir / f"{count}.yaml"
        if not file.is_file():
            write_rows(file, count)
        recipe.write_text(RECIPE % file)
        first_step(recipe, given.dir / "run", cache)  # weights are converted, files are read once
        for name in ("encoded", "indexes", "digests", "scans"):
            shutil.rmtree(cache / name, ignore_errors=True)
        for again in ("first", "second", "third"):
            results[f"{count} rows, {again} time"] = first_step(recipe, given.dir / "run", cache)
    for name, result in results.items():
        print(f"{name:>30}: {result['seconds']:5.1f} s, peak {result['peak_memory_gib']:.1f} GiB")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
