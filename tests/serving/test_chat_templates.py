"""Second turns and thoughts in the engine and the API, with templates that rewrite turns."""

from __future__ import annotations

import copy
import json
import logging
import urllib.request

import pytest

from chat_templates import FAMILIES
from varifocal.cli.chat import Conversation
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.errors import DataError
from varifocal.serving.conversation import Chat
from varifocal.serving.engine import Engine, Sampling

FIRST = [Message("user", ("one?",))]
WRITES = {
    "qwen3": "<think>\n\n</think>\n\n",
    "qwen35": "\n</think>\n\n",
    "deepseek_r1": "\n</think>\n\n",
    "nemotron3": "</think>",
    "glm45": "\n<think></think>\n",
    "chatml": "",
}


def engine_of(llama, tokenizer, name) -> Engine:
    tokenizer = copy.deepcopy(tokenizer)
    jinja = FAMILIES.get(name, name)
    tokenizer.chat_template = jinja.replace("<|im_end|>", "</s>")
    return Engine(llama, Encoder(tokenizer))


def write(engine: Engine, text: str) -> None:
    """Let the model write a text and its end of turn, again and again."""
    ids = [*text.encode(), engine.encoder.end_of_turn_id]
    step = 0

    def force(module, args, output):
        nonlocal step
        output.logits[..., ids[step % len(ids)]] += 1e6
        step += 1

    engine.model.register_forward_hook(force)


@pytest.mark.parametrize("name", WRITES)
def test_what_every_answer_begins_with_is_not_told_and_a_second_turn_is_asked(
    llama, tokenizer, name
) -> None:
    engine = engine_of(llama, tokenizer, name)
    trained = engine.encoder.encode(Example((*FIRST, Message("assistant", ("two",)))))
    wanted = WRITES[name] + "two"
    assert bytes(trained.trained_ids[:-1].tolist()).decode() == wanted
    write(engine, wanted)
    turns = list(FIRST)
    for text in ("three?", "five?", ""):
        request = engine.submit(turns, Sampling(logprobs=0))
        pieces = list(request)
        assert "".join(piece.text for piece in pieces) == "two"
        assert [one.token for piece in pieces for one in piece.logprobs] == list("two")
        assert request.completion_tokens == len(wanted) + 1
        turns += [Message("assistant", ("two",)), Message("user", (text,))]
    engine.close()


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("<think>\nhm\n</think>\n\ntwo", "<think>\nhm\n</think>\n\ntwo"),
        ("two", "two"),
        ("<think>", "<think>"),
        ("<think>\n\n</think>", ""),
    ],
)
def test_another_beginning_is_told_as_it_is(llama, tokenizer, written, told) -> None:
    engine = engine_of(llama, tokenizer, "qwen3")
    write(engine, written)
    request = engine.submit(FIRST, Sampling(logprobs=0))
    pieces = list(request)
    assert "".join(piece.text for piece in pieces) == told
    assert "".join(one.token for piece in pieces for one in piece.logprobs) == told
    engine.close()


def test_a_chat_goes_on(llama, tokenizer, capsys, monkeypatch) -> None:
    engine = engine_of(llama, tokenizer, "qwen3")
    write(engine, WRITES["qwen3"] + "two")
    talk = Conversation.__new__(Conversation)
    talk.chat, talk.images = Chat(engine), []
    for line in ("one?", "three?", "five?"):
        talk.say(line)
    assert capsys.readouterr().out == "two\n" * 3
    assert len(talk.chat.turns) == 6
    engine.close()


def test_the_api_answers_a_second_turn(llama, tokenizer, serving) -> None:
    engine = engine_of(llama, tokenizer, "qwen3")
    write(engine, WRITES["qwen3"] + "two")
    turns = [("user", "one?"), ("assistant", "<think>\n\n</think>\n\ntwo"), ("user", "three?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    body = json.dumps({"model": "tiny", "messages": messages, "max_tokens": 99}).encode()
    headers = {"content-type": "application/json"}
    with serving(engine) as address:
        url = f"{address}/v1/chat/completions"
        with urllib.request.urlopen(urllib.request.Request(url, body, headers)) as answer:
            content = json.load(answer)["choices"][0]["message"]["content"]
    assert content == "two"
    engine.close()


def test_a_system_message_that_is_left_out_is_told_once(llama, tokenizer, caplog) -> None:
    drops = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
    engine = engine_of(llama, tokenizer, drops + FAMILIES["chatml"])
    turns = [Message("system", ("Be brief.",)), *FIRST]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            engine.answer(turns, Sampling(max_new_tokens=1))
    assert [record.getMessage() for record in caplog.records] == [
        "the chat template leaves a system message out; told once"
    ]
    engine.close()
    engine = engine_of(llama, tokenizer, "gemma")
    with pytest.raises(DataError, match=r"^the tokenizer's chat template refuses the turns system"):
        engine.answer(turns)
    engine.close()


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("thought", ["", "hm"])
def test_a_written_answer_is_read_without_its_thought(tokenizer, name, thought) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = FAMILIES[name].replace("<|im_end|>", "</s>")
    encoder = Encoder(tokenizer)
    answer = f"<think>\n{thought}\n</think>\n\ntwo" if thought else "two"
    trained = encoder.encode(Example((*FIRST, Message("assistant", (answer,)))))
    assert encoder.read_answer(trained.trained_ids[:-1].tolist()) == "two"
    unfinished = trained.trained_ids[: 2 if thought else 0].tolist()
    if name != "glm45":
        opens = name in ("qwen35", "deepseek_r1", "nemotron3")
        expected = "" if opens or not thought else "<t"
        assert encoder.read_answer(unfinished) == expected
