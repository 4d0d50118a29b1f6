"""A machine with a GPU: every verb computes there, and gives the CPU's very numbers.

The GPU is a pretended one (see `pretend_gpu`), in a process of its own.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from varifocal.models import distributed
from varifocal.recipe.reading import SHIPPED
from varifocal.training.engines import spreads_weights

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location(
    "tests_training_conftest", HERE / "training" / "conftest.py"
)
_shared = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_shared)
parts, book, recipe_file, recipe = (
    _shared.parts,
    _shared.book,
    _shared.recipe_file,
    _shared.recipe,
)
_own_cache, _one_thread = _shared._own_cache, _shared._one_thread

SCRIPT = """
import json
import sys

from pretend_gpu import OnGPU, pretend_gpu

run, verbs = sys.argv[1:]
with pretend_gpu():
    from varifocal import cli
    from varifocal.assemble import open_run

    for words in json.loads(verbs):
        sys.argv = ["varifocal", *words]
        try:
            cli.main()
        except SystemExit as ended:
            assert not ended.code, words
    _, parts = open_run(run)
    assert all(isinstance(each, OnGPU) for each in parts.model.parameters())
"""


def on_gpu(run, verbs):
    """Run command lines one after the other; the run they are about opens on the GPU, whole."""
    told = json.dumps([[str(word) for word in verb] for verb in verbs])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(run), told],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
            "OMP_NUM_THREADS": "1",  # as `_one_thread` has it here
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def verbs_of(run, recipe_file, book):
    image = book / "images" / "train" / "0" / "image.png"
    return [
        ("train", recipe_file, "--out", run),
        ("eval", run, "--data", book, "--split", "train", "--score", "both"),
        ("ask", run, "Which colour?", "--image", image, "--max-new-tokens", "4"),
        ("analyze", "interference", run, "--examples", "2"),
        ("analyze", "routing", run),
    ]


MMA = {"alignment.type": "words", "alignment.steps": 3}
MIXLORA = {"tuner": {"type": "mixlora", "rank": 2, "num_factors": 4, "lora_alpha": 4.0}}


@pytest.mark.slow
@pytest.mark.parametrize("tuner", [MMA, MIXLORA], ids=["mma", "mixlora"])
def test_every_verb_computes_on_the_gpu_what_it_does_on_the_cpu(
    recipe, recipe_file, run, tmp_path, book, tuner
):
    few = {"training.max_steps": 2, "model.attn_implementation": "eager"}
    few |= {"data.max_length": 240, "data.row_length": 480}
    recipe_file.write_text(recipe({**few, **tuner}).dump_yaml())
    for verb in verbs_of(tmp_path / "cpu", recipe_file, book)[:2]:
        code, _, errors = run(*verb)
        assert code == 0, errors
    on_gpu(tmp_path / "gpu", verbs_of(tmp_path / "gpu", recipe_file, book))
    saved = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("cpu", "gpu"))
    ours, theirs = map(load_file, saved)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, msg=name)
    for file in ("eval/book-train.predictions.jsonl", "eval/book-train-generate.predictions.jsonl"):
        assert (tmp_path / "cpu" / file).read_text() == (tmp_path / "gpu" / file).read_text()


@pytest.mark.parametrize(("rank", "index"), [(None, 1), ("3", 3)])
def test_a_process_takes_the_gpu_of_its_rank(monkeypatch, rank, index):
    taken = [1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: taken.append(number))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: taken[-1])
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert distributed.own_device() == torch.device("cuda", index)


def test_weights_that_are_spread_are_not_put_on_one_gpu(recipe, monkeypatch):
    assert not spreads_weights(recipe())
    assert spreads_weights(recipe({"training.fsdp": True}))
    zero = {"training.deepspeed": str(SHIPPED / "launch" / "zero3.json")}
    assert spreads_weights(recipe(zero, check_paths=False))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert spreads_weights(recipe())
