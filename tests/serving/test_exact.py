"""A request's tokens are those it has alone, whoever joins, leaves or was there before."""

from __future__ import annotations

import copy
import random
from contextlib import nullcontext
from dataclasses import dataclass, replace

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.serving.engine import Engine, Request, Sampling
from varifocal.tuners import ImageLoraConfig, MixLoraConfig, MMAConfig

Token = tuple[bytes, float]


@dataclass(frozen=True)
class Asked:
    """A request, before it is one."""

    messages: tuple[Message, ...]
    sampling: Sampling
    adapter: bool


@pytest.fixture
def asked(image) -> list[Asked]:
    """Requests of both modalities, with and without the adapter, greedy and by chance."""
    turns = [
        (("What is a magnet?",),),
        ((image("red"), "And this?"),),
        (("Hm",), ("It is one.",), ("Why is the sky blue, or is it not always?",)),
        (("Hm",), ("It is one.",), (image("blue"), "a", image("green"), "Which?")),
        ((image("green"),),),
    ]
    roles = ("user", "assistant", "user")
    conversations = [
        tuple(Message(role, parts) for role, parts in zip(roles, turn, strict=False))
        for turn in turns
    ]
    made = []
    for index, messages in enumerate(conversations):
        for adapter in (True, False):
            hot = (index + adapter) % 2
            sampling = Sampling(4 + 2 * index, temperature=hot, top_p=0.95, seed=index, logprobs=2)
            made.append(Asked(messages, sampling, adapter))
    return made


def alone(model: nn.Module, encoder: Encoder, one: Asked, load_images) -> list[Token]:
    """Write an answer without batch, cache or folding; the model finds the modality itself."""
    messages = one.messages
    if not one.adapter:
        messages = tuple(Message(m.role, (m.text,)) for m in messages)
    encoded = encoder.encode(Example(messages), with_answer=False)
    images = load_images(encoded.images) if encoded.images else {}
    ids, tokens = encoded.input_ids.tolist(), []
    choose = one.sampling.chooser()
    for _ in range(one.sampling.max_new_tokens):
        logits = next_logits(model, ids, len(encoded), images, one.adapter)
        allowed = logits.clone()
        allowed[:, encoder.image_token_id] = -torch.inf
        token = int(choose(allowed)[0])
        if token == encoder.end_of_turn_id:
            break
        tokens.append((token, float(logits[0].log_softmax(-1)[token])))
        ids.append(token)
    names = encoder.tokenizer.convert_ids_to_tokens
    special = set(encoder.tokenizer.all_special_ids)
    return [
        (names(token).encode() if token in special else bytes([token]), logprob)
        for token, logprob in tokens
    ]


def next_logits(model, ids: list[int], prompt: int, images, adapter: bool) -> Tensor:
    with torch.no_grad():
        if not hasattr(model, "peft_config"):
            return model(input_ids=torch.tensor([ids]), **images).logits[:, -1]
        given = {"input_ids": torch.tensor([ids]), **images}
        given["prompt_mask"] = (torch.arange(len(ids)) < prompt)[None]
        with nullcontext() if adapter else model.disable_adapter():
            return model(**given).logits[:, -1]


def told(request: Request) -> list[Token]:
    return [(one.bytes, one.logprob) for piece in request for one in piece.logprobs]


def check(request: Request, wanted: list[Token]) -> None:
    """All tokens of a request that is done; the first ones of a cancelled one."""
    tokens = told(request)
    if request.finish_reason == "cancelled":
        wanted = wanted[: len(tokens)]
    assert [token for token, _ in tokens] == [token for token, _ in wanted]
    assert [logprob for _, logprob in tokens] == pytest.approx([p for _, p in wanted], abs=1e-9)


@torch.inference_mode()
def drive(engine: Engine, asked: list[Asked], chance: random.Random) -> list[tuple[int, Request]]:
    """Let requests join and leave at random moments; return each with what it was made of."""
    scheduler, made = engine._scheduler, []
    todo = [*range(len(asked))] * 2
    chance.shuffle(todo)
    while todo or scheduler.batches:
        if todo and chance.random() < 0.5:
            which = todo.pop()
            one = asked[which]
            made.append((which, engine._request(one.messages, one.sampling, one.adapter)))
            scheduler.start(made[-1][1])
        if made and chance.random() < 0.1:
            chance.choice(made)[1].cancel()
        scheduler.step()
    return made


