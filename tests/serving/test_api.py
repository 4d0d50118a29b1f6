"""The server, driven over real sockets by the openai client, by schemathesis, and by hand."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import openai
import PIL.Image
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from openai.types import ErrorObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from tiny_server import seeing_engine
from varifocal.data.example import Image, Message
from varifocal.recipe import DataSection, FileSection
from varifocal.serving.engine import Engine, Sampling
from varifocal.serving.starters import held_out_questions

BOUNDS = {"max_new_tokens": 24, "max_body_mib": 0.25, "max_images": 2, "max_messages": 9}


def png(colour: str, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


def data_uri(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def shown(text: str, *urls: str) -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def engine(tokenizer) -> Engine:
    return seeing_engine(tokenizer)


@pytest.fixture(scope="module")
def address(engine, serving) -> Iterator[str]:
    with serving(engine, **BOUNDS) as url:
        yield url


@pytest.fixture(scope="module")
def client(address) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client, text="What is a magnet?", *urls, **options):
    messages = shown(text, *urls) if urls else [{"role": "user", "content": text}]
    given = {"model": "tiny", "messages": messages, "max_tokens": 12, **options}
    return client.chat.completions.create(**given)


def post(address: str, body: object, **headers: str) -> tuple[int, dict]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}/v1/chat/completions", raw, method="POST")
    for name, value in {"Content-Type": "application/json", **headers}.items():
        request.add_header(name, value)
    return answered(request)


def answered(request: urllib.request.Request | str) -> tuple[int, dict]:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


# What it answers


def assert_valid(kind: type[BaseModel], answer: object) -> None:
    """Validate strictly; the client itself takes whatever comes."""
    kind.model_validate_json(json.dumps(answer), strict=True)


def test_answers_are_valid_by_openais_own_types(address) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
    for options in ({}, {"logprobs": True, "top_logprobs": 2}):
        status, whole = post(address, body | options)
        assert status == 200
        assert_valid(ChatCompletion, whole)
        streamed = body | options | {"stream": True, "stream_options": {"include_usage": True}}
        request = urllib.request.Request(
            f"{address}/v1/chat/completions",
            json.dumps(streamed).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as stream:
            lines = stream.read().decode().split("\n\n")
        events = [line.removeprefix("data: ") for line in lines if line]
        assert events.pop() == "[DONE]"
        assert len(events) > 2
        for event in events:
            assert_valid(ChatCompletionChunk, json.loads(event))
    _, models = answered(f"{address}/v1/models")
    for model in models["data"]:
        assert_valid(Model, model)
    status, refusal = post(address, {"model": "tiny"})
    assert status == 400
    assert_valid(ErrorObject, refusal["error"])


def test_the_models_are_the_run_its_base_and_its_text_route(client) -> None:
    names = ["tiny", "tiny:base", "tiny:text"]
    assert [model.id for model in client.models.list()] == names
    assert client.models.retrieve("tiny:base").object == "model"


def test_an_answer_is_the_engines(client, engine) -> None:
    answer = ask(client)
    expected = engine.answer([Message("user", ("What is a magnet?",))], Sampling(12))
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert answer.varifocal == {"route": "text"}


def test_an_image_takes_the_image_route_and_changes_the_answer(client, engine) -> None:
    answers = {colour: ask(client, "Colour?", data_uri(png(colour))) for colour in ("red", "blue")}
    texts = {colour: answer.choices[0].message.content for colour, answer in answers.items()}
    expected = engine.answer([Message("user", (Image(data=png("red")), "Colour?"))], Sampling(12))
    assert texts["red"] == expected != texts["blue"]
    assert answers["red"].varifocal == {"route": "image"}


def test_the_base_answers_without_eyes(client) -> None:
    one, other = (
        ask(client, "Colour?", data_uri(png(c)), model="tiny:base") for c in ("red", "blue")
    )
    assert one.choices[0].message.content == other.choices[0].message.content
    assert one.varifocal == {"route": "base"}


def test_the_text_route_answers_an_image_as_if_it_were_not_there(client) -> None:
    image = data_uri(png("red"))
    texts = {
        (name, bool(images)): ask(client, "Colour?", *images, model=name)
        for name in ("tiny", "tiny:text", "tiny:base")
        for images in ((), (image,))
    }
    forced = texts["tiny:text", True]
    assert forced.varifocal == {"route": "text"}
    answers = {asked: answer.choices[0].message.content for asked, answer in texts.items()}
    assert answers["tiny:text", True] == answers["tiny", False] == answers["tiny:text", False]
    assert len({answers["tiny", True], answers["tiny", False], answers["tiny:base", True]}) == 3
    assert forced.usage.prompt_tokens == texts["tiny", False].usage.prompt_tokens


def test_a_stream_is_the_whole_answer(client) -> None:
    whole = ask(client, "Colour?", data_uri(png("red")))
    options = {"stream": True, "stream_options": {"include_usage": True}}
    events = list(ask(client, "Colour?", data_uri(png("red")), **options))
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == whole.choices[0].message.content
    assert events[0].choices[0].delta.role == "assistant"
    last = [event for event in events if event.choices][-1]
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.varifocal == {"route": "image"}
    counted = events[-1].usage
    assert (counted.prompt_tokens, counted.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )


def test_logprobs_stand_beside_their_tokens(client) -> None:
    answer = ask(client, logprobs=True, top_logprobs=3, seed=4, temperature=1.0)
    tokens = answer.choices[0].logprobs.content
    raw = b"".join(bytes(token.bytes) for token in tokens)
    assert raw.decode(errors="replace").startswith(answer.choices[0].message.content[:3])
    assert all(token.logprob <= 0 for token in tokens)
    assert all(len(token.top_logprobs) == 3 for token in tokens)
    streamed = ask(client, logprobs=True, top_logprobs=3, seed=4, temperature=1.0, stream=True)
    told = [
        t
        for e in streamed
        if e.choices and e.choices[0].logprobs
        for t in e.choices[0].logprobs.content
    ]
    assert [token.logprob for token in told] == [token.logprob for token in tokens]


def test_a_seed_repeats_an_answer(client) -> None:
    def text(seed: int) -> str:
        return ask(client, temperature=1.5, seed=seed).choices[0].message.content

    assert text(1) == text(1) != text(2)


def test_stop_words_end_an_answer(client) -> None:
    text = ask(client).choices[0].message.content
    stop = text[4:6]
    cut = ask(client, stop=[stop]).choices[0]
    assert cut.message.content == text[: text.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_second_turn_reads_only_what_is_new(client) -> None:
    first = [{"role": "user", "content": "Tell me of magnets, at some length."}]
    answer = ask(client, messages=first, max_tokens=1)
    said = answer.choices[0].message.content
    turns = [*first, {"role": "assistant", "content": said}, {"role": "user", "content": "More."}]
    cached = ask(client, messages=turns).usage.prompt_tokens_details.cached_tokens
    assert cached == answer.usage.prompt_tokens


def test_the_page_gets_its_questions_and_the_routing(address) -> None:
    _, questions = answered(f"{address}/v1/varifocal/examples")
    pictured = [each for each in questions if each["images"]]
    assert len(pictured) >= 2
    content = base64.b64decode(pictured[0]["images"][0].partition(",")[2])
    assert PIL.Image.open(io.BytesIO(content)).size == (224, 224)
    _, routing = answered(f"{address}/v1/varifocal/routing")
    assert len(routing["layers"]) == 2
    assert sum(routing["layers"][0]["image"]) == pytest.approx(1)
    _, limits = answered(f"{address}/v1/varifocal/limits")
    assert (limits["images"], limits["base_images"]) == (True, False)
    assert (limits["max_images"], limits["max_body_mib"]) == (2, 0.25)


def test_metrics_count(address, client) -> None:
    def figures() -> dict[str, float]:
        with urllib.request.urlopen(f"{address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return {k: float(v) for k, v in (x.rsplit(" ", 1) for x in lines if x[:1] != "#")}

    before = figures()
    ask(client)
    after = figures()
    name = 'varifocal_http_requests_total{status="200"}'
    assert after[name] == before.get(name, 0) + 1
    assert after["varifocal_completion_tokens_total"] > before["varifocal_completion_tokens_total"]
    assert answered(f"{address}/health")[1]["status"] == "ok"


# What it refuses

GOOD = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
BAD_IMAGES = {
    "http://example.com/a.png": "fetches no images",
    "file:///etc/passwd": "files are not read",
    "/etc/passwd": "files are not read",
    "data:image/png;base64,@@@": "no valid base64",
    "data:text/html;base64,aGk=": "must begin with",
    data_uri(b"no image"): "image",
    data_uri(png("red")[:40]): "image",
}


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ({"model": "tinny"}, 404, "did you mean 'tiny'?"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "last message"),
        ({"messages": GOOD["messages"] * 10}, 400, "9 messages"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": 25}, 400, "at most 24"),
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "warm"}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 2}, 400, "n"),
        ({"temprature": 1}, 400, "did you mean 'temperature'?"),
        ({"top_logprobs": 2}, 400, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"stream_options": {}}, 400, "needs stream"),
        ({"messages": shown("x", *[data_uri(png("red"))] * 3)}, 400, "2 images"),
        ({"messages": [{"role": "user", "content": "x" * 5000}]}, 400, "tokens"),
        *(({"messages": shown("x", url)}, 400, words) for url, words in BAD_IMAGES.items()),
    ],
    ids=str,
)
def test_a_wrong_request_gets_a_sentence(address, change, code, sentence) -> None:
    status, answer = post(address, {**GOOD, **change})
    assert (status, list(answer)) == (code, ["error"])
    assert sentence in answer["error"]["message"]
    assert answer["error"]["type"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"model": NaN}'])
def test_a_body_that_is_no_request_is_a_400(address, body) -> None:
    status, answer = post(address, body)
    assert status == 400
    assert answer["error"]["message"]


def test_a_wrong_path_or_method_is_told(address) -> None:
    assert answered(f"{address}/v1/nothing")[0] == 404
    assert answered(f"{address}/v1/chat/completions")[0] == 405
    assert answered(f"{address}/page/../api.py")[0] == 404


def test_too_large_a_body_is_refused_unread(address) -> None:
    body = json.dumps({**GOOD, "user": "x" * 300_000}).encode()
    assert post(address, body)[0] == 413
    host, port = address.removeprefix("http://").split(":")
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    kind = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head + kind)
        for _ in range(5):
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
        assert b" 413 " in connection.recv(4096).splitlines()[0]


def test_other_pages_cannot_use_it(address) -> None:
    assert post(address, GOOD, Host="evil.example")[0] == 403
    assert post(address, GOOD, **{"Content-Type": "text/plain"})[0] == 415


def test_a_key_is_asked_for(tokenizer, serving) -> None:
    with serving(seeing_engine(tokenizer), api_key="secret") as address:
        assert post(address, GOOD)[0] == 401
        assert post(address, GOOD, Authorization="Bearer wrong")[0] == 401
        assert post(address, GOOD, Authorization="Bearer secret")[0] == 200
        assert answered(f"{address}/health")[0] == 200
        assert answered(f"{address}/v1/models")[0] == 401


class Gate:
    """Holds a model's forward passes until it is opened."""

    def __init__(self, engine: Engine) -> None:
        self.opened, self.reached = threading.Event(), threading.Event()
        self.opened.set()
        engine.model.register_forward_pre_hook(self._wait)

    def _wait(self, *_: object) -> None:
        self.reached.set()
        assert self.opened.wait(60)

    def shut(self) -> None:
        self.opened.clear()
        self.reached.clear()


