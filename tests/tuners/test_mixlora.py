"""What is MixLoRA's own: settings, places, counts, turns and caches, records, routed LoRA files.

Dimensions: B rows, T tokens, E factors, r chosen, G routing groups.
"""

import copy
import importlib.util
import json
import math

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from torch import nn

from varifocal.models import build_connector, build_tower, graft
from varifocal.tuners import (
    MixLoraConfig,
    MixLoraLayer,
    balance_loss,
    factor_load,
    record_routing,
    route,
    save_routed,
)
from varifocal.tuners.mixlora.router import FactorChoice, Router, balance_term

SMALL = {"num_factors": 6, "rank": 2, "lora_alpha": 2.0, "dropout": 0.0}


@pytest.fixture
def awake(tiny):
    """Build a tiny model with an adapter that is off its start, in evaluation mode."""

    def build(name: str = "llama", **settings) -> PeftModel:
        return awaken(get_peft_model(tiny(name), MixLoraConfig(**SMALL | settings)))

    return build


def awaken(model: PeftModel) -> PeftModel:
    torch.manual_seed(3)
    for name, tensor in model.state_dict().items():
        if ".mixlora_" in name:
            nn.init.normal_(tensor, std=0.5)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module, **inputs):
    return model(**inputs).logits


def layers(model: nn.Module) -> list[MixLoraLayer]:
    return [layer for layer in model.modules() if isinstance(layer, MixLoraLayer)]


def ids(rows: int = 2, tokens: int = 9) -> torch.Tensor:
    return torch.randint(3, 60, (rows, tokens), generator=torch.Generator().manual_seed(7))


