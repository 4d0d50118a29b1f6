"""Small things under the names that the pages use: the language model, data, a finished demo.

The language model's conversion in the cache is replaced by a random Llama of two layers after the
real tokenizer, so every command runs as it is written, in seconds.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import PIL.Image

from fork_server import CLIENT

ROOT = Path(__file__).parents[2]
LANGUAGE_MODEL = "smollm2-135m-instruct"


def small_language_model(cache, converted):
    """Put a random Llama where the cache keeps SmolLM2's conversion."""
    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    directory = cache / converted.name
    directory.mkdir(parents=True)
    for file in converted.iterdir():
        if file.name not in ("model.safetensors", "config.json"):
            shutil.copy(file, directory)
    config = AutoConfig.from_pretrained(converted).to_dict()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig.from_dict({**config, **sizes, **heads})).save_pretrained(directory)


def make_data(folder):
    """Write rows in the layouts of the data that the pages name."""
    from varifocal.sciencebook import make_sciencebook

    rows = [
        {"instruction": f"Say the number {n} twice.", "input": "", "output": f"{n} {n}"}
        for n in range(80)
    ]
    (folder / "alpaca").mkdir(parents=True)
    (folder / "alpaca" / "alpaca_999.json").write_text(json.dumps(rows))
    texts = ["capitals", "opposites"]
    make_sciencebook(folder / "scienceqa-text", train=64, val=64, test=0, seed=1, skills=texts)
    nlvr = folder / "nlvr"
    (nlvr / "images").mkdir(parents=True)
    for name in ("train", "dev"):
        PIL.Image.new("RGB", (40, 10), "white").save(nlvr / "images" / f"{name}.png")
        lines = [
            {"id": f"{name}-{n}", "sentence": f"There are {n} boxes.", "label": "true"}
            for n in range(24)
        ]
        lines = [json.dumps({**line, "image": f"images/{name}.png"}) for line in lines]
        (nlvr / f"{name}.jsonl").write_text("\n".join(lines))


class Workshop:
    """Runs the pages' blocks, each page in a folder of its own.

    Args:
        root: an empty folder.
        forks: the server that runs their commands.
        real: leave the packaged language model as it is.
    """

    def __init__(self, root, forks, real=False):
        from varifocal.models.packaged_weights import packaged_directory

        self.root = root
        converted = packaged_directory(LANGUAGE_MODEL)
        if real:
            shutil.copytree(converted, root / "cache" / converted.name)
        else:
            small_language_model(root / "cache", converted)
        make_data(root / "things" / "data")
        self.environment = self._environment(forks.socket)
        self.finished = self._run(root / "finished", "varifocal demo --quick --out runs/demo")

    def _environment(self, socket):
        (self.root / "client.py").write_text(CLIENT)
        (self.root / "bin").mkdir()
        for name in ("varifocal", "python"):
            program = self.root / "bin" / name
            client = f"{sys.executable} -S -E {self.root / 'client.py'} {socket}"
            program.write_text(f'#!/bin/sh\nexec {client} {name} "$@"\n')
            program.chmod(0o755)
        return {
            **os.environ,
            "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            "VARIFOCAL_CACHE": str(self.root / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
            "COLUMNS": "100",
        }

    def folder(self, page, runs):
        """Make a page's folder: the repository's recipes and sweeps, data, finished runs."""
        folder = self.root / "pages" / page.replace("/", "-").removesuffix(".md") / "work"
        (folder / "data").mkdir(parents=True)
        for name in ("recipes", "sweeps", "benchmarks", "studies"):
            (folder / name).symlink_to(ROOT / name)
        for source in (self.root / "things" / "data").iterdir():
            (folder / "data" / source.name).symlink_to(source)
        (folder / "alpaca_999.json").symlink_to(folder / "data" / "alpaca" / "alpaca_999.json")
        (folder.parent / "shared").symlink_to(self.root / "things")
        for run in runs:
            shutil.copytree(self.finished / "runs" / "demo", folder / "runs" / run)
        return folder

    def run(self, block, folder):
        """Run one block.

        Raises:
            AssertionError: it ends with another code than 0; holds its last words.
        """
        if block.language == "python":
            script = folder / f"block_{block.line}.py"
            script.write_text(block.text)
            self._run(folder, f"python {script.name}", block.where)
        else:
            self._run(folder, block.text, block.where)

    def _run(self, folder, text, where="the finished demo"):
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["bash", "-eu", "-o", "pipefail", "-c", text],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            last = "\n".join(done.stdout.splitlines()[-30:])
            raise AssertionError(f"{where} ended with {done.returncode}\n{text}\n{last}")
        return folder