@pytest.fixture(scope="module")
def gated(tokenizer, serving) -> Iterator[tuple[str, Gate, Engine]]:
    engine = seeing_engine(tokenizer, max_batch=1, max_queue=1)
    gate = Gate(engine)
    with serving(engine) as address:
        yield address, gate, engine
        gate.opened.set()


def wait_for(condition) -> None:
    pause = threading.Event()
    for _ in range(600):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it did not happen")


def test_a_full_queue_answers_429(gated) -> None:
    address, gate, engine = gated
    gate.shut()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, address, GOOD)
        assert gate.reached.wait(60)
        second = pool.submit(post, address, GOOD)
        wait_for(lambda: engine.stats().waiting == 1)
        status, answer = post(address, GOOD)
        gate.opened.set()
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert (first.result()[0], second.result()[0]) == (200, 200)


def test_an_answer_that_takes_too_long_is_a_504(tokenizer, serving) -> None:
    engine = seeing_engine(tokenizer, max_batch=1)
    gate = Gate(engine)
    gate.shut()
    with serving(engine, max_time_s=0.5) as address:
        status, answer = post(address, GOOD)
        gate.opened.set()
        assert (status, answer["error"]["code"]) == (504, "timeout")
        wait_for(lambda: engine.stats().running == 0)