def marks(*lengths: int, rows: int = 2) -> torch.Tensor:
    """A prompt mask [rows, T] of turns: prompt, answer, prompt, answer, ..."""
    mask = [i % 2 == 0 for i, n in enumerate(lengths) for _ in range(n)]
    return torch.tensor(mask).expand(rows, -1)


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 7}, "rank must lie between 1 and num_factors=6; got 7"),
        ({"rank": 0}, "rank must lie between 1 and num_factors=6; got 0"),
        ({"rank": 1}, "selection='weighted' needs a rank of at least 2.*got rank=1"),
        ({"selection": "soft"}, "selection must be one of hard, weighted.*; got 'soft'"),
        ({"routing_scope": "all"}, "routing_scope must be one of prompt, sequence; got 'all'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
        ({"balance": -1.0}, "balance must be 0 or more; got -1.0"),
        ({"balance": 1.0, "selection": "hard"}, "balance=1.0 needs routers that learn"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        MixLoraConfig(**SMALL | settings)


def test_settings_survive_the_disk(tmp_path):
    config = MixLoraConfig(num_factors=32, rank=8, selection="hard", conditional=False)
    config.save_pretrained(str(tmp_path))
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "MIXLORA"
    assert MixLoraConfig.from_pretrained(str(tmp_path)) == config
    assert config.scaling == 2 * 32 / 8


# Places and counts


def test_neither_tower_nor_connector_is_adapted_unless_asked(awake, tiny):
    places = [layer.name for layer in layers(awake("llava"))]
    assert len(places) == 14
    assert all(place.startswith("model.language_model.layers.") for place in places)
    model = awake("llava", target_modules=["linear_1", "down_proj"])
    assert [layer.in_decoder for layer in layers(model)] == [False, True, True]


def test_a_grafted_model_is_adapted_in_its_language_model_and_routed_by_its_images(tiny):
    tower = build_tower(tiny("clip").float())
    sizes = {"type": "patch_mlp", "hidden_dim": 8, "num_tokens": 4, "num_global_tokens": 1}
    connector = build_connector(sizes, tower, 16, seed=1)
    base = graft(tiny("llama").float(), tower, connector, 61)
    model = awaken(get_peft_model(base, MixLoraConfig(**SMALL)))
    assert len(layers(model)) == 14
    assert all(layer.name.startswith("language_model.model.layers.") for layer in layers(model))
    tokens = ids(rows=1)
    tokens[0, 1 : 1 + connector.tokens_per_image] = 61
    inputs = {"input_ids": tokens, "prompt_mask": marks(7, 2, rows=1)}
    inputs["pixel_values"] = torch.randn(1, 3, 8, 8)
    expected = logits(model, **inputs)
    cache = hf.DynamicCache()
    prompt = {"input_ids": tokens[:, :7], "pixel_values": inputs["pixel_values"]}
    found = [logits(model, **prompt, past_key_values=cache)]
    found.append(logits(model, input_ids=tokens[:, 7:], past_key_values=cache))
    torch.testing.assert_close(torch.cat(found, dim=1), expected, rtol=0, atol=1e-5)
    with record_routing(model) as records:
        logits(model, **inputs)
        logits(model, **inputs | {"pixel_values": torch.randn(1, 3, 8, 8) * 5})
    assert any(
        not torch.equal(one.scores_a, other.scores_a)
        for one, other in zip(records[:14], records[14:], strict=True)
    )


def test_what_sees_no_prompt_is_refused(tiny):
    for name, message in (("lm_head", "is the output head"), ("embed_tokens", "is no linear")):
        with pytest.raises(ValueError, match=message):
            get_peft_model(tiny("llama"), MixLoraConfig(**SMALL, target_modules=[name]))


def test_inputs_without_rows_are_refused():
    model = get_peft_model(
        nn.Sequential(nn.Linear(4, 4)), MixLoraConfig(**SMALL, target_modules=["0"])
    )
    with pytest.raises(ValueError, match=r"needs inputs \[rows, tokens, width\]; got \[3, 4\]"):
        model(torch.randn(3, 4))


LLAMA_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
INPUTS, ENDS = 4 * 4096 + 2 * 4096 + 11008, 4 * 8192 + 2 * 15104 + 15104  # of a block's linears


@pytest.mark.parametrize(
    ("num_factors", "rank", "conditional", "pools", "routers"),
    [
        (16, 4, True, 39_976_960, 109_314_048),
        (32, 8, True, 79_953_920, 364_380_160),
        (32, 2, False, 79_953_920, 72_876_032),
    ],
)
def test_counts_of_llama_7b_without_weights(num_factors, rank, conditional, pools, routers):
    config = MixLoraConfig(num_factors=num_factors, rank=rank, conditional=conditional)
    with torch.device("meta"):
        model = get_peft_model(hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_7B)), config)
    counts = {"pools": 0, "routers": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["routers" if "mixlora_router" in name else "pools"] += parameter.numel()
    assert counts == {"pools": pools, "routers": routers}
    assert pools == 32 * num_factors * ENDS
    assert routers == 32 * num_factors * INPUTS * (2 + (rank if conditional else 0))


# Selection


def test_straight_through_is_hard_forward_and_weighted_backward(awake):
    """In one linear under a linear loss the gradient of a weight does not depend on the weights."""

    def run(selection: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        config = MixLoraConfig(**SMALL, selection=selection, target_modules=["0"])
        torch.manual_seed(0)
        model = awaken(get_peft_model(nn.Sequential(nn.Linear(5, 7)).double(), config))
        x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)).double()
        y = model(x)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        router = layers(model)[0].mixlora_router["default"]
        return y, {name: p.grad for name, p in router.named_parameters()}

    hard, none = run("hard")
    weighted, expected = run("weighted")
    through, found = run("straight_through")
    assert torch.equal(through, hard)
    assert (weighted - hard).abs().max() > 1e-3
    assert not none
    assert set(found) == {"independent_a", "independent_b", "conditional"}
    for name in found:
        assert expected[name].abs().max() > 1e-3
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-12)


def test_equal_scores_weigh_one(awake):
    model = awake()
    plain = awake(selection="hard")
    for one in (model, plain):
        for name, tensor in one.state_dict().items():
            if "mixlora_router" in name:
                tensor.zero_()
    inputs = {"input_ids": ids()}
    torch.testing.assert_close(logits(model, **inputs), logits(plain, **inputs))


def test_a_draw_is_fair_and_belongs_to_an_instance(awake):
    model = awake(selection="random")
    torch.manual_seed(0)
    with record_routing(model) as records:
        logits(model, input_ids=ids(rows=64))
    assert len(records) == 14
    load_a, load_b = factor_load(records[:1], 6)[records[0].layer]
    for load in (load_a, load_b):
        assert load.shares.min() > 0.08
        assert load.sharpness is None
    drawn = records[0].factors_a
    assert all(len(set(row.tolist())) == 2 for row in drawn)
    assert not torch.equal(drawn, records[1].factors_a)


