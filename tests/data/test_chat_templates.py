"""What is trained, asked and scored with the chat templates of a dozen families.

The oracle renders nothing: it writes down what a model has to write after the generation prompt
of each family, and which earlier answers stand in a longer conversation as they were written.
"""

import copy
import json
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tokenizers import AddedToken

from chat_templates import EOS, FAMILIES
from varifocal.data.encoding.encoder import Encoder
from varifocal.data.encoding.samples import Samples
from varifocal.data.example import Example, Message
from varifocal.data.inspect.scan import Looker
from varifocal.data.mixture import Part, draw_epoch
from varifocal.data.source import open_source
from varifocal.errors import AnswerError, DataError, ModelError
from varifocal.recipe import DataSection, FileSection

_SPECIAL = re.compile(r"<\|\w+\|>|<\|?turn\|?>|<\|?channel\|?>|<(?:start|end)_of_turn>|\[/?INST\]")

_WITHOUT_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What a family's model has to write.

    Attributes:
        answer: for the answer "two"; the same for any other in its place.
        thought: for the answer "two" with the thought "hm"; None where a thought is refused.
        keeps: whether an earlier answer stands in a conversation as it was written.
        frame: what of `answer` belongs to the prompt of options.
    """

    answer: str
    thought: str | None = None
    keeps: bool = True
    frame: str = ""


EMPTY, HM = "<think>\n\n</think>", "<think>\nhm\n</think>\n\ntwo<|im_end|>"
ORACLE = {
    "qwen3": Family(f"{EMPTY}\n\ntwo<|im_end|>", HM, False, EMPTY),
    "qwen35": Family("\n</think>\n\ntwo<|im_end|>", HM[8:], False, "\n</think>"),
    "qwen35_small": Family("two<|im_end|>", HM[8:], False),
    "glm45": Family(
        "\n<think></think>\ntwo</s>", "\n<think>hm</think>\ntwo</s>", True, "\n<think></think>"
    ),
    "gpt_oss": Family(
        "<|channel|>final<|message|>two<|return|>",
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
        "<|channel|>final<|message|>two<|return|>",
        False,
        "<|channel|>final<|message|>",
    ),
    "nemotron3": Family("</think>two<|im_end|>", "hm\n</think>\ntwo<|im_end|>", False, "</think>"),
    "deepseek_r1": Family("\n</think>\n\ntwo</s>", "hm\n</think>\n\ntwo</s>", False, "\n</think>"),
    "gemma4": Family("two<turn|>", keeps=False),
    "llama31": Family("two<|eot_id|>"),
    "gemma": Family("two<end_of_turn>"),
    "gemma3": Family("two<end_of_turn>"),
    "mistral": Family(" two</s>"),
    "mistral_last": Family(" two</s>"),
    "phi3": Family("two<|end|>"),
    "chatml": Family("two<|im_end|>"),
    "smollm2": Family("two<|im_end|>"),
    "smollm3": Family("two<|im_end|>"),
    "command_r": Family("two<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
}
NAMES = list(FAMILIES)


@pytest.fixture(scope="session")
def families(tokenizers):
    """Encoders, one for each family."""
    return {name: Encoder(tokenizer_of(tokenizers["plain"], name)) for name in NAMES}


def tokenizer_of(plain, name):
    tokenizer = copy.deepcopy(plain)
    found = sorted({*_SPECIAL.findall(FAMILIES[name]), *EOS.values()} - {"<|CHATBOT|>"})
    tokens = [AddedToken(token, special=True, normalized=False) for token in found]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.chat_template = FAMILIES[name]
    tokenizer.eos_token = EOS.get(name, "</s>")
    return tokenizer


def talk(*texts, system=None, thought="", **fields):
    """Build a conversation; the user says the first text, and the last answer has the thought."""
    messages = [] if system is None else [Message("system", (system,))]
    for number, text in enumerate(texts):
        messages.append(Message("assistant" if number % 2 else "user", (text,)))
    messages[-1] = replace(messages[-1], thought=thought)
    return Example(tuple(messages), id="7", source="book.json", **fields)


def runs(encoder, encoded):
    """Return the text of each trained stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], encoded.prompt_mask, [True]])))
    pairs = zip(edges[::2], edges[1::2], strict=True)
    return [encoder.tokenizer.decode(encoded.input_ids[a:b]) for a, b in pairs]


def prompt_of(encoder, example):
    return encoder.encode(example, with_answer=False).input_ids.tolist()


def test_every_family_has_an_oracle():
    assert set(ORACLE) == set(FAMILIES)
    assert len(FAMILIES) > 12


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_is_trained_as_it_has_to_be_written(families, name):
    encoder, example = families[name], talk("one?", "two")
    encoded = encoder.encode(example)
    assert runs(encoder, encoded) == [ORACLE[name].answer]
    asked = prompt_of(encoder, example)
    assert encoded.input_ids[: len(asked)].tolist() == asked
    assert encoded.prompt_mask[: len(asked)].all()
    rendered = encoder.tokenizer.apply_chat_template(
        [{"role": "user", "content": "one?"}], tokenize=False, add_generation_prompt=True
    )
    assert encoder.tokenizer.decode(asked) == rendered
    assert encoded.rewritten_answers == 0