def test_a_client_that_leaves_frees_its_place(gated) -> None:
    address, gate, engine = gated
    before = engine.stats().requests.get("cancelled", 0)
    gate.shut()
    for stream in (True, False):
        body = json.dumps({**GOOD, "max_tokens": 1000, "stream": stream}).encode()
        host, port = address.removeprefix("http://").split(":")
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
        )
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
            wait_for(lambda: engine.stats().running == 1)
        gate.opened.set()
        wait_for(lambda: engine.stats().running == 0)
        gate.shut()
    gate.opened.set()
    assert engine.stats().requests["cancelled"] >= before + 2


# Many at once, and anything at all


def resident_mib() -> float:
    """Memory of this process, the server's as well."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("num", [32, pytest.param(200, marks=pytest.mark.slow)])
def test_none_is_lost_and_none_is_crossed(address, client, engine, num) -> None:
    """Sixteen at a time, texts and images, the run and its base, whole and streamed."""
    colours = ("red", "blue", "lime", "white")

    def one(number: int) -> tuple[str, str]:
        colour = colours[number % 4]
        urls = [data_uri(png(colour))] if number % 2 else []
        model = "tiny:base" if number % 5 == 0 else "tiny"
        text = f"Question {number % 8}?"
        content = (Image(data=png(colour)), text) if urls else (text,)
        if number % 3:
            told = ask(client, text, *urls, model=model).choices[0].message.content
        else:
            events = ask(client, text, *urls, model=model, stream=True)
            told = "".join(event.choices[0].delta.content or "" for event in events)
        adapter = model == "tiny"
        return told, engine.answer([Message("user", content)], Sampling(12), adapter=adapter)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(one, range(num // 2)))
        half = resident_mib()
        answers += pool.map(one, range(num // 2, num))
    assert resident_mib() < half + 64
    assert [told for told, _ in answers] == [alone for _, alone in answers]
    assert len({told for told, _ in answers}) > 8
    wait_for(lambda: engine.stats().running == engine.stats().waiting == 0)


def test_whatever_is_sent_gets_an_answer_of_the_schema(address) -> None:
    """Of what the schema allows, some is refused further in: names of models, images."""
    checks = schemathesis.checks
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    paths = {"/v1/chat/completions", "/v1/responses", "/v1/models", "/metrics"}
    assert {each.path for each in operations} >= paths
    quick = settings(
        max_examples=10, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
    )
    for operation in operations:
        kinds = schemathesis.GenerationMode
        wrong = [kinds.NEGATIVE] if operation.method == "post" else []  # a body can be wrong
        for mode in (kinds.POSITIVE, *wrong):

            @quick
            @given(case=operation.as_strategy(generation_mode=mode))
            def sent(case) -> None:
                case.call_and_validate(excluded_checks=[checks.positive_data_acceptance])

            sent()


def test_the_page_begins_with_held_out_questions_and_their_images(tmp_path) -> None:
    rows = []
    for number in range(6):
        PIL.Image.new("RGB", (300, 200), (40 * number, 0, 0)).save(tmp_path / f"{number}.png")
        row = {"image": f"{number}.png", "question": f"Question {number}?", "answer": "Red."}
        rows += [row, row, {"question": f"What is {number}?", "answer": "A number."}]
    (tmp_path / "asked.json").write_text(json.dumps(rows))
    sources = [FileSection(path=str(tmp_path / name)) for name in ("gone.json", "asked.json")]
    recipe = SimpleNamespace(data=DataSection(evaluate=tuple(sources)))
    questions = held_out_questions(recipe)  # type: ignore[arg-type]
    assert [each.text for each in questions] == [f"Question {number}?" for number in range(4)]
    assert questions[1].title == "Held-out question 2"
    content = base64.b64decode(questions[1].images[0].partition(",")[2])
    image = PIL.Image.open(io.BytesIO(content))
    assert image.size == (300, 200)
    assert image.getpixel((0, 0)) == pytest.approx((40, 0, 0), abs=4)  # JPEG