def test_dropout_acts_in_training_alone(awake):
    model, inputs = awake(dropout=0.5), {"input_ids": ids()}
    expected = logits(model, **inputs)
    assert torch.equal(logits(model, **inputs), expected)
    assert not torch.equal(logits(model.train(), **inputs), expected)


def test_routing_is_computed_in_float32_at_least():
    router = Router(8, MixLoraConfig(**SMALL)).bfloat16()
    h, pool = torch.randn(1, 3, 8).bfloat16(), torch.randn(6, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        choice = router(h, pool, 2)
    exact = router.double()(h.double(), pool.double(), 2)
    assert choice.scores_b.dtype == torch.float32
    torch.testing.assert_close(choice.scores_b.double(), exact.scores_b, rtol=0, atol=1e-6)


def test_bfloat16_with_the_same_choices_stays_near_float64(awake, monkeypatch):
    model, chosen = awake(lora_alpha=0.5), []
    routed = Router.forward

    def listening(self, h, pool, rank):
        chosen.append(routed(self, h, pool, rank))
        return chosen[-1]

    monkeypatch.setattr(Router, "forward", listening)
    exact = logits(model, input_ids=ids())
    replay = iter(chosen)
    monkeypatch.setattr(Router, "forward", lambda self, h, pool, rank: next(replay))
    rough = copy.deepcopy(model).bfloat16()
    found = logits(rough, input_ids=ids()).double()
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_autocast_keeps_the_base_models_bits_at_the_start(tiny):
    base = tiny("llama").float()
    with torch.autocast("cpu", torch.bfloat16):
        before = logits(base, input_ids=ids())
        model = get_peft_model(base, MixLoraConfig(**SMALL))
        assert torch.equal(logits(model, input_ids=ids()), before)
        model(input_ids=ids()).logits.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


# Turns, packing, caches


@pytest.mark.parametrize("selection", ["weighted", "hard"])
@pytest.mark.parametrize("left", [0, 2], ids=["", "left padding"])
def test_a_conversation_behind_a_cache_equals_the_whole(awake, selection, left):
    model, prompt = awake(selection=selection), marks(3, 3, 2, 2, 1, 1)
    tokens = ids(tokens=12)
    expected = logits(model, input_ids=tokens, prompt_mask=prompt)
    tokens = nn.functional.pad(tokens, (left, 0))
    mask = nn.functional.pad(torch.ones(2, 12, dtype=torch.long), (left, 0))
    prompt = nn.functional.pad(prompt, (left, 0))
    cache = hf.DynamicCache()
    found, start = [], 0
    for stop in (3, 4, 6, 9, 10, 12):  # a prompt, an answer in two parts, turn and answer, ...
        end = stop + left
        with torch.no_grad():
            step = model(
                input_ids=tokens[:, start:end],
                attention_mask=mask[:, :end],
                position_ids=(torch.arange(start, end) - left).clamp(min=0).expand(2, -1),
                prompt_mask=prompt[:, start:end],
                past_key_values=cache,
            )
        found.append(step.logits)
        start = end
    found = torch.cat(found, dim=1)[:, left:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_an_edit_moves_its_own_turn_and_later_ones_alone(awake):
    model, prompt = awake(), marks(3, 2, 2, 2)
    tokens = ids()
    expected = logits(model, input_ids=tokens, prompt_mask=prompt)
    for place, still in ((4, 4), (6, 5), (8, 8)):  # an answer, a later prompt's end, the last token
        edited = tokens.clone()
        edited[:, place] = (edited[:, place] + 1) % 50 + 3
        found = logits(model, input_ids=edited, prompt_mask=prompt)
        torch.testing.assert_close(found[:, :still], expected[:, :still], rtol=0, atol=1e-12)
        assert (found[:, place:] - expected[:, place:]).abs().max() > 1e-3


def test_packed_conversations_equal_each_alone(awake):
    model, tokens = awake(), ids(rows=1, tokens=13)
    parts = [(tokens[:, :6], marks(2, 1, 2, 1, rows=1)), (tokens[:, 6:11], marks(3, 2, rows=1))]
    alone = [logits(model, input_ids=part, prompt_mask=prompt) for part, prompt in parts]
    places = torch.tensor([[*range(6), *range(5), 0, 1]])
    found = logits(
        model,
        input_ids=tokens,
        position_ids=places,
        segment_ids=torch.tensor([[0] * 6 + [1] * 5 + [2] * 2]),
        prompt_mask=torch.cat([p for _, p in parts] + [torch.zeros(1, 2).bool()], dim=1),
        use_cache=False,
    )
    assert found.isfinite().all()  # the padding's too, for which nobody decides
    torch.testing.assert_close(found[:, :11], torch.cat(alone, dim=1), rtol=0, atol=1e-6)


def test_positions_that_start_again_are_segments(awake):
    model, tokens = awake(), ids(rows=1)
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    segments = torch.tensor([[0] * 4 + [1] * 5])
    packed = {"input_ids": tokens, "position_ids": places, "use_cache": False}
    found = logits(model, **packed)
    assert torch.equal(found, logits(model, **packed, segment_ids=segments))
    torch.testing.assert_close(found[:, :4], logits(model, input_ids=tokens[:, :4]))


def test_an_answer_keeps_its_draw_while_a_row_beside_it_starts_a_new_turn(awake):
    model, tokens = awake(selection="random"), ids(tokens=6)
    cache = hf.DynamicCache()
    logits(model, input_ids=tokens[:, :4], past_key_values=cache)
    twin = copy.deepcopy(cache)
    expected = logits(model, input_ids=tokens[:, 4:], past_key_values=twin)
    turns = torch.tensor([[False, False], [True, True]])
    found = logits(model, input_ids=tokens[:, 4:], past_key_values=cache, prompt_mask=turns)
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_padding_is_read_from_prepared_masks_too(awake, kind):
    model, tokens = awake(), ids()
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[0, :3] = False
    places = (valid.long().cumsum(dim=1) - 1).clamp(min=0)
    inputs = {"input_ids": tokens, "position_ids": places}
    expected = logits(model, **inputs, attention_mask=valid.long())
    mask = torch.ones(9, 9).tril().bool() & valid[:, None, None]
    mask = mask | torch.eye(9).bool()  # padding sees itself, as transformers has it
    if kind == "float":
        mask = torch.zeros(mask.shape).double().masked_fill(~mask, torch.finfo(torch.double).min)
    found = logits(model, **inputs, attention_mask=mask)
    torch.testing.assert_close(found[valid], expected[valid], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("move", "rows"),
    [
        (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 1])), [2, 0, 1]),
        (lambda cache: cache.batch_select_indices(torch.tensor([2])), [2]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    ],
    ids=["reordered", "selected", "repeated"],
)
def test_the_choice_follows_the_rows_of_a_cache(awake, move, rows):
    model, tokens = awake(), ids(rows=3, tokens=6)
    expected = logits(model, input_ids=tokens, prompt_mask=marks(4, 2, rows=3))[:, 4:]
    cache = hf.DynamicCache()
    logits(model, input_ids=tokens[:, :4], past_key_values=cache)
    twin = copy.deepcopy(cache)
    move(cache)
    for number in (4, 5):
        step = tokens[rows, number : number + 1]
        found = logits(model, input_ids=step, past_key_values=cache)
        torch.testing.assert_close(found, expected[rows, number - 4 : number - 3])
    found = logits(model, input_ids=tokens[:, 4:], past_key_values=twin)
    torch.testing.assert_close(found, expected)