@pytest.mark.parametrize("name", NAMES)
def test_earlier_answers_are_trained_where_they_stand_as_they_were_written(families, name):
    encoder, example = families[name], talk("one?", "two", "one?", "two", "one?", "two")
    encoded, family = encoder.encode(example), ORACLE[name]
    assert runs(encoder, encoded) == [family.answer] * (3 if family.keeps else 1)
    assert encoded.rewritten_answers == (0 if family.keeps else 2)
    asked = prompt_of(encoder, example)
    assert encoded.input_ids[: len(asked)].tolist() == asked
    last = Encoder(encoder.tokenizer, train_on="last_answer").encode(example)
    assert runs(encoder, last) == [family.answer]
    assert last.rewritten_answers == 0


@pytest.mark.parametrize("how", ["content", "key"])
@pytest.mark.parametrize("name", NAMES)
def test_an_answers_own_thought_is_trained_or_the_record_is_named(families, name, how):
    encoder, family = families[name], ORACLE[name]
    if how == "key":
        example = talk("one?", "two", thought="hm")
    else:
        example = talk("one?", "<think>\nhm\n</think>\n\ntwo")
        if family.thought is None or name == "gpt_oss":  # knows no tags: they are the words
            answer = "<think>\nhm\n</think>\n\ntwo".join(family.answer.split("two"))
            assert runs(encoder, encoder.encode(example)) == [answer]
            return
    if family.thought is None:
        with pytest.raises(DataError, match=r"^book.json: record '7': .*leaves the thought"):
            encoder.encode(example)
        return
    encoded = encoder.encode(example)
    expected = family.thought
    if (name, how) == ("nemotron3", "content"):  # writes contents with a thought as they are
        expected = "hm\n</think>\n\ntwo<|im_end|>"
    assert runs(encoder, encoded) == [expected]
    if name != "qwen35_small":  # its prompt has closed an empty thought
        asked = prompt_of(encoder, example)
        assert encoded.input_ids[: len(asked)].tolist() == asked
    assert encoder.tokenizer.decode(encoded.input_ids).count("hm") == 1


@pytest.mark.parametrize("name", NAMES)
def test_options_are_scored_behind_what_every_answer_begins_with(families, name):
    encoder, family = families[name], ORACLE[name]
    example = talk("one?", "two", choices=("two", "three"), answer_index=0)
    prompt, options = encoder.encode_options(example)
    asked = prompt_of(encoder, example)
    decode = encoder.tokenizer.decode
    assert prompt.input_ids[: len(asked)].tolist() == asked
    assert decode(prompt.input_ids[len(asked) :]) == family.frame
    assert prompt.prompt_mask.all()
    written = [family.answer.replace("two", option) for option in ("two", "three")]
    assert [family.frame + decode(option) for option in options] == written
    trained = encoder.encode(example).input_ids
    whole = [*prompt.input_ids, *options[0]]
    assert trained[: len(whole)].tolist() == whole


@pytest.mark.parametrize("name", NAMES)
def test_a_second_turn_can_be_asked_whatever_was_written_before(families, name):
    encoder = families[name]
    for before in ("two", "<think>\n\n</think>\n\ntwo", "\n</think>\n\ntwo"):
        asked = encoder.tokenizer.decode(prompt_of(encoder, talk("one?", before, "three?")))
        assert "two" in asked
        assert "three?" in asked
        assert asked.endswith(encoder.tokenizer.decode(prompt_of(encoder, talk("a")))[-6:])


@pytest.mark.parametrize("name", NAMES)
def test_a_system_message_is_read_or_told_or_refused(families, name):
    encoder, example = families[name], talk("one?", "two", system="Be brief.")
    if name == "gemma":
        with pytest.raises(DataError, match=r"^book.json: record '7': .*System role not support"):
            encoder.encode(example)
        with pytest.raises(DataError, match=r"^the tokenizer's chat template refuses the turns"):
            encoder.encode(replace(example, id="", source=""), with_answer=False)
        result = encoder.encode_all([example, talk("one?", "two")], on_bad_record="skip")
        assert len(result.samples) == len(result.skipped) == 1
        return
    encoded = encoder.encode(example)
    assert "Be brief." in encoder.tokenizer.decode(encoded.input_ids)
    assert not encoded.lost_system
    assert runs(encoder, encoded) == [ORACLE[name].answer]


def test_a_system_message_in_the_last_question_leaves_earlier_answers_prompt(families):
    encoder = families["mistral_last"]
    encoded = encoder.encode(talk("one?", "two", "three?", "four", system="Be brief."))
    assert runs(encoder, encoded) == [" four</s>"]
    assert encoded.rewritten_answers == 1


def test_a_mode_that_the_system_message_sets_holds_for_all_answers(families):
    encoder = families["smollm3"]
    example = talk("one?", "two", "three?", "four", system="/no_think")
    encoded = encoder.encode(example)
    assert runs(encoder, encoded) == ["two<|im_end|>", "four<|im_end|>"]
    assert not encoded.lost_system


