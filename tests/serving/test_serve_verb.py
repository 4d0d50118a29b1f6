"""`varifocal serve` as a process: it says where it is, answers, and drains when told to stop."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from typer.testing import CliRunner

from varifocal.cli.commands import app
from varifocal.errors import VarifocalError

CALL = "from varifocal.cli import main; main()"


def test_other_machines_need_a_key() -> None:
    result = CliRunner().invoke(app, ["serve", "anything", "--host", "0.0.0.0"])
    assert isinstance(result.exception, VarifocalError)
    assert "--api-key" in str(result.exception)


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--max-body-mib", "inf", "max_body_mib must be above 0 and at most 1e+06, not inf"),
        ("--max-image-mpixels", "1e300", "max_image_mpixels must be above 0"),
        ("--max-time", "inf", "max_time_s must be above 0"),
        ("--allow-origin", "chat.example", "such as https://chat.example"),
        ("--allow-origin", "https://chat.example/page", "is a scheme and a host"),
    ],
)
def test_a_bound_that_binds_nothing_is_refused(model, option, value, sentence) -> None:
    result = CliRunner().invoke(app, ["serve", str(model), option, value])
    assert isinstance(result.exception, VarifocalError)
    assert sentence in str(result.exception)


@pytest.fixture
def model(tmp_path, llama, tokenizer):
    llama.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def start(model, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CALL, "serve", str(model), *options]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    )


@pytest.mark.slow
def test_sigterm_lets_an_answer_end(model) -> None:
    server = start(model, "--port", "0", "--max-queue", "0")
    assert server.stdout is not None
    line = server.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", line)
    assert found, line
    asked = {
        "model": "model",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 400,
        "stream": True,
    }
    headers = {"Content-Type": "application/json"}
    url = f"{found.group()}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.readline()
        server.send_signal(signal.SIGTERM)
        rest = answer.read().decode()
    assert rest.endswith("data: [DONE]\n\n")
    assert '"finish_reason": "' in rest
    server.communicate(timeout=60)
    assert server.returncode in (0, -signal.SIGTERM)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{found.group()}/health", timeout=5)


@pytest.mark.slow
def test_a_port_in_use_is_told(model) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = start(model, "--port", str(taken.getsockname()[1]))
        _, told = server.communicate(timeout=120)
    assert server.returncode == 2
    assert "Choose another --port" in told