def test_beams_of_different_prompts_keep_to_their_own_choice(awake):
    model, tokens = awake(), ids(tokens=5)
    settings = {"num_beams": 3, "max_new_tokens": 6, "eos_token_id": None, "do_sample": False}
    together = model.generate(tokens, attention_mask=torch.ones_like(tokens), **settings)
    for row, one in zip(tokens, together, strict=True):
        alone = model.generate(row[None], attention_mask=torch.ones(1, 5).long(), **settings)
        assert torch.equal(alone[0], one)


def test_a_static_cache_can_be_emptied_and_filled_again(awake):
    model, tokens = awake(), ids(tokens=6)
    cache = hf.StaticCache(model.config, max_cache_len=8)
    for prompt in (tokens, tokens.flip(0)):
        expected = logits(model, input_ids=prompt, prompt_mask=marks(4, 2))
        cache.reset()
        logits(model, input_ids=prompt[:, :4], past_key_values=cache)
        found = logits(model, input_ids=prompt[:, 4:], past_key_values=cache)
        torch.testing.assert_close(found, expected[:, 4:], rtol=0, atol=1e-6)


def test_a_cache_of_another_adapter_is_refused(awake):
    model, tokens = awake(), ids()
    cache = hf.DynamicCache()
    with model.disable_adapter():
        logits(model, input_ids=tokens, past_key_values=cache)
    with pytest.raises(
        RuntimeError, match="holds 9 tokens and was filled with no adapter that routes"
    ):
        logits(model, input_ids=tokens[:, :1], past_key_values=cache)


