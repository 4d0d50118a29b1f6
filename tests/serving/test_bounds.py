"""A server that cannot be frozen: slow, large, half and foreign requests have bounds."""

from __future__ import annotations

import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tiny_server import seeing_engine
from varifocal.data.example import Message
from varifocal.serving.engine import ContextLengthError, Sampling
from varifocal.serving.middleware import is_local, split_host

HI = {"role": "user", "content": "Hi"}
GOOD: dict[str, Any] = {"model": "tiny", "max_tokens": 3, "messages": [HI]}
BOUNDS = {
    "max_new_tokens": 2000,
    "max_body_mib": 0.5,
    "max_header_s": 0.5,
    "max_body_s": 1.0,
    "max_stall_s": 0.5,
    "allow_origins": ("https://chat.example",),
}


@pytest.fixture(scope="module")
def engine(tokenizer):
    return seeing_engine(tokenizer)


@pytest.fixture(scope="module")
def port(engine, serving) -> Iterator[int]:
    with serving(engine, **BOUNDS) as address:
        yield int(address.rpartition(":")[2])


def ask(port: int, body: Any = None, **headers: str) -> tuple[int, dict[str, Any]]:
    """Post as http.client does: a body that is an iterator goes in chunks."""
    content = json.dumps(GOOD).encode() if body is None else body
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = {"Content-Type": "application/json", "Host": f"localhost:{port}", **headers}
    try:
        connection.request("POST", "/v1/chat/completions", content, sent)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def send(port: int, content: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(content)
    return connection


def head(port: int, length: int, *more: str) -> bytes:
    lines = [f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:{port}", *more]
    return "\r\n".join(
        [*lines, "Content-Type: application/json", f"Content-Length: {length}", "", ""]
    ).encode()


def rest(connection: socket.socket) -> bytes:
    """Read until the server closes; a reset counts, it is an end too."""
    content = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return content
        if not piece:
            return content
        content += piece


def drip(connection: socket.socket, drop: bytes) -> None:
    """Send a drop at a time until the server answers or closes."""
    end = time.monotonic() + 60
    while not select.select([connection], [], [], 0.1)[0]:
        assert time.monotonic() < end
        connection.sendall(drop)


# Slow


@pytest.mark.parametrize(
    "begun", [b"", b"GET /health HT", b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nX"]
)
def test_a_head_that_does_not_come_is_not_waited_for(port, begun) -> None:
    started = time.monotonic()
    with send(port, begun) as connection:
        assert rest(connection) == b""
    assert time.monotonic() - started > 0.3


def test_a_head_in_drops_is_not_waited_for(port) -> None:
    with send(port, b"GET /health HTTP/1.1\r\n") as connection:
        drip(connection, b"X")
        assert rest(connection) == b""


def test_a_second_head_on_a_connection_has_its_time_too(port) -> None:
    request = f"GET /health HTTP/1.1\r\nHost: localhost:{port}\r\n\r\n".encode()
    with send(port, request) as connection:
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(4096)
        connection.sendall(request[:20])
        started = time.monotonic()
        assert rest(connection) == b""
    assert time.monotonic() - started > 0.3  # and uvicorn itself would wait for ever


@pytest.mark.parametrize("drops", [False, True])
def test_a_body_that_does_not_come_is_a_408(port, drops) -> None:
    with send(port, head(port, 1000) + b"{") as connection:
        if drops:
            drip(connection, b" ")
        answer = rest(connection)
    assert b" 408 " in answer.splitlines()[0]
    assert b"did not come within 1 s" in answer


def test_an_answer_that_nobody_reads_is_cut_off(port, engine) -> None:
    """Half a socket: the client asks for a long stream and reads none of it."""
    body = {**GOOD, "max_tokens": 1900, "stream": True, "logprobs": True, "top_logprobs": 20}
    content = json.dumps(body).encode()
    hook = engine.model.register_forward_hook(write_a)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    with connection:
        connection.sendall(head(port, len(content)) + content)
        until(lambda: engine.stats().running == 1)
        until(lambda: engine.stats().running == 0)
        time.sleep(1)
        assert b"[DONE]" not in rest(connection)
    hook.remove()


def write_a(module, args, output) -> None:
    output.logits[..., ord("a")] += 1e6


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Large


def test_a_body_in_chunks_gets_its_413_whatever_is_still_sent(port) -> None:
    chunks = (b" " * 65536 for _ in range(100))
    status, answer = ask(port, chunks, Connection="close")
    assert (status, answer["error"]["code"]) == (413, "request_too_large")


def test_a_body_that_says_it_is_too_large_gets_its_413(port) -> None:
    assert ask(port, b" " * 3_000_000, Connection="close")[0] == 413
    waits = head(port, 10**12, "Expect: 100-continue")
    with send(port, waits) as connection:
        assert b" 413 " in connection.recv(4096).splitlines()[0]


def test_large_bodies_at_a_time_are_a_429(tokenizer, serving) -> None:
    with serving(seeing_engine(tokenizer), max_body_mib=0.5, max_held_mib=0.75) as address:
        port = int(address.rpartition(":")[2])
        with send(port, head(port, 500_000) + b" " * 400_000):
            until(lambda: ask(port, b" " * 500_000)[0] == 429)
            assert ask(port, b" " * 500_000)[1]["error"]["code"] == "too_many_bytes"
            assert ask(port)[0] == 200  # a small one still finds room
        until(lambda: ask(port, b" " * 500_000)[0] == 400)


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": [HI] * 101}, "too_many_messages", "messages.100"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 257}]},
            "too_many_parts",
            "messages.0.content.256",
        ),
        (
            {"messages": [{"role": "user", "content": "x" * 300_000}] * 4},
            "too_many_characters",
            "messages.3.content",
        ),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, "context_length_exceeded", None),
    ],
)
def test_messages_parts_and_texts_have_bounds(tokenizer, serving, change, code, param) -> None:
    with serving(seeing_engine(tokenizer)) as address:
        port = int(address.rpartition(":")[2])
        status, answer = ask(port, json.dumps({**GOOD, **change}).encode())
    assert (status, answer["error"]["code"]) == (400, code)
    assert answer["error"]["param"] == (param or "messages")


