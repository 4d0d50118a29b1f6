"""What a step costs against how much there is to do: `varifocal`'s arm alone, a point a process.

    python -m benchmarks.side_by_side.sweep [--points length,images,rank,model,samples]

Each point changes one thing of the benchmark's recipe and takes two steps after one that does not
count (layers are not compiled: a point is too short for it). `samples` looks at memory: how much
the process holds before the first step when there are more records. Results go line by line to
DIR/sweep.jsonl; points that are there are not taken again.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.side_by_side.arms import samples_per_step
from benchmarks.side_by_side.children import Child
from benchmarks.side_by_side.material import Shape
from benchmarks.side_by_side.page import MODEL, write_page

from varifocal.recipe import load_recipe

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMAS = {"llama-11m": (256, 8), "llama-38m": (384, 16), "llama-135m": (576, 30)}
"""Width and layers of random models with SmolLM2's vocabulary."""


def points(chosen: list[str], directory: Path) -> dict[str, dict[str, Any]]:
    """Name every point and what it changes."""
    few = {"samples": 64}
    found: dict[str, dict[str, Any]] = {}
    for length in (128, 256, 512, 1024):
        shape = Shape(**few, stretch=length / 512, longest=length)
        found[f"length={length}"] = {"shape": shape, "rows": 1024 // length}
    for share in (0.0, 0.5, 1.0):
        found[f"images={share}"] = {"shape": Shape(**few, images=share), "rows": 2}
    for rank in (2, 16, 128):
        tuner = {"rank": rank, "target_modules": SEVEN}
        found[f"rank={rank}"] = {"shape": Shape(**few), "rows": 2, "tuner": tuner}
    for name in LLAMAS:
        model = {"language_model": str(directory / name)}
        found[f"model={name}"] = {"shape": Shape(**few), "rows": 2, "model": model}
    for samples in (1_000, 10_000, 100_000):
        shape = Shape(samples=samples, kind="QCM-A", images=0.0, longest=256)
        found[f"samples={samples}"] = {"shape": shape, "rows": 1}
    return {name: given for name, given in found.items() if name.split("=")[0] in chosen}


def save_llama(directory: Path, width: int, layers: int) -> None:
    """Save a random Llama with SmolLM2's tokenizer."""
    import transformers as hf

    from varifocal.assemble import load_processor
    from varifocal.recipe import ModelSection

    tokenizer = load_processor(ModelSection(language_model=MODEL["language_model"]))
    config = hf.LlamaConfig(
        vocab_size=49152,
        hidden_size=width,
        intermediate_size=width * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    hf.LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def measure(name: str, given: dict[str, Any], directory: Path, threads: int) -> dict[str, Any]:
    """Take one point's steps."""
    training = {"max_steps": 3, "warmup_steps": 0, "compile_layers": False}
    few = {"overflow": "drop"}  # a short row may have no room for a question
    recipe = write_page(directory / name, training=training, data=few, **given)
    child = Child("varifocal_plain", recipe, directory / name, threads)
    child.wait()
    steps = [child.step() for _ in range(3)][1:]
    child.close()
    line = {"point": name, **child.start, "peak_mib": steps[-1]["peak_mib"]}
    line["above_weights_mib"] = steps[-1]["above_weights_mib"]
    for key in ("seconds", "cpu_seconds"):
        line[key] = sum(step[key] for step in steps)
    if not name.startswith("samples="):
        sizes = list(samples_per_step(load_recipe(recipe)))[1:]
        line["samples"], line["tokens"], line["flops"] = map(sum, zip(*sizes, strict=True))
    return line


def main() -> None:
    """Measure the points that are missing, print all."""
    parser = argparse.ArgumentParser(prog="sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--points", default="length,images,rank,model,samples")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--dir", type=Path, default=Path("/tmp/varifocal-bench-sweep"))
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    file = given.dir / "sweep.jsonl"
    text = file.read_text() if file.is_file() else ""
    known = {line["point"]: line for line in map(json.loads, text.splitlines())}
    for name, point in points(given.points.split(","), given.dir).items():
        if name.startswith("model=") and not Path(point["model"]["language_model"]).is_dir():
            save_llama(given.dir / name.split("=")[1], *LLAMAS[name.split("=")[1]])
        if name not in known:
            known[name] = measure(name, point, given.dir, given.threads)
            with file.open("a") as out:
                out.write(json.dumps(known[name]) + "\n")
        print_line(known[name])


def print_line(line: dict[str, Any]) -> None:
    """Print one point."""
    speed = ""
    if "tokens" in line:
        speed = f"{line['samples'] / line['seconds']:6.2f} samples/s"
        speed += f" {line['tokens'] / line['seconds']:6.0f} tokens/s"
        speed += f" {1000 * line['cpu_seconds'] / line['tokens']:6.2f} CPU ms a token"
    memory = f"{line['loaded_mib']:6.0f} MiB loaded, {line['above_weights_mib']:6.0f} above"
    print(f"{line['point']:18} {speed} {memory}")


if __name__ == "__main__":
    main()
