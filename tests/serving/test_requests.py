"""Requests end as they should: cancelled, refused, failed, stopped, drained."""

from __future__ import annotations

import asyncio
import copy
import threading

import pytest
import torch

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Image, Message
from varifocal.errors import DataError
from varifocal.serving.engine import (
    ContextLengthError,
    Engine,
    EngineClosed,
    EngineFault,
    QueueFull,
    Sampling,
)

ASKED = [Message("user", ("What is a magnet?",))]
LONG = Sampling(max_new_tokens=1500)


@pytest.fixture
def engine(llama, tokenizer):
    engine = Engine(llama, Encoder(tokenizer), max_batch=2, max_queue=3)
    write_only(engine, "a")
    yield engine
    engine.close()


def write_only(engine: Engine, letter: str) -> None:
    def write(module, args, output):
        output.logits[..., ord(letter)] += 1e6

    engine.model.register_forward_hook(write)


class Gate:
    """Holds the model before its passes until it is opened."""

    def __init__(self, engine: Engine) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        engine.model.register_forward_pre_hook(self.wait)

    def wait(self, module, args) -> None:
        self.entered.set()
        self.open.wait(60)


def text(request) -> str:
    return "".join(piece.text for piece in request)


def test_a_full_queue_refuses_and_a_cancelled_one_that_waits_makes_room(engine: Engine) -> None:
    gate = Gate(engine)
    first = engine.submit(ASKED, Sampling(5))
    gate.entered.wait(60)
    waiting = [engine.submit(ASKED, Sampling(3)) for _ in range(3)]
    assert (engine.stats().running, engine.stats().waiting) == (1, 3)
    with pytest.raises(QueueFull, match="3 requests wait already, at most 3 may"):
        engine.submit(ASKED, Sampling(3))
    waiting[1].cancel()
    assert waiting[1].finish_reason == "cancelled"
    assert text(waiting[1]) == ""
    waiting.append(engine.submit(ASKED, Sampling(4)))
    gate.open.set()
    assert [text(one) for one in (first, *waiting)] == ["aaaaa", "aaa", "", "aaa", "aaaa"]
    engine.close(drain=True)
    assert engine.stats().requests == {"length": 4, "cancelled": 1}


def test_cancelling_frees_the_slot(engine: Engine) -> None:
    long = [engine.submit(ASKED, LONG) for _ in range(2)]
    next(iter(long[0]))
    after = engine.submit(ASKED, Sampling(2))
    long[0].cancel()
    assert text(after) == "aa"
    assert long[0].finish_reason == "cancelled"
    assert long[0].completion_tokens < 1500
    assert long[1].finish_reason is None


def test_closing_cancels_and_takes_no_more(engine: Engine) -> None:
    requests = [engine.submit(ASKED, LONG) for _ in range(3)]
    next(iter(requests[0]))
    engine.close()
    assert [one.finish_reason for one in requests] == ["cancelled"] * 3
    with pytest.raises(EngineClosed):
        engine.submit(ASKED)


def test_draining_answers_what_was_asked(engine: Engine) -> None:
    requests = [engine.submit(ASKED, Sampling(6)) for _ in range(3)]
    engine.close(drain=True)
    assert [one.finish_reason for one in requests] == ["length"] * 3
    with pytest.raises(EngineClosed):
        engine.submit(ASKED)


def test_a_raising_model_fails_its_requests_with_a_sentence_and_the_engine_goes_on(
    engine: Engine,
) -> None:
    broken = iter([False, False, False, True])

    def fail(module, args):
        if next(broken, False):
            raise RuntimeError("out of memory\nand a traceback")

    engine.model.register_forward_pre_hook(fail)
    gate = Gate(engine)
    both = [engine.submit(ASKED, LONG), engine.submit(ASKED, LONG)]
    gate.open.set()
    for request in both:
        with pytest.raises(EngineFault, match="the model failed while it answered: RuntimeError: "):
            text(request)
        assert str(request.error).endswith("RuntimeError: out of memory")
    assert engine.answer(ASKED, Sampling(3)) == "aaa"
    engine.close()
    assert engine.stats().requests == {"error": 2, "length": 1}


def test_a_bad_image_fails_its_request_alone(seeing, load_images, image) -> None:
    engine = Engine(copy.deepcopy(seeing[0]), seeing[1], load_images)
    mate = engine.submit([Message("user", (image("red"), "What?"))], Sampling(20))
    bad = engine.submit([Message("user", (Image(data=b"no image"), "What?"))])
    with pytest.raises(DataError, match="damaged or none of PNG"):
        text(bad)
    assert bad.finish_reason == "error"
    text(mate)
    assert mate.finish_reason in ("stop", "length")
    assert engine.answer(ASKED, Sampling(3), adapter=False) is not None


def test_a_row_that_cannot_be_sampled_fails_alone(engine: Engine) -> None:
    def spoil(module, args, output):
        output.logits[-1, ..., :] = torch.nan

    handle = engine.model.register_forward_hook(spoil)
    with pytest.raises(EngineFault, match="RuntimeError: probability tensor"):
        text(engine.submit(ASKED, Sampling(3, temperature=1.0)))
    handle.remove()
    assert engine.answer(ASKED, Sampling(2)) == "aa"


