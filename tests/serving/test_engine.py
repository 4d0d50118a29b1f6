"""Streaming: the text is generate's, whole characters only, and it can be stopped."""

from __future__ import annotations

import pytest
import torch

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.errors import DataError
from varifocal.serving.engine import Engine, Sampling

CONVERSATION = (
    Message("user", ("What is a magnet?",)),
    Message("assistant", ("A thing that pulls iron.",)),
    Message("user", ("And a compass?",)),
)


@pytest.fixture
def engine(llama, tokenizer) -> Engine:
    return Engine(llama, Encoder(tokenizer))


def generated(engine: Engine, messages, max_new_tokens: int) -> str:
    """What transformers' own greedy generation writes."""
    ids = engine.encoder.encode(Example(tuple(messages)), with_answer=False).input_ids
    prompt = torch.from_numpy(ids).long()[None]
    output = engine.model.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    return engine.encoder.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


@pytest.mark.parametrize("turns", [1, 3])
def test_greedy_equals_generate(engine: Engine, turns: int) -> None:
    messages = CONVERSATION[:turns]
    text = engine.answer(messages, Sampling(max_new_tokens=40))
    assert text
    assert text == generated(engine, messages, 40)


def test_pieces_join_to_the_answer(engine: Engine) -> None:
    sampling = Sampling(max_new_tokens=60, temperature=1.0, seed=3)
    pieces = list(engine.stream(CONVERSATION, sampling))
    assert len(pieces) > 5
    assert all(pieces)
    assert "".join(pieces) == engine.answer(CONVERSATION, sampling)


def bias(engine: Engine, token: int, after: int) -> None:
    """Make the model write `token` from its `after`-th token on."""
    calls = iter(range(10_000))

    def write(module, args, output):
        if next(calls) >= after:
            output.logits[..., token] += 1e6

    engine.model.register_forward_hook(write)


def test_it_stops_at_the_end_of_turn(engine: Engine, tokenizer) -> None:
    bias(engine, tokenizer.eos_token_id, after=4)
    calls: list[int] = []
    engine.model.register_forward_hook(lambda *call: calls.append(1))
    text = "".join(engine.stream(CONVERSATION, Sampling(max_new_tokens=50)))
    assert len(calls) == 5
    assert "</s>" not in text


def test_it_stops_at_the_templates_end_of_turn(llama, tokenizer) -> None:
    """A base model's own end of sequence is often another than its chat template's."""
    llama.generation_config.eos_token_id = tokenizer.pad_token_id
    engine = Engine(llama, Encoder(tokenizer))
    assert engine.stop_ids == {tokenizer.eos_token_id, tokenizer.pad_token_id}
    bias(engine, tokenizer.eos_token_id, after=0)
    assert engine.answer(CONVERSATION) == ""


def test_closing_the_stream_stops_the_model(engine: Engine) -> None:
    calls: list[int] = []
    engine.model.register_forward_hook(lambda *call: calls.append(1))
    bias(engine, ord("a"), after=0)
    stream = engine.stream(CONVERSATION, Sampling(max_new_tokens=1900))
    assert not calls
    assert next(stream) == "a"
    stream.close()
    engine.close(drain=True)
    assert engine.stats().requests == {"cancelled": 1}
    assert len(calls) < 1900
    assert list(stream) == []


def test_never_more_than_max_new_tokens(engine: Engine) -> None:
    bias(engine, ord("a"), after=0)
    assert engine.answer(CONVERSATION, Sampling(max_new_tokens=7)) == "a" * 7


def test_a_seed_repeats_and_seeds_differ(engine: Engine) -> None:
    def answer(seed: int) -> str:
        return engine.answer(CONVERSATION, Sampling(30, temperature=1.5, top_p=0.95, seed=seed))

    assert answer(1) == answer(1) != answer(2)


def test_a_tiny_nucleus_is_greedy(engine: Engine) -> None:
    sampled = engine.answer(CONVERSATION, Sampling(30, temperature=1.0, top_p=1e-6, seed=1))
    assert sampled == engine.answer(CONVERSATION, Sampling(30))


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"temperature": -1.0}, "temperature must be at least 0 and finite, not -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"stop": ("a", "")}, r"stop must be a tuple of texts, none empty, not \('a', ''\)"),
        ({"stop": "end"}, "stop must be a tuple of texts"),
        ({"logprobs": 21}, "logprobs must be from 0 to 20, not 21"),
    ],
)
def test_impossible_sampling_is_refused(settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings_)


def test_an_image_for_a_model_without_eyes_is_refused_at_once(engine: Engine, image) -> None:
    with pytest.raises(DataError, match="no vision tower"):
        engine.stream([Message("user", (image("red"), "What?"))])
