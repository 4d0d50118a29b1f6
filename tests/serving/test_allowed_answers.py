"""The likeliest of a list of answers, each with its probability, as evaluation scores them."""

from __future__ import annotations

import math
from typing import Any

import openai
import pytest
from fastapi.testclient import TestClient

from varifocal.data.example import Example, Message
from varifocal.models.likelihood import EncodedQuestion, score_options
from varifocal.serving.api import create_app
from varifocal.serving.engine import Engine, Sampling

ANSWERS = ("red", "blue", "It is neither.")
MANY = tuple(f"the {number}th of many colours" for number in range(30))
ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Colour?"}]}


@pytest.fixture
def engine(seeing, load_images):
    engine = Engine(*seeing, load_images)
    yield engine
    engine.close()


def scores_of(seeing, load_images, messages, answers) -> list[float]:
    """Score answers on the model as it is, as `eval` does."""
    model, encoder = seeing
    prompt, options = encoder.encode_options(Example(tuple(messages), choices=answers))
    images = tuple(prompt.images)
    question = EncodedQuestion(prompt.input_ids, tuple(options), prompt.modality, images)
    return score_options(model, [question], load_images)[0]


@pytest.mark.parametrize("answers", [ANSWERS, MANY], ids=["three", "many"])
@pytest.mark.parametrize("kind", ["text", "image", "base"])
def test_probabilities_are_those_of_evaluation(
    engine, seeing, load_images, image, kind, answers
) -> None:
    parts = (image("red"), "Colour?") if kind == "image" else ("Colour?",)
    messages = [Message("user", parts)]
    sampling = Sampling(allowed_answers=answers)
    request = engine.submit(messages, sampling, adapter=kind != "base")
    text = "".join(piece.text for piece in request)
    if kind == "base":
        with seeing[0].disable_adapter():
            expected = scores_of(seeing, load_images, messages, answers)
    else:
        expected = scores_of(seeing, load_images, messages, answers)
    scores = request.answer_scores
    assert [score.text for score in scores] == list(answers)
    assert [score.logprob for score in scores] == pytest.approx(expected, abs=1e-8)
    total = sum(math.exp(logprob) for logprob in expected)
    shares = [math.exp(logprob) / total for logprob in expected]
    assert [score.probability for score in scores] == pytest.approx(shares, abs=1e-8)
    assert text == answers[expected.index(max(expected))]
    assert (request.route, request.finish_reason) == (kind, "stop")


def test_rows_that_are_being_written_stay_as_they_are(engine) -> None:
    messages = [Message("user", ("What is a magnet?",))]
    alone = engine.answer(messages, Sampling(30))
    written = engine.submit(messages, Sampling(30))
    scored = [engine.submit(messages, Sampling(allowed_answers=ANSWERS)) for _ in range(4)]
    assert "".join(piece.text for piece in written) == alone
    first, *others = [list(request) and request.answer_scores for request in scored]
    assert all(scores == first for scores in others)


def test_openais_client_gets_each_probability(engine, serving) -> None:
    with (
        serving(engine) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        extra = {"allowed_answers": list(ANSWERS)}
        answer = client.chat.completions.create(**ASKED, extra_body=extra)
        scores = answer.varifocal["answers"]
        assert [score["text"] for score in scores] == list(ANSWERS)
        assert sum(score["probability"] for score in scores) == pytest.approx(1)
        best = max(scores, key=lambda score: score["probability"])
        assert answer.choices[0].message.content == best["text"]
        events = list(client.chat.completions.create(**ASKED, extra_body=extra, stream=True))
        assert "".join(event.choices[0].delta.content or "" for event in events) == best["text"]
        assert events[-1].varifocal == answer.varifocal


REFUSED = {
    "a temperature": ({"temperature": 1}, "temperature", "leave temperature out"),
    "a stop text": ({"stop": "e"}, "stop", "leave stop out"),
    "tokens' probabilities": ({"logprobs": True}, "logprobs", "leave logprobs out"),
    "a form": ({"response_format": {"type": "json_object"}}, "response_format", "leave"),
    "the same twice": ({"allowed_answers": ["a", "a"]}, "allowed_answers", "twice"),
    "an empty one": ({"allowed_answers": [""]}, "allowed_answers.0", "at least 1 character"),
    "too many": ({"allowed_answers": [*map(str, range(101))]}, "allowed_answers", "at most 100"),
    "the placeholder": ({"allowed_answers": ["<|image|>"]}, "messages", "placeholder"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_names_the_field_and_the_reason(engine, name) -> None:
    change, param, reason = REFUSED[name]
    client = TestClient(create_app(engine, name="tiny"), base_url="http://localhost")
    body = {**ASKED, "allowed_answers": list(ANSWERS), **change}
    answer = client.post("/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert reason in answer.json()["error"]["message"]