def test_marks_of_another_shape_are_refused(awake):
    with pytest.raises(ValueError, match=r"prompt_mask must be \[2, 9\].*; got \[2, 4\]"):
        logits(awake(), input_ids=ids(), prompt_mask=marks(4))


def test_a_linear_outside_its_decoder_is_refused(awake):
    layer = awake().get_base_model().model.layers[0].mlp.up_proj
    with pytest.raises(RuntimeError, match="ran outside its decoder's forward pass"):
        layer(torch.randn(1, 2, 16).double())


def test_two_active_adapters_are_refused(awake):
    model = awake()
    model.add_adapter("second", MixLoraConfig(**SMALL))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ValueError, match="MixLoRA runs one adapter at a time"):
        logits(model, input_ids=ids())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks at it
def test_every_layer_can_be_compiled_alone(awake):
    model = awake().float().train()
    inputs = {"input_ids": ids(), "prompt_mask": marks(4, 5), "use_cache": False}

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(**inputs).logits.square().mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    expected = gradients()
    for layer in model.get_base_model().model.layers:
        layer.compile(backend="eager", dynamic=False, fullgraph=True)
    for _ in range(2):
        found = gradients()
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-5, msg=name)


# Records and balance


def test_records_tell_who_chose_what(awake):
    model = awake()
    inputs = {
        "input_ids": ids(),
        "segment_ids": torch.tensor([[0] * 4 + [1] * 5, [0] * 7 + [1] * 2]),
        "prompt_mask": torch.stack([marks(2, 2, 2, 3, rows=1)[0], marks(2, 1, 2, 4, rows=1)[0]]),
        "position_ids": torch.tensor([[*range(4), *range(5)], [*range(7), 0, 1]]),
        "use_cache": False,
    }
    before = logits(model, **inputs)
    with record_routing(model) as records:
        assert torch.equal(logits(model, **inputs), before)
    logits(model, **inputs)
    assert [record.layer for record in records[:3]] == [
        f"model.layers.0.self_attn.{name}_proj" for name in "qkv"
    ]
    assert len(records) == 14
    for record in records:  # the padding at the end of row 1 chooses nothing
        assert record.rows.tolist() == [0, 0, 1, 1]
        assert record.segments.tolist() == [0, 1, 0, 0]
        assert record.factors_a.shape == record.factors_b.shape == record.weights.shape == (4, 2)
        best = record.scores_a.topk(2).indices
        assert torch.equal(record.factors_a, best)
        torch.testing.assert_close(record.scores_b.sum(dim=-1), torch.ones(4))
    load, _ = factor_load(records, 6)[records[0].layer]
    counts = torch.bincount(records[0].factors_a.flatten(), minlength=6)
    torch.testing.assert_close(load.shares, counts / 8)
    plain = -sum(c / 8 * math.log(c / 8) for c in counts.tolist() if c) / math.log(6)
    assert load.entropy == pytest.approx(plain)
    assert 0 < load.sharpness < 1


def test_recomputation_records_nothing_twice(awake):
    model = awake().train()
    model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    with record_routing(model) as records:
        model(input_ids=ids()).logits.sum().backward()
    assert len(records) == 14


def test_recording_needs_an_adapter(tiny):
    with pytest.raises(ValueError, match="holds a MixLoRA adapter"), record_routing(tiny("llama")):
        pass