def test_batch_mates_joins_and_leaves_change_nothing(seeing, asked, load_images) -> None:
    model, encoder = seeing
    wanted = [alone(model, encoder, one, load_images) for one in asked]
    for seed, (fold, prefixes) in enumerate([(True, 0.5), (False, 0.5), (True, 0.0)]):
        options = {"fold": fold, "prefix_cache_gib": prefixes}
        engine = Engine(copy.deepcopy(model), encoder, load_images, **options)
        assert engine.stats().is_folded == fold
        sizes = watch_batches(engine)
        for which, request in drive(engine, asked, random.Random(seed)):
            assert request.finish_reason in ("stop", "length", "cancelled"), request.error
            check(request, wanted[which])
        assert max(sizes) >= (4 if fold else 3)
        assert (engine.stats().cached_tokens > 0) == (prefixes > 0)
    through_threads(copy.deepcopy(model), encoder, load_images, asked, wanted)


def watch_batches(engine: Engine) -> list[int]:
    sizes: list[int] = []
    engine.model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return sizes


LEAVE_TEXT = {
    "mma": MMAConfig(router_temperature=1.0, text_route="base"),
    "lora": ImageLoraConfig(target_modules=["q_proj", "down_proj"]),
    "mixlora": MixLoraConfig(
        num_factors=6, rank=2, target_modules=["q_proj", "up_proj"], text_route="base"
    ),
}


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("tuner", LEAVE_TEXT)
def test_text_that_is_left_to_the_base_is_its_own_in_any_batch(
    tuner, fold, graft_of, asked, load_images
) -> None:
    model = get_peft_model(graft_of[0], copy.deepcopy(LEAVE_TEXT[tuner]))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.5)
    model, encoder = model.double().eval(), graft_of[1]
    as_base = [
        one if Example(one.messages).images else replace(one, adapter=False) for one in asked
    ]
    wanted = [alone(model, encoder, one, load_images) for one in as_base]
    on, off = wanted[2], alone(model, encoder, replace(as_base[2], adapter=False), load_images)
    assert on != off  # the adapter answers otherwise where there is an image
    engine = Engine(copy.deepcopy(model), encoder, load_images, max_batch=32, fold=fold)
    assert engine.stats().is_folded == (fold and tuner != "mixlora")
    for which, request in drive(engine, asked, random.Random(3)):
        check(request, wanted[which])
    text = asked[0].messages
    greedy = Sampling(8, logprobs=2)
    on, off = (told(engine.submit(text, greedy, adapter=adapter)) for adapter in (True, False))
    assert on == off  # to the last bit
    engine.close()


@torch.inference_mode()
def test_all_routes_share_one_folded_batch(seeing, asked, load_images) -> None:
    engine = Engine(copy.deepcopy(seeing[0]), seeing[1], load_images)
    for one in asked[:4]:
        engine._scheduler.start(engine._request(one.messages, one.sampling, one.adapter))
    (batch,) = engine._scheduler.batches
    routes = [row.request.route for row in batch.rows]
    assert routes == ["base", "base", "image", "text"]


def through_threads(model, encoder, load_images, asked, wanted) -> None:
    engine = Engine(model, encoder, load_images, max_batch=3)
    requests = [engine.submit(one.messages, one.sampling, adapter=one.adapter) for one in asked]
    for tokens, request in zip(wanted, requests, strict=True):
        check(request, tokens)
    engine.close(drain=True)
    stats = engine.stats()
    assert stats.running == stats.waiting == 0
    assert stats.completion_tokens == sum(request.completion_tokens for request in requests)


def test_the_adapters_of_the_lanes_differ(seeing, asked, load_images) -> None:
    """Without this the tests above could not see a row in another's lane."""
    model, encoder = seeing
    on, off = asked[0], asked[1]
    same = Asked(on.messages, off.sampling, adapter=True)
    assert alone(model, encoder, same, load_images) != alone(model, encoder, off, load_images)


def test_a_closed_engine_gives_the_model_back(seeing, asked, load_images) -> None:
    model, encoder = seeing
    wanted = alone(model, encoder, asked[2], load_images)
    engine = Engine(model, encoder, load_images)
    engine.close()
    assert alone(model, encoder, asked[2], load_images) == wanted
    assert all("forward" not in vars(part) for part in model.modules())


def test_logprobs_are_the_models_own(seeing, asked, load_images) -> None:
    model, encoder = seeing
    one = asked[1]
    ids = encoder.encode(Example((Message("user", (one.messages[0].text,)),)), with_answer=False)
    logits = next_logits(model, ids.input_ids.tolist(), len(ids), {}, adapter=False)
    logprobs = logits[0].log_softmax(-1)
    engine = Engine(copy.deepcopy(model), encoder, load_images)
    request = engine.submit(one.messages, one.sampling, adapter=False)
    first = next(token for piece in request for token in piece.logprobs)
    request.cancel()
    best = logprobs.topk(2)
    assert [logprob for _, logprob, _ in first.top] == pytest.approx(best.values.tolist())
    assert [content for _, _, content in first.top] == [
        bytes([token]) for token in best.indices.tolist()
    ]
