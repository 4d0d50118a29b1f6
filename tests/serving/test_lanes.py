"""Prefixes of earlier turns, LoRA's lanes, MixLoRA's own routing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.example import Example, Message
from varifocal.serving import adapter_routes
from varifocal.serving.adapter_routes import multiply
from varifocal.serving.engine import Engine, Request, Sampling
from varifocal.serving.kv_cache import PrefixCache, Seen
from varifocal.tuners import MixLoraConfig

FIRST = (Message("user", ("What is a magnet?",)),)
SHORT = Sampling(10, logprobs=0)


@pytest.mark.parametrize("rows", [(1, 1), (2, 1), (8, 1), (9, 1), (3, 2)])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 9, dtype=torch.float64)])
def test_the_products_of_few_rows_are_those_of_linear(rows, bias) -> None:
    torch.manual_seed(0)
    x = torch.randn(*rows, 2, 5, dtype=torch.float64)[..., 0, :]
    weight = torch.randn(9, 5, dtype=torch.float64)
    product = multiply(x, weight, bias)
    assert product.is_contiguous()
    torch.testing.assert_close(product, nn.functional.linear(x, weight, bias), atol=1e-14, rtol=0)


def test_every_plain_linear_of_an_engine_multiplies_few_rows_so(graft_of, monkeypatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(
        adapter_routes,
        "multiply",
        lambda x, *rest: seen.append(1) or nn.functional.linear(x, *rest),
    )
    engine = Engine(*graft_of[:2])
    engine.model(input_ids=torch.ones(2, 1, dtype=torch.long))
    decoder = [*engine.model.get_decoder().modules(), engine.model.get_output_embeddings()]
    assert len(seen) == sum(isinstance(part, nn.Linear) for part in decoder) > 7


def told(request: Request) -> list[tuple[bytes, float]]:
    return [(one.bytes, round(one.logprob, 9)) for p in request for one in p.logprobs]


def alone(model, encoder: Encoder, messages, load=None) -> list[int]:
    """Write greedily without cache or batch; every step reads prompt and answer anew."""
    encoded = encoder.encode(Example(tuple(messages)), with_answer=False)
    images = load(encoded.images) if encoded.images else {}
    ids = encoded.input_ids.tolist()
    for _ in range(SHORT.max_new_tokens):
        prompt = (torch.arange(len(ids)) < len(encoded))[None]
        marks = {"prompt_mask": prompt} if hasattr(model, "peft_config") else {}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), **images, **marks).logits[0, -1]
        if encoder.image_token_id is not None:
            logits[encoder.image_token_id] = -torch.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == encoder.end_of_turn_id:
            return ids[len(encoded) : -1]
    return ids[len(encoded) :]


def written(engine: Engine, messages, *, adapter: bool = True) -> tuple[list[int], Request]:
    request = engine.submit(messages, SHORT, adapter=adapter)
    special = {t.encode(): i for t, i in engine.encoder.tokenizer.get_added_vocab().items()}
    return [special.get(one, one[0] if one else -1) for one, _ in told(request)], request


def turns(image=None) -> tuple[Message, ...]:
    asked = (image, "And a compass?") if image else ("And a compass?",)
    return (*FIRST, Message("assistant", ("It pulls iron.",)), Message("user", asked))


def test_a_second_turn_goes_on_from_the_first(seeing, load_images) -> None:
    model, encoder = seeing
    engine = Engine(copy.deepcopy(model), encoder, load_images)
    _, first = written(engine, FIRST)
    assert first.cached_tokens == 0
    answer, second = written(engine, turns())
    assert second.cached_tokens >= first.prompt_tokens - 2
    assert answer == alone(model, encoder, turns())
    again, third = written(engine, turns())
    assert third.cached_tokens == third.prompt_tokens - 1
    assert again == answer
    assert engine.stats().cached_tokens == second.cached_tokens + third.cached_tokens


def test_no_prefix_crosses_lanes_or_images(seeing, load_images, image) -> None:
    model, encoder = seeing
    engine = Engine(copy.deepcopy(model), encoder, load_images)
    written(engine, turns())
    assert written(engine, turns(), adapter=False)[1].cached_tokens == 0
    answer, request = written(engine, turns(image("red")))
    assert request.cached_tokens == 0  # the image lane has read nothing yet
    assert answer == alone(model, encoder, turns(image("red")), load_images)
    answer, request = written(engine, turns(image("blue")))
    ids = request.encoded.input_ids.tolist()
    assert request.cached_tokens == ids.index(encoder.image_token_id)
    assert answer == alone(model, encoder, turns(image("blue")), load_images)
    passes = engine.model.get_base_model().vision_passes
    answer, request = written(engine, turns(image("red")))
    assert request.cached_tokens == request.prompt_tokens - 1
    assert engine.model.get_base_model().vision_passes == passes
    assert answer == alone(model, encoder, turns(image("red")), load_images)


def seen(ids: str, *images: tuple[int, str], lane: str = "text", client: str = "") -> Seen:
    return Seen((lane, client), np.frombuffer(ids.encode(), np.uint8).astype(np.int64), images, 3)


@pytest.mark.parametrize(
    ("wanted", "known", "shared"),
    [
        (seen("abcd"), seen("abxd"), 2),
        (seen("abcd"), seen("abcdef"), 4),
        (seen("abcd"), seen("abcd", lane="base"), 0),
        (seen("a***b", (1, "red")), seen("a***b", (1, "red")), 5),
        (seen("a***b", (1, "red")), seen("a***b", (1, "blue")), 1),
        (seen("***+++"), seen("***+++"), 6),
        (seen("a******b", (1, "r"), (4, "g")), seen("a******b", (1, "r"), (4, "b")), 4),
        (seen("a***b", (1, "red")), seen("a**", (1, "red")), 1),
    ],
)
def test_what_prompts_share(wanted: Seen, known: Seen, shared: int) -> None:
    assert wanted.shared_with(known) == shared


def keys(length: int):
    return [(torch.zeros(1, 1, length, 2), torch.zeros(1, 1, length, 2))]


def test_prefixes_stay_within_their_bytes_and_the_one_used_longest_ago_goes() -> None:
    cache = PrefixCache(max_bytes=16 * 10)
    cache.put(seen("aaaa"), keys(4))
    cache.put(seen("bbbb"), keys(4))
    assert cache.num_bytes == 16 * 8
    assert cache.find(seen("aaax")).length == 3
    cache.put(seen("cccc"), keys(4))
    assert [cache.find(seen(4 * c + "?")).length for c in "abc"] == [4, 0, 4]
    cache.put(seen("aaaaaa"), keys(6))  # takes the place of what it continues
    assert (cache.num_bytes, cache.find(seen("cccc?")).length) == (16 * 10, 4)
    cache.put(seen("d" * 11), keys(11))
    assert cache.num_bytes == 16 * 10
    found = cache.find(seen("aaaaaa"))
    assert (found.length, found.keys[0][0].shape[2]) == (5, 5)


def adapted(llama, config) -> nn.Module:
    torch.manual_seed(4)
    model = get_peft_model(llama.double(), config).double().eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name and "router" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("fold", [True, False])
def test_a_lora_is_a_lane(llama, tokenizer, fold: bool) -> None:
    encoder = Encoder(tokenizer)
    bare = copy.deepcopy(llama).double()
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model = adapted(llama, config)
    engine = Engine(copy.deepcopy(model), encoder, fold=fold)
    assert (engine.stats().is_folded, engine.stats().unfolded_reason) == (
        (True, "") if fold else (False, "folding was not asked for")
    )
    with_it, without = alone(model, encoder, turns()), alone(bare, encoder, turns())
    assert with_it != without
    both = [engine.submit(turns(), SHORT, adapter=adapter) for adapter in (True, False)]
    assert [told(one) for one in both] == [
        told(engine.submit(turns(), SHORT, adapter=adapter)) for adapter in (True, False)
    ]
    assert written(engine, turns())[0] == with_it
    assert written(engine, turns(), adapter=False)[0] == without


def test_mixlora_keeps_each_prompts_routing(llama, tokenizer) -> None:
    encoder = Encoder(tokenizer)
    bare = copy.deepcopy(llama).double()
    config = MixLoraConfig(num_factors=8, rank=2, target_modules=["q_proj", "up_proj"])
    model = adapted(llama, config)
    engine = Engine(copy.deepcopy(model), encoder)
    assert (
        engine.stats().unfolded_reason
        == "its factors or experts are chosen anew by prompt or token"
    )
    asked = [FIRST, turns(), (Message("user", ("Hm",)),)]
    requests = [engine.submit(messages, SHORT) for messages in asked]
    off = engine.submit(FIRST, SHORT, adapter=False)
    wanted = [alone(model, encoder, messages) for messages in asked]
    assert len({tuple(tokens) for tokens in wanted}) == 3
    for tokens, request, messages in zip(wanted, requests, asked, strict=True):
        batched = told(request)
        assert written(engine, messages)[0] == tokens
        assert batched == told(engine.submit(messages, SHORT))
        assert request.cached_tokens == 0
    assert told(off) == told(engine.submit(FIRST, SHORT, adapter=False))
    assert written(engine, FIRST, adapter=False)[0] == alone(bare, encoder, FIRST)