def test_too_long_is_refused_at_once_and_the_windows_end_ends_an_answer(llama, tokenizer) -> None:
    llama.config.max_position_embeddings = 60
    engine = Engine(llama, Encoder(tokenizer))
    write_only(engine, "a")
    with pytest.raises(DataError, match="takes 119 tokens, the model reads at most 60; make it"):
        engine.submit([Message("user", ("a" * 100,))])
    request = engine.submit(ASKED)
    assert text(request) == "a" * (60 - request.prompt_tokens + 1)
    assert request.finish_reason == "length"


@pytest.mark.parametrize("overflow", ["truncate_prompt", "drop_oldest_turns"])
def test_a_runs_own_overflow_cuts_no_prompt(llama, tokenizer, overflow) -> None:
    """A run that trained on cut prompts does not answer another question than was asked."""
    llama.config.max_position_embeddings = 80
    engine = Engine(llama, Encoder(tokenizer, max_length=30, overflow=overflow))
    talk = [*ASKED, Message("assistant", ("It attracts.",)), *ASKED]
    with pytest.raises(ContextLengthError) as error:
        engine.submit(talk)
    assert (error.value.prompt_tokens, error.value.window) == (86, 80)
    request = engine.submit(ASKED, Sampling(1))  # longer than max_length, within the window
    assert request.prompt_tokens == 36 > 30
    assert text(request) is not None
    engine.close()


def test_no_queue_answers_as_many_as_the_batch_has(llama, tokenizer) -> None:
    engine = Engine(llama, Encoder(tokenizer), max_batch=2, max_queue=0)
    gate = Gate(engine)
    both = [engine.submit(ASKED, Sampling(3)) for _ in range(2)]
    with pytest.raises(QueueFull):
        engine.submit(ASKED, Sampling(3))
    gate.open.set()
    for request in both:
        text(request)
        assert request.completion_tokens
    engine.close()


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_queue": -1}])
def test_an_engine_without_room_is_refused(llama, tokenizer, wrong) -> None:
    with pytest.raises(ValueError, match="max_batch must be at least 1 and max_queue 0, not "):
        Engine(llama, Encoder(tokenizer), **wrong)


def test_a_talk_that_ends_with_an_answer_is_not_cut_short(engine: Engine) -> None:
    with pytest.raises(DataError, match="ends with the user's turn"):
        engine.submit([*ASKED, Message("assistant", ("It attracts.",))])


def test_a_model_without_an_adapter_cannot_leave_it_out(engine: Engine) -> None:
    assert not engine.has_adapter
    with pytest.raises(DataError, match="no adapter that could be left out"):
        engine.submit(ASKED, adapter=False)


def spell(engine: Engine, word: bytes) -> None:
    """Make the model write these bytes, one a pass."""
    letters = iter(word)

    def write(module, args, output):
        output.logits[..., next(letters)] += 2e6

    engine.model.register_forward_hook(write)


@pytest.mark.parametrize(
    ("word", "stop", "answer", "reason", "tokens"),
    [
        ("one END two", ("END",), "one ", "stop", 7),
        ("one EN two", ("END",), "one EN two", "length", 10),
        ("one EN", ("END",), "one EN", "length", 6),
        ("a🧲b", ("🧲",), "a", "stop", 5),
        ("xyz", ("z", "yz"), "x", "stop", 3),
    ],
)
def test_stop_words_span_tokens(engine: Engine, word, stop, answer, reason, tokens) -> None:
    content = word.encode()
    spell(engine, content)
    request = engine.submit(ASKED, Sampling(len(content), stop=stop, logprobs=0))
    pieces = list(request)
    assert "".join(piece.text for piece in pieces) == answer
    assert request.finish_reason == reason
    assert request.completion_tokens == tokens
    told = b"".join(one.bytes for piece in pieces for one in piece.logprobs)
    assert told == answer.encode()


def test_half_a_character_has_its_own_bytes(engine: Engine) -> None:
    spell(engine, "ä".encode())
    (piece,) = engine.submit(ASKED, Sampling(2, logprobs=1))
    assert piece.text == "ä"
    assert [one.bytes for one in piece.logprobs] == [b"\xc3", b"\xa4"]
    assert [one.top[0][2] for one in piece.logprobs] == [b"\xc3", b"\xa4"]


def test_pieces_come_to_an_event_loop_and_leaving_cancels(engine: Engine) -> None:
    async def read() -> str:
        whole, left = engine.submit(ASKED, Sampling(9)), engine.submit(ASKED, LONG)
        pieces = left.pieces()
        assert (await pieces.__anext__()).text == "a"
        await pieces.aclose()
        return "".join([piece.text async for piece in whole.pieces()])

    assert asyncio.run(read()) == "aaaaaaaaa"
    engine.close(drain=True)
    assert engine.stats().requests == {"length": 1, "cancelled": 1}


def test_an_error_comes_to_the_event_loop(engine: Engine) -> None:
    engine.model.register_forward_pre_hook(lambda module, args: 1 / 0)

    async def read() -> None:
        async for _ in engine.submit(ASKED).pieces():
            raise AssertionError("no piece was written")

    with pytest.raises(EngineFault, match="ZeroDivisionError: division by zero"):
        asyncio.run(read())
