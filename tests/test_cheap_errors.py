"""A mistake on the command line is answered before torch, transformers or PEFT is imported."""

import json
import os
import socket
import subprocess
import sys

import PIL.Image
import pytest

CASES = {
    "unknown option": ("train demo --wrong 1", "No such option: --wrong"),
    "unknown verb": ("trian demo", "No such command 'trian'"),
    "init folder": ("init nosuch", "no folder 'nosuch'"),
    "init questions": ("init strange", "'strange' holds neither images nor questions"),
    "init columns": ("init strange --columns a=b", "--columns a=b: 'a' is none of image, question"),
    "init out": ("init strange --out book.yaml", "book.yaml is there already; name another with"),
    "recipe path": ("train nosuch.yaml", "no recipe 'nosuch.yaml'"),
    "recipe key": ("train demo --set training.max_stps=3", "training.max_stps: unknown key"),
    "recipe value": ("plan demo --set tuner.bottleneck_dim=x", "tuner.bottleneck_dim: 'x' was"),
    "passed value": ("plan demo --set training.optim=adam", "training.optim: 'adam'"),
    "data path": ("train demo --set data.root=nosuch", "data.train[0].path: no file"),
    "train base": ("train book --set model.language_model=a/b", "'a/b' is no packaged model"),
    "train tower": (
        "train book --set model.vision_tower=sciencebok",
        "'sciencebok' is no",
    ),
    "train connector": (
        "train book --set model.connector.weights=rusn",
        "model.connector.weights: there is no run '{here}/rusn'; did you mean 'runs'?",
    ),
    "train out": ("train book --out runs/done", "runs/done holds a run already"),
    "launch engine": ("launch book --engine dpp", "--engine dpp: ddp, fsdp2"),
    "launch base": ("launch book --set model.language_model=a/b", "'a/b' is no packaged model"),
    "launch out": ("launch book --out runs/done", "runs/done holds a run already"),
    "plan base": ("plan demo --set model.language_model=a/b", "'a/b' is no packaged model"),
    "plan device": ("plan demo --device a200", "--device a200: unknown"),
    "sweep path": ("sweep nosuch.yaml", "no sweep 'nosuch.yaml'"),
    "demo out": ("demo --out strange", "strange holds a recipe.yaml that no training wrote"),
    "ask run": ("ask nosuch Why?", "nosuch is no run directory"),
    "ask unfinished": ("ask runs/empty Why?", "runs/empty has no adapter yet"),
    "ask image": ("ask runs/done Why? --image no.png", "image 'no.png' does not exist"),
    "ask base": ("ask runs/moved Why?", "'a/b' is no packaged model"),
    "chat run": ("chat nosuch", "nosuch is no run directory"),
    "serve model": ("serve nosuch", "nosuch is no run directory; 'nosuch' is no packaged model"),
    "serve port": ("serve runs/done --port {port}", "cannot listen on 127.0.0.1:{port}"),
    "serve host": ("serve runs/done --host 0.0.0.0", "--host 0.0.0.0 lets other machines in"),
    "eval run": ("eval nosuch", "nosuch is no run directory"),
    "eval checkpoint": ("eval runs/done --checkpoint 7", "runs/done has no checkpoint of step 7"),
    "benchmark model": ("benchmark nosuch scienceqa", "nosuch is no run directory"),
    "retention run": ("retention nosuch", "nosuch is no run directory"),
    "compare runs": ("compare nosuch runs/done", "no predictions at nosuch"),
    "report run": ("report nosuch", "nosuch is no run directory"),
    "report out": ("report runs/done --out book.yaml", "book.yaml is"),
    "export run": ("export nosuch --to merged", "nosuch is no run directory"),
    "export target": ("export runs/done --to mergd", "Invalid value for '--to'"),
    "export out": ("export runs/done --to model --out strange", "strange"),
    "export image": (
        "export runs/done --to route --prompt Why? --image no.png",
        "image 'no.png' does not exist",
    ),
    "analyze run": ("analyze routing nosuch", "nosuch is no run directory"),
    "analyze image": ("analyze words runs/done --images no.png", "image 'no.png' does not exist"),
    "data check base": ("data check book --set model.language_model=a/b", "'a/b' is no packaged"),
    "data show key": ("data show book --set data.pth=x", "data.pth: unknown key"),
    "cache kind": ("cache --clear modles", "--clear modles: nothing of that kind"),
    "recipes name": ("recipes dmo", "no recipe 'dmo'"),
}
HEAVY = ("torch", "transformers", "peft", "datasets")
BOOK = """
model: {language_model: smollm2-135m-instruct, vision_tower: sciencebook-vit}
data: {train: [{path: rows.jsonl}]}
"""
SCRIPT = """
import contextlib, io, json, sys
from varifocal.cli import main

answers = []
for words in json.loads(sys.stdin.read()):
    sys.argv = ["varifocal", *words]
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                main()
            except SystemExit as end:
                code = end.code
    heavy = [name for name in HEAVY if name in sys.modules]
    answers.append([code, errors.getvalue(), heavy])
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Run every case in one process: case -> exit code, stderr, heavy modules imported by then."""
    here = tmp_path_factory.mktemp("mistakes")
    (here / "book.yaml").write_text(BOOK)
    (here / "rows.jsonl").write_text("{}\n")
    PIL.Image.new("RGB", (8, 8)).save(here / "red.png")
    for name, base in (("done", "smollm2-135m-instruct"), ("moved", "a/b"), ("empty", "a/b")):
        run = here / "runs" / name
        run.mkdir(parents=True)
        (run / "recipe.yaml").write_text(f"model: {{language_model: {base}}}\nprovenance: null\n")
        if name != "empty":
            (run / "adapter").mkdir()
            (run / "adapter" / "adapter_config.json").write_text("{}")
    (here / "strange").mkdir()
    (here / "strange" / "recipe.yaml").write_text("mine: true\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        marks = {"port": taken.getsockname()[1], "here": here}
        lines = [
            line.format(**marks).replace(" book ", " book.yaml ") for line, _ in CASES.values()
        ]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.replace("HEAVY", repr(HEAVY))],
            input=json.dumps([line.split() for line in lines]),
            cwd=here,
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
    assert done.returncode == 0, done.stderr
    found = dict(zip(CASES, json.loads(done.stdout), strict=True))
    return found, marks


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_answered_before_anything_heavy_is_imported(answers, case):
    found, marks = answers
    code, errors, heavy = found[case]
    assert (code, heavy) == (2, []), errors
    assert errors.startswith(f"error: {CASES[case][1].format(**marks)}")
    assert "Traceback" not in errors