def test_the_balancing_loss_grows_from_even_to_collapsed():
    def term(chosen: list[list[int]], scores: torch.Tensor) -> float:
        factors = torch.tensor([chosen])
        valid = torch.ones(1, len(chosen), dtype=torch.bool)
        return float(balance_term(FactorChoice(factors, factors, None, scores, scores * 3), valid))

    even = torch.full((1, 2, 4), 0.25)
    assert term([[0, 1], [2, 3]], even) == pytest.approx(1.0)
    peaked = torch.tensor([0.5, 0.5, 0.0, 0.0]).expand(1, 2, 4)
    assert term([[0, 1], [1, 0]], peaked) == pytest.approx(2.0)  # E / r


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_balancing_loss_reaches_every_router(awake, checkpointing):
    model = awake(balance=0.3).train()
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    model(input_ids=ids(), prompt_mask=marks(4, 5))
    loss = balance_loss(model)
    assert loss.item() >= 0.25
    loss.backward()
    assert balance_loss(model) is None  # asked for once a step
    grads = {n: p.grad for n, p in model.named_parameters() if "mixlora_router" in n}
    assert len(grads) == 42
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads.values())


def test_without_balance_there_is_no_loss(awake):
    model = awake().train()
    model(input_ids=ids())
    assert balance_loss(model) is None


# The LoRA of a prompt


@pytest.mark.parametrize("selection", ["weighted", "hard"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_prompts_lora_gives_the_same_logits_anywhere(awake, tiny, name, selection, tmp_path):
    model, tokens = awake(name, selection=selection), ids(rows=1)
    expected = logits(model, input_ids=tokens, prompt_mask=marks(5, 4, rows=1))
    save_routed(model.train(), tokens[0, :5], tmp_path)
    assert model.training
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"
    plain = PeftModel.from_pretrained(tiny(name), tmp_path)
    assert not any(isinstance(module, MixLoraLayer) for module in plain.modules())
    torch.testing.assert_close(logits(plain, input_ids=tokens), expected, rtol=0, atol=1e-6)
    merged = plain.merge_and_unload()
    torch.testing.assert_close(logits(merged, input_ids=tokens), expected, rtol=0, atol=1e-6)


def test_a_prompts_lora_takes_trained_modules_and_images_along(awake, tiny, batch, tmp_path):
    model = awake("llava", modules_to_save=["multi_modal_projector"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    inputs = {name: value[-1:] for name, value in batch("llava").items()}
    expected = logits(model, **inputs)
    save_routed(model, inputs, tmp_path)
    plain = PeftModel.from_pretrained(tiny("llava"), tmp_path)
    torch.testing.assert_close(logits(plain, **inputs), expected, rtol=0, atol=1e-6)


def test_only_one_prompt_has_one_lora(awake):
    with pytest.raises(ValueError, match="the prompt of one row; got 2 rows"):
        route(awake(), ids())
    model = awake("llava", target_modules=["fc1", "down_proj"])
    images = {"input_ids": torch.tensor([[60] * 8]), "pixel_values": torch.randn(2, 3, 8, 8)}
    with pytest.raises(ValueError, match="chose factors several times for one prompt"):
        route(model, images | {"pixel_values": images["pixel_values"].double()})


# Quantised bases


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
@pytest.mark.filterwarnings("ignore::UserWarning")  # bitsandbytes casts its inputs
@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_linears_are_wrapped_as_they_are(bits, tmp_path):
    bnb = importlib.import_module("bitsandbytes")

    def base() -> nn.Module:
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 61}
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**sizes, **heads)).bfloat16().eval()
        for block in model.model.layers:
            old = block.mlp.up_proj.weight.data
            new = bnb.nn.Linear4bit(64, 128, bias=False, quant_type="nf4")
            if bits == 8:
                new = bnb.nn.Linear8bitLt(64, 128, bias=False, has_fp16_weights=False)
                new.weight = bnb.nn.Int8Params(old, requires_grad=False, has_fp16_weights=False)
            else:
                new.weight = bnb.nn.Params4bit(old, requires_grad=False, quant_type="nf4")
            block.mlp.up_proj = new.to("cpu")
        return model

    plain = base()
    before = logits(plain, input_ids=ids())
    model = get_peft_model(plain, MixLoraConfig(**SMALL))
    kinds = [type(layer.base_layer) for layer in layers(model)]
    assert sum(kind.__module__.startswith("bitsandbytes") for kind in kinds) == 2
    assert torch.equal(logits(model, input_ids=ids()), before)
    awaken(model)
    model(input_ids=ids()).logits.float().square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 70
    assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in trained)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base(), tmp_path)
    assert torch.equal(logits(loaded, input_ids=ids()), logits(model, input_ids=ids()))