def test_the_window_is_told_with_both_numbers_and_nothing_is_cut(port, engine) -> None:
    text = "x" * 3000
    with pytest.raises(ContextLengthError) as error:
        engine.submit([Message("user", (text,))], Sampling(1))
    assert error.value.window == 2048
    body = {**GOOD, "messages": [{"role": "user", "content": text}]}
    status, answer = ask(port, json.dumps(body).encode())
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    told = answer["error"]["message"]
    assert "2048" in told
    assert str(error.value.prompt_tokens) in told


def test_an_answer_ends_where_the_window_does(port) -> None:
    """As OpenAI's "length": the client asked for at most so many."""
    body = {**GOOD, "messages": [{"role": "user", "content": "x" * 2000}], "max_tokens": 2000}
    status, answer = ask(port, json.dumps(body).encode())
    assert status == 200
    usage = answer["usage"]
    assert usage["total_tokens"] <= 2049
    assert usage["completion_tokens"] <= 2049 - usage["prompt_tokens"]
    assert answer["choices"][0]["finish_reason"] in ("length", "stop")


# Foreign


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        ("http://localhost:{port}", "localhost:{port}", 200),
        ("http://127.0.0.1:{port}", "127.0.0.1:{port}", 200),
        ("http://[::1]:{port}", "[::1]:{port}", 200),
        ("HTTP://LOCALHOST:{port}", "localhost:{port}", 200),
        ("http://localhost", "localhost:80", 200),
        ("https://chat.example", "localhost:{port}", 200),
        ("https://chat.example:444", "localhost:{port}", 403),
        ("http://evil.example", "localhost:{port}", 403),
        ("http://localhost:1", "localhost:{port}", 403),
        ("http://localhost:{port}.evil.example", "localhost:{port}", 403),
        ("http://localhost:{port}@evil.example", "localhost:{port}", 403),
        ("null", "localhost:{port}", 403),
        ("file://", "localhost:{port}", 403),
    ],
)
def test_only_the_servers_own_page_may_ask(port, origin, host, status) -> None:
    given = {"Origin": origin.format(port=port), "Host": host.format(port=port)}
    found, answer = ask(port, **given)
    assert found == status
    if status == 403:
        assert answer["error"]["code"] == "wrong_origin"
        assert "--allow-origin" in answer["error"]["message"]


def test_an_allowed_page_gets_what_its_browser_asks_for(port) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    asked = {
        "Host": f"localhost:{port}",
        "Origin": "https://chat.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    connection.request("OPTIONS", "/v1/chat/completions", headers=asked)
    answer = connection.getresponse()
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example"
    connection.close()


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True),
        ("LocalHost:8000", True),
        ("127.0.0.1:8000", True),
        ("127.8.9.1", True),
        ("[::1]:8000", True),
        ("", False),
        ("localhost.evil.example", False),
        ("localhost:8000.evil.example", False),
        ("localhost:8000@evil.example", False),
        ("127.0.0.1.nip.io", False),
        ("[::1]evil.example", False),
        ("[::1].evil.example:80", False),
        ("[localhost", False),
        ("0.0.0.0", False),
        ("[::]", False),
        ("testserver", False),
        ("localhost, evil.example", False),
        ("localhost:99999", False),
    ],
)
def test_a_name_is_local_as_a_whole(port, host, local) -> None:
    assert is_local(host) == local
    assert split_host(host) is None or split_host(host)[0] in host.lower()
    if host:
        assert (ask(port, Host=host)[0] == 200) == local


# Others' prompts


def test_cached_tokens_tell_nobody_of_others(port) -> None:
    """A beginning that another client, or another talk, has sent is never counted."""

    def cached(*texts: str, **more: Any) -> tuple[int, int]:
        turns = [
            {"role": ("user", "assistant")[number % 2], "content": text}
            for number, text in enumerate(texts)
        ]
        _, answer = ask(port, json.dumps({**GOOD, "messages": turns, **more}).encode())
        usage = answer["usage"]
        said = answer["choices"][0]["message"]["content"]
        assert said
        return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]

    secret = "My password is swordfish, keep it to yourself."
    mine, length = cached(secret, user="ann", max_tokens=1)
    assert mine == 0
    for user in ({"user": "bob"}, {"user": "ann"}, {}):
        assert cached("My password is sw", **user)[0] == 0
        assert cached("My password is swordfish, keep", "?", "x", **user)[0] == 0
    assert cached(secret, "x", "And now?", user="bob", max_tokens=1)[0] == 0
    assert cached(secret, "x", "And now?", user="ann")[0] == length
