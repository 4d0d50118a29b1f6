"""The Responses API in its stateless form, driven by the openai client and held to its types."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from fastapi.testclient import TestClient
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from tiny_server import seeing_engine
from varifocal.data.example import Message
from varifocal.serving.api import create_app
from varifocal.serving.engine import Engine, Sampling
from varifocal.serving.settings import ServeSettings

ASKED: dict[str, Any] = {"model": "tiny", "input": "What is a magnet?", "max_output_tokens": 12}


@pytest.fixture(scope="module")
def engine(tokenizer) -> Iterator[Engine]:
    engine = seeing_engine(tokenizer)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def server(engine) -> TestClient:
    app = create_app(engine, name="tiny", settings=ServeSettings(max_new_tokens=200))
    return TestClient(app, base_url="http://localhost")


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    url = "http://localhost/v1"
    return openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=server)


class Magnet(BaseModel):
    """What an answer is asked to be."""

    poles: Literal["equal", "different"]
    distance: Literal[1, 2, 3]


def wanted(engine, *messages: tuple[str, Any], tokens: int = 12) -> str:
    turns = [
        Message(role, parts if isinstance(parts, tuple) else (parts,)) for role, parts in messages
    ]
    return engine.answer(turns, Sampling(tokens))


def test_an_answer_is_the_engines(client, engine) -> None:
    answer = client.responses.create(**ASKED, store=False)
    assert answer.output_text == wanted(engine, ("user", "What is a magnet?"))
    cut = answer.status == "incomplete"
    assert (answer.incomplete_details is not None) == cut == (answer.usage.output_tokens == 12)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.varifocal == {"route": "text"}


def test_instructions_turns_and_images_are_read(client, engine, image) -> None:
    red = image("red")
    url = f"data:image/png;base64,{base64.b64encode(red.read()).decode()}"
    shown = [{"type": "input_image", "image_url": url, "detail": "auto"}]
    said = {"type": "output_text", "text": "Hello", "annotations": []}
    given = [
        {"role": "user", "content": "Hi"},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [said]},
        {"role": "user", "content": [*shown, {"type": "input_text", "text": "Colour?"}]},
    ]
    answer = client.responses.create(
        model="tiny", input=given, instructions="Be kind.", max_output_tokens=12
    )
    expected = wanted(
        engine,
        ("system", "Be kind."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", (red, "Colour?")),
    )
    assert answer.output_text == expected
    assert answer.varifocal == {"route": "image"}
    again = client.responses.create(
        model="tiny", input=[*given, *answer.output, given[0]], max_output_tokens=3
    )
    assert again.usage.output_tokens <= 3


@pytest.mark.parametrize("change", [{}, {"metadata": {"a": "b"}, "temperature": 1.0, "top_p": 0.5}])
def test_answers_and_events_are_valid_by_openais_own_types(server, change) -> None:
    whole = server.post("/v1/responses", json={**ASKED, **change}).json()
    Response.model_validate_json(json.dumps(whole), strict=True)
    stream = server.post("/v1/responses", json={**ASKED, **change, "stream": True}).text
    events = [block.split("\n", 1) for block in stream.split("\n\n") if block]
    kind = TypeAdapter(ResponseStreamEvent)
    for number, (head, line) in enumerate(events):
        body = json.loads(line.removeprefix("data: "))
        assert kind.validate_json(json.dumps(body), strict=True).sequence_number == number
        assert head == f"event: {body['type']}"


def test_a_stream_is_the_whole_answer(client) -> None:
    whole = client.responses.create(**ASKED)
    events = list(client.responses.create(**ASKED, stream=True))
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    assert kinds == [
        *("response.created", "response.in_progress", "response.output_item.added"),
        *("response.content_part.added", "response.output_text.done"),
        *("response.content_part.done", "response.output_item.done", f"response.{whole.status}"),
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage == whole.usage


def test_an_answer_follows_a_schema(client) -> None:
    options = {"model": "tiny", "input": "Describe a magnet.", "temperature": 1.0}
    answer = client.responses.parse(**options, text_format=Magnet)
    assert isinstance(answer.output_parsed, Magnet)
    assert answer.status == "completed"
    form = {"format": {"type": "json_object"}}
    free = client.responses.create(**options, text=form, max_output_tokens=1)
    assert free.output_text == "{"
    assert free.incomplete_details.reason == "max_output_tokens"


PART = {"type": "input_image", "image_url": "x"}
SHOWN = {"input": [{"role": "user", "content": [PART]}]}
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "an answer before": ({"previous_response_id": "resp_1"}, "previous_response_id", "stores no"),
    "an answer to store": ({"store": True}, "store", "stores nothing"),
    "tools": ({"tools": [{"type": "web_search"}]}, "tools", "calls no tools"),
    "an effort": ({"reasoning": {"effort": "low"}}, "reasoning", "no such setting"),
    "a cut": ({"truncation": "auto"}, "truncation", "cuts no conversation"),
    "a slip": ({"instruction": "x"}, "instruction", "did you mean 'instructions'?"),
    "no image": (SHOWN, "input.0.content.0.image_url", "must be a data: URI"),
    "no image after instructions": (
        {**SHOWN, "instructions": "Be kind."},
        "input.0.content.0.image_url",
        "must be a data: URI",
    ),
    "chat's part": (
        {"input": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
        "input.0.content.0.type",
        "'input_text' or 'input_image'",
    ),
    "a file": (
        {"input": [{"role": "user", "content": [{**PART, "file_id": "f"}]}]},
        "input.0.content.0.file_id",
        "stores no files",
    ),
    "a call": (
        {"input": [{"type": "function_call", "name": "f"}]},
        "input.0.type",
        "must be a message",
    ),
    "the assistant last": (
        {"input": [{"role": "assistant", "content": "Hi"}]},
        "input.0.role",
        "the last message",
    ),
    "an image of the assistant's": (
        {"input": [{"role": "assistant", "content": [PART]}, {"role": "user", "content": "Hi"}]},
        "input.0.content.0",
        "turns of the user",
    ),
    "nothing": ({"input": []}, "input", "at least 1"),
    "a number": ({"input": 5}, "input", "a text or a list of messages"),
    "too many tokens": ({"max_output_tokens": 201}, "max_output_tokens", "at most 200"),
    "the placeholder": ({"input": "<|image|>"}, "input", "placeholder"),
    "a schema": (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}},
        "text.format.schema",
        "Unimplemented keys",
    ),
    "no schema": ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "needs a"),
    "no model": ({"model": "other"}, "model", "there is no model"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_field_and_the_reason(server, name) -> None:
    change, param, reason = REFUSED[name]
    answer = server.post("/v1/responses", json={**ASKED, **change})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (404 if name == "no model" else 400, param)
    assert reason in error["message"]
