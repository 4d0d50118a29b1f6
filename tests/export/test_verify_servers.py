"""`export --verify` asks real servers: ours as a process, and llama.cpp behind a small one.

Five silent failures are served in the place of the right thing, and each is seen;
`test_liveness.py` has all five at our server in the test's own process.
"""

import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from varifocal.exporting.export import export_run
from varifocal.exporting.liveness import verify
from varifocal.exporting.request import Order
from varifocal.run import RunDirectory

pytest.importorskip("gguf")
pytestmark = pytest.mark.slow

LORA = {"type": "lora", "lora_alpha": 32.0}
MMA = {"type": "mma", "router_temperature": 1.0, "adapt_vision_tower": False}
SERVE = "from varifocal.cli import main; main()"


@pytest.fixture(scope="module")
def lora(make_run):
    return make_run(LORA, tower=None)


def not_loaded(make_run, lora, place):
    return make_run({"type": "none"}, tower=None)


def lost_layers(make_run, lora, place):
    """What another name for half of the layers leaves."""
    shutil.copytree(lora.root, place)
    (file,) = (place / "adapter").glob("*.safetensors")
    tensors = load_file(file)
    lost = [name for name in tensors if "layers.1." in name and "lora_B" in name]
    assert lost
    save_file(tensors | {name: torch.zeros_like(tensors[name]) for name in lost}, file)
    return RunDirectory.open(place)


def dropped_scale(make_run, lora, place):
    return make_run(LORA | {"lora_alpha": 8.0}, tower=None)


def merged_twice(make_run, lora, place):
    export_run(Order(lora, "merged", num_prompts=2), place)
    return make_run(LORA, tower=None, language=place)


FAULTS = {
    not_loaded: "is missing",
    lost_layers: "answers otherwise",
    dropped_scale: "answers otherwise",
    merged_twice: "answers otherwise",
}


@contextmanager
def ours(served):
    """Serve a run or a model with our server."""
    command = [sys.executable, "-c", SERVE, "serve", str(served), "--port", "0"]
    with subprocess.Popen(command, stdout=-1, stderr=subprocess.DEVNULL, text=True) as server:
        line = server.stdout.readline()
        try:
            yield re.search(r"http://127\.0\.0\.1:\d+", line).group()
        finally:
            server.terminate()


@contextmanager
def llama_cpp(environment, place, *files):
    """Serve GGUF files with llama.cpp."""
    port, script = place / "port", Path(__file__).with_name("llama_server.cjs")
    port.unlink(missing_ok=True)
    command = ["node", script, port, *files]
    with subprocess.Popen(command, stdout=-3, stderr=-3, env=environment) as server:
        try:
            while not (port.is_file() and port.read_text().endswith("\n")):
                assert server.poll() is None
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port.read_text().strip()}"
        finally:
            server.kill()


def test_our_server_answers_as_the_run(lora, tmp_path):
    (done,) = export_run(Order(lora, "lora", num_prompts=2), tmp_path / "out")
    with ours(lora.root) as url:
        assert verify(done.directory, url).verdict == "acts"


@pytest.mark.parametrize("fault", [not_loaded, dropped_scale])
def test_a_fault_that_our_server_serves_is_seen(make_run, lora, tmp_path, fault):
    (done,) = export_run(Order(lora, "lora", num_prompts=2), tmp_path / "out")
    with ours(fault(make_run, lora, tmp_path / "fault").root) as url:
        assert verify(done.directory, url).verdict == FAULTS[fault]


def test_the_image_route_on_text_is_seen_at_our_server(make_run, tmp_path):
    text, image = export_run(Order(make_run(MMA), "merged", num_prompts=2), tmp_path / "out")
    with ours(image.directory) as url:
        assert verify(text.directory, url).verdict == "answers otherwise"


@pytest.fixture
def verdict(llama_node, tmp_path):
    """Ask llama.cpp, which serves one export, the questions of another."""

    def ask(export, served):
        files = [served / name for name in ("model.gguf", "mmproj.gguf")]
        with llama_cpp(llama_node, tmp_path, *(file for file in files if file.exists())) as url:
            return verify(export, url).verdict

    return ask


def test_llama_cpp_answers_as_the_run(lora, tmp_path, verdict):
    (done,) = export_run(Order(lora, "gguf", num_prompts=2), tmp_path / "out")
    assert verdict(done.directory, done.directory) == "acts"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_llama_cpp_serves_is_seen(make_run, lora, tmp_path, verdict, fault):
    (done,) = export_run(Order(lora, "gguf", num_prompts=2), tmp_path / "out")
    served = fault(make_run, lora, tmp_path / "fault")
    (wrong,) = export_run(Order(served, "gguf", num_prompts=2), tmp_path / "wrong")
    assert verdict(done.directory, wrong.directory) == FAULTS[fault]


def test_the_routes_of_mma_are_told_apart_in_llama_cpp(make_run, tmp_path, verdict):
    run = make_run(MMA, "siglip", data={"system_prompt": "Be brief."})
    text, image = export_run(Order(run, "llamacpp", num_prompts=2), tmp_path / "out")
    assert verdict(text.directory, text.directory) == "acts"
    assert verdict(text.directory, image.directory) == "answers otherwise"
    assert verdict(image.directory, image.directory) == "acts"
