"""A client that leaves, or stops reading, frees its row: its answer is not written to the end."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tiny_server import seeing_engine
from varifocal.serving.connection import PatientProtocol
from varifocal.serving.request import Request

LONGEST = 1900
STALL_S = 0.3


@pytest.fixture(scope="module")
def engine(tokenizer):
    """An engine whose model never ends a turn."""
    engine = seeing_engine(tokenizer)
    engine.model.register_forward_hook(write_a)
    return engine


def write_a(module, args, output) -> None:
    output.logits[..., ord("a")] += 1e6


@pytest.fixture(scope="module")
def address(engine, serving) -> Iterator[tuple[str, int]]:
    """A server that waits for readers as long as a test lasts."""
    with serving(engine, max_new_tokens=LONGEST, max_stall_s=1000) as url:
        yield "127.0.0.1", int(url.rpartition(":")[2])


@pytest.fixture
def submitted(engine, monkeypatch) -> list[Request]:
    """Every request that the engine takes."""
    requests, submit = [], engine.submit

    def record(*arguments, **options):
        requests.append(submit(*arguments, **options))
        return requests[-1]

    monkeypatch.setattr(engine, "submit", record)
    return requests


@pytest.fixture
def paused(monkeypatch) -> threading.Event:
    """Set when the server holds back what a client does not read; its buffers are small."""
    event, made = threading.Event(), PatientProtocol.connection_made
    pause = PatientProtocol.pause_writing

    def connection_made(self, transport) -> None:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(self, transport)

    def pause_writing(self) -> None:
        pause(self)
        event.set()

    monkeypatch.setattr(PatientProtocol, "connection_made", connection_made)
    monkeypatch.setattr(PatientProtocol, "pause_writing", pause_writing)
    return event


def ask(address, **more) -> socket.socket:
    """Ask for the longest answer over a connection that reads little at a time."""
    body = {"model": "tiny", "max_tokens": LONGEST, "messages": [{"role": "user", "content": "Hi"}]}
    content = json.dumps(body | more).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(address)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content)
    )
    return connection


def until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def check_cancelled(engine, request: Request) -> None:
    """Wait until a request is done: it was cancelled, and its row is free."""
    until(lambda: request.finish_reason is not None)
    assert request.finish_reason == "cancelled"
    assert request.completion_tokens < LONGEST
    until(lambda: engine.stats().running == 0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_in_the_middle(address, engine, submitted, stream) -> None:
    with ask(address, stream=stream) as connection:
        until(lambda: submitted and submitted[0].completion_tokens)
        if stream:
            assert connection.recv(8).startswith(b"HTTP/1.1")
    check_cancelled(engine, submitted[0])


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_it_is_answered(
    address, engine, submitted, stream, monkeypatch
) -> None:
    """Its request is put into the queue when nobody waits for it any more."""
    submit, gate = engine.submit, threading.Event()

    def late(*arguments, **options):
        request = submit(*arguments, **options)
        assert gate.wait(60)
        return request

    monkeypatch.setattr(engine, "submit", late)
    with ask(address, stream=stream):
        until(lambda: submitted)
    time.sleep(0.1)  # the server sees it; later would be the case of the test above
    gate.set()
    check_cancelled(engine, submitted[0])


def test_a_client_that_stops_reading_and_leaves(address, engine, submitted, paused) -> None:
    with ask(address, stream=True, logprobs=True, top_logprobs=20):
        assert paused.wait(60)
        assert submitted[0].finish_reason is None
    check_cancelled(engine, submitted[0])


def test_a_client_that_stops_reading_and_stays(engine, submitted, paused, serving) -> None:
    with serving(engine, max_new_tokens=LONGEST, max_stall_s=STALL_S) as url:
        address = "127.0.0.1", int(url.rpartition(":")[2])
        with ask(address, stream=True, logprobs=True, top_logprobs=20):
            assert paused.wait(60)
            check_cancelled(engine, submitted[0])