def test_a_dropped_system_message_is_told(families, caplog):
    tokenizer = copy.deepcopy(families["chatml"].tokenizer)
    tokenizer.chat_template = _WITHOUT_SYSTEM + FAMILIES["chatml"]
    encoder = Encoder(tokenizer)
    assert encoder.encode(talk("one?", "two", system="Be brief.")).lost_system
    assert encoder.encode(talk("one?", system="Be\n brief."), with_answer=False).lost_system
    assert not encoder.encode(talk("one?", "two")).lost_system
    assert not caplog.records
    assert Encoder(tokenizer, system_prompt="Be brief.").encode(talk("one?", "two")).lost_system
    assert [record.getMessage() for record in caplog.records] == [
        "data.system_prompt is not in what the model reads: the chat template leaves it out"
    ]


def test_a_system_prompt_that_the_template_refuses_is_refused_at_once(families):
    with pytest.raises(ModelError, match=r"data.system_prompt .*System role not supported"):
        Encoder(families["gemma"].tokenizer, system_prompt="Be brief.")
    assert Encoder(families["gemma"].tokenizer, system_prompt="").system is None


def marked(*trained):
    """Build a conversation with an answer a mark, the last answer 0."""
    messages = []
    for number, mark in enumerate(trained):
        answer = Message("assistant", (f"a{number}",), is_trained=mark)
        messages += [Message("user", (f"q{number}",)), answer]
    return Example(tuple(messages), id="7", source="book.json")


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_a_marked_answer_is_not_trained(families, name):
    encoder = families[name]
    end = (EMPTY + "\n\n" if name == "qwen3" else "", "<|im_end|>")
    encoded = encoder.encode(marked(False, True))
    assert runs(encoder, encoded) == ["a1".join(end)]
    assert encoded.rewritten_answers == 0
    assert "a0" in encoder.tokenizer.decode(encoded.input_ids)
    # What follows the last answer to be trained is left out, so that it is the last.
    encoded = encoder.encode(marked(True, False))
    assert runs(encoder, encoded) == ["a0".join(end)]
    assert "q1" not in encoder.tokenizer.decode(encoded.input_ids)
    with pytest.raises(AnswerError, match="record '7': every answer is marked not to be trained"):
        encoder.encode(marked(False, False))
    assert encoder.encode(marked(False, False), with_answer=False).prompt_mask.all()


def test_marks_and_training_on_all_contradict(families):
    everything = Encoder(families["chatml"].tokenizer, train_on="all")
    with pytest.raises(DataError, match=r"marked not to be trained, but train_on is 'all'"):
        everything.encode(marked(False, True))
    last = Encoder(families["chatml"].tokenizer, train_on="last_answer")
    assert runs(last, last.encode(marked(True, False))) == ["a0<|im_end|>"]


def test_a_template_that_fails_as_a_program_is_a_sentence(families):
    tokenizer = copy.deepcopy(families["chatml"].tokenizer)
    tokenizer.chat_template = "{{ messages[0].content.index('a') }}" + tokenizer.chat_template
    with pytest.raises(
        DataError, match=r"record '7': .*refuses the turns user: substring not found"
    ):
        Encoder(tokenizer).encode(talk("one?", "two"))


def test_a_template_that_rewrites_the_question_is_refused(families):
    tokenizer = copy.deepcopy(families["chatml"].tokenizer)
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(DataError, match="writes the question in another way once it is answered"):
        Encoder(tokenizer).encode(talk("one?", "two"))


def test_what_is_told_is_counted_once_and_remembered(families, tmp_path):
    path = tmp_path / "a.jsonl"
    turns = [("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c")]
    messages = [{"role": role, "content": text} for role, text in [*turns, ("assistant", "d")]]
    path.write_text("\n".join([json.dumps({"messages": messages})] * 3))
    source = open_source(FileSection(path=str(path)))
    tokenizer = copy.deepcopy(families["qwen3"].tokenizer)
    tokenizer.chat_template = _WITHOUT_SYSTEM + FAMILIES["qwen3"]
    for _ in range(2):  # encoded, then read from the table
        drawn = draw_epoch([Part("a", 3, epochs=1)], DataSection().mixture, 0)
        samples = Samples([source], drawn, Encoder(tokenizer), tmp_path / "cache")
        list(samples.usable(range(3)))
        list(samples.usable(range(3)))
        tally = samples.tally
        assert (tally.num_rewritten, tally.num_rewritten_answers, tally.num_lost_system) == (3,) * 3
        assert tally.notes() == [
            "3 earlier answers of 3 conversations are prompt and not trained: the chat template "
            "writes them in another way once the conversation goes on",
            "the chat template leaves out the system message of 3 samples",
        ]
    looks = [Looker(Encoder(tokenizer)).scan(source.example(number)) for number in range(3)]
    assert all(look.is_usable for look in looks)
    assert [kind for kind, _ in looks[0].findings] == ["rewritten", "lost_system"]
    assert looks[2].findings[0][1].endswith("line 3': 1 of its answers are prompt alone")
