"""Streaming: the text is generate's, whole characters only, and it can be stopped."""

from __future__ import annotations

import copy
import io

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import CLIPVisionConfig, CLIPVisionModel

from varifocal.data.encode import Encoder
from varifocal.data.example import Example, Image, Message
from varifocal.errors import DataError
from varifocal.models.connector import PatchMLP
from varifocal.models.grafted import graft
from varifocal.models.vision import TransformersTower
from varifocal.serving.engine import Engine, Sampling, TextStream
from varifocal.tuners import MMAConfig

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
        ({"temperature": -1.0}, "temperature must be at least 0, not -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
    ],
)
def test_impossible_sampling_is_refused(settings_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**settings_)


@pytest.mark.parametrize("text", ["a", "ä", "Grüße 漢字 🧲🧭!", "  two  blanks", "e\u0301"])
def test_characters_are_never_split(tokenizer, text: str) -> None:
    stream = TextStream(tokenizer)
    pieces = [stream.push(token) for token in tokenizer(text).input_ids]
    assert [piece for piece in pieces if piece] == list(text)
    assert stream.flush() == ""


@settings(deadline=None)
@given(st.binary(max_size=30))
def test_any_bytes_give_what_decoding_them_at_once_gives(tokenizer, data: bytes) -> None:
    stream = TextStream(tokenizer)
    text = "".join(stream.push(byte) for byte in data) + stream.flush()
    assert text == data.decode("utf-8", errors="replace") == tokenizer.decode(list(data))


def test_a_long_answer_is_not_decoded_anew_for_every_token(tokenizer, monkeypatch) -> None:
    longest = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, **rest: (longest.append(len(ids)), decode(ids, **rest))[1]
    )
    stream = TextStream(tokenizer)
    assert "".join(stream.push(ord("a")) for _ in range(50)) == "a" * 50
    assert max(longest) <= 2


def test_half_a_character_at_the_end_is_not_lost(tokenizer) -> None:
    stream = TextStream(tokenizer)
    assert [stream.push(byte) for byte in "ab🧲".encode()[:4]] == ["a", "b", "", ""]
    assert stream.flush() == "\N{REPLACEMENT CHARACTER}"


@pytest.fixture
def seeing(llama, tokenizer) -> tuple[torch.nn.Module, Encoder]:
    """A graft with MMA whose adapters and router do something, in float64."""
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        image_size=8, patch_size=4,
    )  # fmt: skip
    tower = TransformersTower(CLIPVisionModel(config))
    connector = PatchMLP(16, llama.config.hidden_size, 8, tower.grid)
    encoder = Encoder(tokenizer, "<|image|>", tokens_per_image=connector.tokens_per_image)
    assert encoder.image_token_id is not None
    model = graft(llama.double(), tower.double(), connector.double(), encoder.image_token_id)
    model = get_peft_model(model, MMAConfig(router_temperature=1.0))
    for name, parameter in model.named_parameters():
        if "mma_" in name or "modality_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.double().eval(), encoder


def load_images(images) -> dict[str, torch.Tensor]:
    pixels = [np.asarray(image.open().resize((8, 8)), np.float64) / 255 for image in images]
    return {"pixel_values": torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)}


def picture(colour: str) -> Image:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return Image(data=buffer.getvalue())


def written_alone(model, encoder: Encoder, messages, max_new_tokens: int) -> str:
    """Greedy decoding without a cache or folding; the model finds the row's modality itself."""
    encoded = encoder.encode(Example(tuple(messages)), with_answer=False)
    images = load_images(encoded.images) if encoded.images else {}
    ids = encoded.input_ids.tolist()
    for _ in range(max_new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), **images).logits
        token = int(logits[0, -1].argmax())
        if token == encoder.end_of_turn_id:
            break
        ids.append(token)
    return encoder.tokenizer.decode(ids[len(encoded) :], skip_special_tokens=True)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is dep:FutureWarning")
def test_text_and_pictures_take_turns(seeing) -> None:
    engine = Engine(copy.deepcopy(seeing[0]), seeing[1], load_images)
    messages = [Message("user", ("What is a magnet?",))]
    answers = []
    for turn in ((picture("red"), "And this?"), (picture("blue"), picture("green"), "These?")):
        text = engine.answer(messages, Sampling(max_new_tokens=12))
        assert text == written_alone(*seeing, messages, 12)
        answers.append(text)
        messages += [Message("assistant", (text or "?",)), Message("user", turn)]
    answers.append(engine.answer(messages, Sampling(max_new_tokens=12)))
    assert answers[-1] == written_alone(*seeing, messages, 12)
    messages[-1] = Message("user", (picture("green"), picture("blue"), "These?"))
    assert engine.answer(messages, Sampling(max_new_tokens=12)) != answers[-1]


def test_a_picture_for_a_model_without_eyes_is_refused_at_once(engine: Engine) -> None:
    with pytest.raises(DataError, match="no vision tower"):
        engine.stream([Message("user", (picture("red"), "What?"))])
