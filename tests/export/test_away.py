"""Each kind of export, loaded where Varifocal cannot be imported, says what the run says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from varifocal.assemble import open_run
from varifocal.exporting.adapters import prompt_example
from varifocal.exporting.export import export_run
from varifocal.exporting.llava import through_pixels
from varifocal.exporting.parity import prompts, references
from varifocal.exporting.request import Order

AWAY = Path(__file__).parent / "away.py"
LORA = {"type": "lora", "lora_alpha": 24.0, "adapt_vision_tower": True}
CASES = {
    "mma merged text": ("mma", "merged", "text"),
    "mma merged image": ("mma", "merged", "image"),
    "mma lora text": ("mma", "lora", "text"),
    "mma lora image": ("mma", "lora", "image"),
    "mma llava image": ("mma", "llava", "image"),
    "mma gguf image": ("mma", "gguf", "image"),
    "mma merged bfloat16": ("mma", "merged", "image", "bfloat16"),
    "lora merged": ("lora", "merged", ""),
    "lora lora": ("lora", "lora", ""),
    "lora gguf": ("lora", "gguf", ""),
    "full merged": ("full", "merged", ""),
    "none merged": ("none", "merged", ""),
    "mixlora route": ("mixlora", "route", ""),
}


@pytest.fixture(scope="module")
def answers(make_run, mma_run, parts_directory, tmp_path_factory):
    """By case: what the run says and what its export says in another process."""
    pytest.importorskip("gguf")
    directory = tmp_path_factory.mktemp("away")
    runs = {"mma": mma_run, "lora": make_run(LORA), "none": make_run({"type": "none"})}
    runs |= {"full": make_run({"type": "full"}), "mixlora": make_run({"type": "mixlora"})}
    jobs = [
        _job(case, runs[case[0]], directory / str(number), parts_directory)
        for number, case in enumerate(CASES.values())
    ]
    work = directory / "work.json"
    work.write_text(json.dumps([job for job, _ in jobs]))
    done = subprocess.run([sys.executable, AWAY, work], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = [load_file(job["to"])["logits"] for job, _ in jobs]
    return {name: (jobs[i][1], found[i]) for i, name in enumerate(CASES)}


def _job(case, run, directory, parts_directory):
    _, form, route, *dtype = case
    example = prompt_example("How many?", ()) if form == "route" else None
    order = Order(run, form, num_prompts=2, shard_gib=1e-5, prompt=example)
    order = Order(**{**vars(order), "dtype": dtype[0]}) if dtype else order
    out = directory / "export"
    export_run(order, out)
    _, parts = open_run(run.root, dtype=dtype[0] if dtype else None)
    asked = [example] if example else list(prompts(2, images=route == "image"))[1:]
    (reference,) = references(parts, asked, int(route == "image"))
    inputs = reference.inputs
    if form == "llava":
        inputs = through_pixels([reference], asked, parts, out / route)[0].inputs
    save_file({k: v.contiguous() for k, v in inputs.items()}, f"{directory}.inputs")
    return {
        "form": form,
        "directory": str(out / route),
        "base": str(parts_directory / "language"),
        "inputs": f"{directory}.inputs",
        "to": f"{directory}.logits",
        "dtype": dtype[0] if dtype else "float32",
    }, reference.logits


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_export_says_what_the_run_says(answers, name):
    expected, found = answers[name]
    found = found[:, : expected.shape[-1]].to(expected.dtype)
    gap = 0.5 if "bfloat16" in name else 2e-5
    torch.testing.assert_close(found, expected, rtol=0, atol=gap)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mma merged text", "lora merged"])
def test_a_tuned_models_answers_are_not_the_bases(answers, name):
    """Else the test above could not tell an adapter from none."""
    tuned, base = answers[name][0], answers["none merged"][0]
    assert not torch.allclose(tuned[0], base[0], atol=0.1) or tuned.shape != base.shape
