"""What clients send: the forms that are answered, and the field that a refusal names."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import PIL.Image
import pytest

from tiny_server import seeing_engine
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Message
from varifocal.serving.chat_request import ChatRequest
from varifocal.serving.engine import Engine, Sampling
from varifocal.serving.error_response import Refused
from varifocal.serving.request_body import Reader
from varifocal.serving.settings import ServeSettings

HI = {"role": "user", "content": "Hi"}
GOOD: dict[str, Any] = {"model": "tiny", "max_tokens": 3, "messages": [HI]}


def image(form: str) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), (200, 0, 0)).save(buffer, form)
    return buffer.getvalue()


def uri(form: str, head: str = "", width: int = 0) -> str:
    text = base64.b64encode(image(form)).decode()
    lines = [text[at : at + width] for at in range(0, len(text), width)] if width else [text]
    return (head or f"data:image/{form.lower()};base64,") + "\n".join(lines)


def shown(url: Any) -> dict[str, Any]:
    part = {"type": "image_url", "image_url": url}
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Colour?"}]}]}


def said(*turns: Any) -> dict[str, Any]:
    return {"messages": [dict(zip(("role", "content"), turn, strict=True)) for turn in turns]}


PERCENT = "data:image/png," + "".join(f"%{byte:02x}" for byte in image("PNG"))
IMAGES = {
    "a type that is not registered, as most write it": uri("JPEG", "data:image/jpg;base64,"),
    "a charset next to base64": uri("JPEG", "data:image/jpeg;charset=utf-8;base64,"),
    "base64 in lines of 76": uri("JPEG", width=76),
    "TIFF": uri("TIFF"),
    "WebP": uri("WEBP"),
    "GIF": uri("GIF"),
    "BMP": uri("BMP"),
    "capitals": uri("PNG", "DATA:IMAGE/PNG;BASE64,"),
    "without padding": uri("PNG").rstrip("="),
    "base64 in percent signs": uri("PNG").replace("+", "%2B").replace("=", "%3D"),
    "no base64": PERCENT,
    "another image than the type says": uri("PNG", "data:image/jpeg;base64,"),
    "no type": uri("PNG", "data:;base64,"),
}
ANSWERED: dict[str, dict[str, Any]] = {
    "nulls of a request": {
        "tools": None,
        "logit_bias": None,
        "stream": None,
        "n": None,
        "stop": None,
        "response_format": None,
        "stream_options": None,
        "a_field_to_come": None,
    },
    "what changes nothing": {
        "tools": [],
        "tool_choice": "auto",
        "logit_bias": {},
        "n": 1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0,
        "response_format": {"type": "text"},
        "stop": [],
        "top_k": 0,
        "service_tier": "auto",
        "metadata": {"chat": 5},
        "top_logprobs": 0,
    },
    "an answer as the openai client dumps it": {
        "messages": [
            HI,
            {
                "role": "assistant",
                "content": "Hello",
                "refusal": None,
                "annotations": [],
                "audio": None,
                "function_call": None,
                "tool_calls": None,
            },
            HI,
        ]
    },
    "a part as langchain dumps it": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi", "image_url": None}]}
        ]
    },
    "an empty answer": said(("user", "Hi"), ("assistant", ""), ("user", "Again")),
    "an answer of null": said(("user", "Hi"), ("assistant", None), ("user", "Again")),
    "an answer without parts": said(("user", "Hi"), ("assistant", []), ("user", "Again")),
    "two user turns": said(("user", "Hi"), ("user", "Are you there?")),
    "the assistant first": said(("assistant", "Hello"), ("user", "Hi")),
    "two system turns": said(("system", "Be kind."), ("system", "Be short."), ("user", "Hi")),
    "a developer": said(("developer", "Be kind."), ("user", "Hi")),
    "hardly a temperature": {"temperature": 1e-320, "seed": 1, "top_p": 1e-300},
    "a whole number with a point": {"max_tokens": 3.0},
}
PART = "messages.0.content.0"
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "an image_url as a text": (shown("x"), f"{PART}.image_url", 'an object, {"url": "data:'),
    "a url of null": (shown({"url": None}), f"{PART}.image_url.url", "string"),
    "an address": (shown({"url": "http://a.example/b.png"}), f"{PART}.image_url", "fetches no"),
    "a file": (shown({"url": "file:///etc/passwd"}), f"{PART}.image_url", "files are not read"),
    "bare base64": (shown({"url": uri("PNG")[30:]}), f"{PART}.image_url", "must be a data: URI"),
    "SVG": (shown({"url": "data:image/svg+xml,<svg/>"}), f"{PART}.image_url", "none of PNG"),
    "the Responses API's part": (
        {"messages": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        f"{PART}.type",
        "here it is image_url",
    ),
    "a part that is a text": (said(("user", ["Hi"])), PART, 'an object with a "type"'),
    "a number for a content": (said(("user", 5)), "messages.0.content", "a text or a list"),
    "a user who says nothing": (said(("user", None)), "messages.0.content", "not empty"),
    "no parts": (said(("user", [])), "messages.0.content", "not empty"),
    "a tool's turn": (said(("tool", "x")), "messages.0.role", "'assistant'"),
    "the assistant last": (said(("user", "a"), ("assistant", "b")), "messages.1.role", "last"),
    "no turns": ({"messages": []}, "messages", "at least 1"),
    "a call of a tool": (
        {"messages": [HI, {"role": "assistant", "tool_calls": [{"id": "1"}]}, HI]},
        "messages.1.tool_calls",
        "calls no tools",
    ),
    "an image of the assistant's": (
        {"messages": [HI, {**shown({"url": uri("PNG")})["messages"][0], "role": "assistant"}, HI]},
        "messages.1.content.0",
        "turns of the user, not of the assistant",
    ),
    "an unknown key of a turn": (
        {"messages": [{**HI, "nmae": "x"}]},
        "messages.0.nmae",
        "did you mean 'name'?",
    ),
    "the placeholder": (said(("user", "<|image|>")), "messages", "placeholder"),
    "an empty stop text": ({"stop": [""]}, "stop.0", "at least 1 character"),
    "five stop texts": ({"stop": list("abcde")}, "stop", "at most 4 items, not 5"),
    "a stop that is a number": ({"stop": 5}, "stop", "a text or a list of texts"),
    "tools": ({"tools": [{"type": "function"}]}, "tools", "calls no tools"),
    "a form": ({"response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
    "two answers": ({"n": 2}, "n", "one answer"),
    "true answers": ({"n": True}, "n", "one answer"),
    "a penalty": ({"presence_penalty": 0.1}, "presence_penalty", "no penalties"),
    "a sampler of others": ({"top_k": 40}, "top_k", "temperature and top_p"),
    "no tokens": ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    "tokens without end": ({"max_completion_tokens": 10**40}, "max_completion_tokens", "at most"),
    "true tokens": ({"max_tokens": True}, "max_tokens", "not true or false"),
    "a written temperature": ({"temperature": "0.5"}, "temperature", "not a text"),
    "no top_p": ({"top_p": 0}, "top_p", "greater than 0"),
    "a seed of 65 bits": ({"seed": 2**63}, "seed", "less than"),
    "a stream that is a word": ({"stream": "yes"}, "stream", "boolean"),
    "options without a stream": ({"stream_options": {}}, "stream_options", "needs stream"),
    "a likelier token alone": ({"top_logprobs": 1}, "top_logprobs", "needs logprobs"),
    "a slip": ({"temprature": 1}, "temprature", "did you mean 'temperature'?"),
}
RAW = {
    "half a character": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', None),
    "no number": (b'{"temperature": NaN, "model": "", "messages": []}', "messages"),
    "infinity": (b'{"model": "", "messages": [], "temperature": 1e400}', "messages"),
    "a nest": (b"[" * 100_000, None),
    "a number of 5,000 digits": (b'{"seed": 1' + b"0" * 5000 + b"}", None),
    "a list": (b"[]", None),
}


@pytest.fixture(scope="module")
def engine(tokenizer):
    engine = seeing_engine(tokenizer)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def reader():
    reader = Reader(ServeSettings(max_new_tokens=24))
    yield reader
    reader.close()


def asked(reader: Reader, change: dict[str, Any]) -> list[Message]:
    return reader.messages(reader.parse(json.dumps({**GOOD, **change}).encode(), ChatRequest))


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_comes_as_clients_send_it(reader, name) -> None:
    (turn,) = asked(reader, shown({"url": IMAGES[name]}))
    image, text = turn.content
    red, green, blue = image.open().getpixel((8, 8))
    assert text == "Colour?"
    assert red > 190 and green < 10 and blue < 10  # noqa: PT018


@pytest.mark.parametrize("name", ANSWERED)
def test_what_clients_send_is_answered(reader, engine, name) -> None:
    change = ANSWERED[name]
    conversation = asked(reader, change)
    given = {**GOOD, **change}
    sampling = Sampling(3, given.get("temperature") or 0.0, given.get("top_p") or 1.0, seed=1)
    request = engine.submit(conversation, sampling)
    assert "".join(piece.text for piece in request)
    assert request.completion_tokens == 3
    roles = [turn["role"].replace("developer", "system") for turn in given["messages"]]
    assert [turn.role for turn in conversation] == roles


def test_turns_are_read_as_they_come(reader, engine) -> None:
    """Nothing is joined, left out or put in front: the template writes what was sent."""
    turns = asked(reader, ANSWERED["an empty answer"])
    ids = engine.submit(turns, Sampling(1)).encoded.input_ids.tolist()
    text = engine.encoder.tokenizer.decode(ids)
    assert text == "<s>user\nHi</s>\n<s>assistant\n</s>\n<s>user\nAgain</s>\n<s>assistant\n"


def test_hardly_a_temperature_takes_the_likeliest(reader, engine) -> None:
    turns = asked(reader, {})
    greedy = engine.answer(turns, Sampling(8))
    assert engine.answer(turns, Sampling(8, temperature=5e-324, seed=3)) == greedy


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_field_and_the_reason(refusing, name) -> None:
    change, param, reason = REFUSED[name]
    status, answer = refusing(json.dumps({**GOOD, **change}).encode())
    error = answer["error"]
    assert (status, error["param"]) == (400, param)
    assert reason in error["message"]
    assert error["type"] == "invalid_request_error"


STRICT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{% endif %}"
    "<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ((("system", "Be kind."), ("user", "Hi")), "no system turns here"),
        ((("user", "Hi"), ("user", "Are you there?")), "must take turns"),
        ((("assistant", "Hello"), ("user", "Hi")), "must take turns"),
    ],
)
def test_turns_that_the_template_refuses_are_a_400(llama, tokenizer, turns, reason) -> None:
    engine = Engine(llama, Encoder(tokenizer, chat_template=STRICT))
    ask = asking(engine)
    assert ask(json.dumps({**GOOD, **said(("user", "Hi"))}).encode())[0] == 200
    status, answer = ask(json.dumps({**GOOD, **said(*turns)}).encode())
    assert (status, answer["error"]["param"]) == (400, "messages")
    assert reason in answer["error"]["message"]
    engine.close()


@pytest.mark.parametrize("name", RAW)
def test_a_body_that_is_no_request_is_told(reader, name) -> None:
    body, param = RAW[name]
    with pytest.raises(Refused) as refused:
        reader.parse(body, ChatRequest)
    assert refused.value.status == 400
    if param is None:
        assert "JSON" in refused.value.message or "object" in refused.value.message


@pytest.fixture(scope="module")
def refusing(engine):
    return asking(engine)


def asking(engine) -> Callable[[bytes], tuple[int, dict[str, Any]]]:
    """Ask the app without a socket: a body -> status and answer."""
    from fastapi.testclient import TestClient

    from varifocal.serving.api import create_app

    app = create_app(engine, name="tiny", settings=ServeSettings(max_new_tokens=24))
    client = TestClient(app, base_url="http://localhost")

    def ask(body: bytes) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        answer = client.post("/v1/chat/completions", content=body, headers=headers)
        return answer.status_code, answer.json()

    return ask
