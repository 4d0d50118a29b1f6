"""Answers that follow a JSON schema: always valid, and nothing to the other rows of a batch."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema_rs
import openai
import pytest
from benchmarks.structured_output import schemas_of
from fastapi.testclient import TestClient
from pydantic import BaseModel

from tiny_server import seeing_engine
from varifocal.data.example import Message
from varifocal.serving.api import create_app
from varifocal.serving.engine import Engine, Sampling
from varifocal.serving.settings import ServeSettings
from varifocal.serving.structured_output import MAX_SCHEMA_CHARS, SchemaError

HI = [Message("user", ("Hi",))]
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "Describe a magnet."}]}


@pytest.fixture(scope="module")
def engine(tokenizer) -> Iterator[Engine]:
    engine = seeing_engine(tokenizer)
    yield engine
    engine.close()


class Magnet(BaseModel):
    """What an answer is asked to be."""

    poles: Literal["equal", "different"]
    distances: list[Literal[1, 2, 3]]
    repels: bool


def test_answers_to_random_schemas_are_valid(engine) -> None:
    schemas = schemas_of(30, seed=1)
    requests = [
        engine.submit(HI, Sampling(800, number % 2, seed=number, json_schema=json.dumps(schema)))
        for number, schema in enumerate(schemas)
    ]
    for schema, request in zip(schemas, requests, strict=True):
        answer = json.loads("".join(piece.text for piece in request))
        jsonschema_rs.validate(schema, answer)
        assert request.finish_reason == "stop"


def tokens_of(request) -> list[tuple[bytes, float]]:
    return [(token.bytes, token.logprob) for piece in request for token in piece.logprobs]


def test_rows_with_and_without_a_schema_are_as_alone(tokenizer) -> None:
    texts = [None, *map(json.dumps, schemas_of(3, seed=2)), None]
    samplings = [
        Sampling(30, temperature, seed=number, logprobs=0, json_schema=text)
        for temperature in (0, 1)
        for number, text in enumerate(texts)
    ]
    engine = seeing_engine(tokenizer, max_batch=1, prefix_cache_gib=0)
    alone = [tokens_of(engine.submit(HI, sampling)) for sampling in samplings]
    engine.close()
    engine = seeing_engine(tokenizer, max_batch=4)
    order = [*range(len(samplings))] * 2
    random.Random(0).shuffle(order)
    requests = [(which, engine.submit(HI, samplings[which])) for which in order]
    for which, request in requests:
        tokens = tokens_of(request)
        assert [token for token, _ in tokens] == [token for token, _ in alone[which]]
        expected = pytest.approx([logprob for _, logprob in alone[which]], abs=1e-9)
        assert [logprob for _, logprob in tokens] == expected  # the model's, before the schema
    engine.close()


def test_an_answer_is_cut_or_complete(engine) -> None:
    schema = json.dumps({"const": {"pole": 1}})
    cut = engine.submit(HI, Sampling(9, json_schema=schema))
    assert "".join(piece.text for piece in cut) == '{"pole": '
    assert cut.finish_reason == "length"
    whole = engine.submit(HI, Sampling(11, json_schema=schema))
    assert "".join(piece.text for piece in whole) == '{"pole": 1}'
    assert (whole.finish_reason, whole.completion_tokens) == ("stop", 11)


def test_a_schema_cannot_weaken_itself(engine) -> None:
    weak = {"type": "object", "not": {}, "x-guidance": {"lenient": True}}
    with pytest.raises(SchemaError, match="not"):
        engine.submit(HI, Sampling(json_schema=json.dumps(weak)))


def test_a_schema_that_becomes_too_complex_ends_its_own_request(engine, monkeypatch) -> None:
    from varifocal.serving import structured_output

    limits = {**structured_output._PARSER_LIMITS, "step_max_items": 3}
    monkeypatch.setattr(structured_output, "_PARSER_LIMITS", limits)
    free = engine.submit(HI, Sampling(20))
    schema = json.dumps(schemas_of(1)[0])
    held = engine.submit(HI, Sampling(20, json_schema=schema))
    with pytest.raises(SchemaError, match="further"):
        list(held)
    assert free.finish_reason in (None, "length", "stop")
    assert "".join(piece.text for piece in free) == engine.answer(HI, Sampling(20))


@pytest.fixture(scope="module")
def post(engine):
    app = create_app(engine, name="tiny", settings=ServeSettings(max_new_tokens=200))
    client = TestClient(app, base_url="http://localhost")
    return lambda change: client.post("/v1/chat/completions", json={**ASKED, **change})


def formed(schema: Any, **others: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, **others}}


DEEP: dict[str, Any] = {"type": "integer"}
for _ in range(40):
    DEEP = {"anyOf": [DEEP]}
SCHEMA = "response_format.json_schema.schema"
REFUSED = {
    "a keyword": (formed({"not": {"type": "string"}}), SCHEMA, "Unimplemented keys"),
    "a type": (formed({"type": "text"}), SCHEMA, "Invalid type: text"),
    "a pattern": (formed({"type": "string", "pattern": "("}), SCHEMA, "unclosed group"),
    "no answer": (formed({"type": "integer", "minimum": 2, "maximum": 1}), SCHEMA, "greater than"),
    "another's schema": (formed({"$ref": "https://a.example/b"}), SCHEMA, "does not fetch"),
    "a long schema": (formed({"enum": ["a" * MAX_SCHEMA_CHARS]}), SCHEMA, "65,536 characters"),
    "a deep schema": (formed(DEEP), SCHEMA, "64 objects and lists deep, not 81"),
    "a schema that is a text": (formed("{}"), SCHEMA, "an object"),
    "no schema": (
        {"type": "json_schema"},
        "response_format.json_schema",
        "goes with type: json_schema",
    ),
    "a schema of another type": (
        {**formed({}), "type": "json_object"},
        "response_format.json_schema",
        "goes with type: json_schema",
    ),
    "a name": (formed({}, name="a b"), "response_format.json_schema.name", "match"),
    "a slip": (formed({}, strikt=True), "response_format.json_schema.strikt", "'strict'"),
    "a grammar": ({"type": "grammar"}, "response_format.type", "'json_schema'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_field_and_the_reason(post, name) -> None:
    form, param, reason = REFUSED[name]
    answer = post({"response_format": form})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert reason in error["message"]


def test_openais_client_parses_an_answer(engine, serving) -> None:
    with (
        serving(engine, max_new_tokens=200) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        options = {**ASKED, "temperature": 1.0, "seed": 3}
        answer = client.chat.completions.parse(**options, response_format=Magnet)
        assert isinstance(answer.choices[0].message.parsed, Magnet)
        assert answer.choices[0].finish_reason == "stop"
        with client.chat.completions.stream(**options, response_format=Magnet) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.parsed == answer.choices[0].message.parsed
        free = client.chat.completions.create(
            **options, response_format={"type": "json_object"}, max_tokens=60
        )
        assert free.choices[0].message.content.startswith("{")
