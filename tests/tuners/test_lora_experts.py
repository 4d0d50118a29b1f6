"""A mixture of LoRA experts against its formula, loops over experts and tokens, and against PEFT's.

Dimensions: B rows, T tokens, I inputs and O outputs of a linear, E experts, r rank of each.
"""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from varifocal.tuners import (
    LoraExpertsConfig,
    LoraExpertsLayer,
    balance_loss,
    factor_load,
    record_routing,
    route,
)
from varifocal.tuners.lora_experts import expert_balance_term
from varifocal.tuners.mixlora.router import FactorChoice

E, R, ALPHA = 4, 2, 3.0
# Two rows of 11 tokens: segments of turns (prompt tokens, answer tokens).
ROWS = [[[(3, 2)], [(2, 1), (1, 2)]], [[(2, 2), (3, 1), (2, 1)]]]
CASES = [
    pytest.param({"router": router, "top_k": top_k}, id=f"{router}-{top_k or 'all'}")
    for router in ("token", "instance")
    for top_k in (None, 2)
]


def deciding_tokens(row: list) -> list[list[int]]:
    """For each token of a row: the prompt tokens of its segment up to and including its turn."""
    result: list[list[int]] = []
    start = 0
    for segment in row:
        deciding: list[int] = []
        for prompt, answer in segment:
            deciding = deciding + list(range(start, start + prompt))
            result += [deciding] * (prompt + answer)
            start += prompt + answer
    return result


def marks() -> dict[str, Tensor]:
    names = ("prompt_mask", "segment_ids", "position_ids")
    rows: dict[str, list] = {name: [[] for _ in ROWS] for name in names}
    for number, row in enumerate(ROWS):
        for segment, turns in enumerate(row):
            length = sum(map(sum, turns))
            rows["segment_ids"][number] += [segment] * length
            rows["position_ids"][number] += range(length)
            for prompt, answer in turns:
                rows["prompt_mask"][number] += [True] * prompt + [False] * answer
    return {name: torch.tensor(values) for name, values in rows.items()}


def oracle(x: Tensor, layer: LoraExpertsLayer, settings: dict[str, Any], row: list) -> Tensor:
    """The update [T, O] of one row x [T, I], by loops."""
    a = layer.mixlora_a["default"].weight
    b = layer.mixlora_b["default"].weight
    router = layer.mixlora_router["default"].weight
    update = torch.zeros(len(x), b.shape[1], dtype=x.dtype)
    for t, deciding in enumerate(deciding_tokens(row)):
        h = x[t] if settings["router"] == "token" else sum(x[i] for i in deciding) / len(deciding)
        exponentials = [float((router[e] @ h).exp()) for e in range(E)]
        best = sorted(range(E), key=lambda e: -exponentials[e])[: settings["top_k"] or E]
        for e in best:
            weight = exponentials[e] / sum(exponentials[k] for k in best)
            for i in range(e * R, e * R + R):
                update[t] += ALPHA / R * weight * (a[i] @ x[t]) * b[i]
    return update


def experts(model: nn.Module, **settings: Any) -> PeftModel:
    """Put experts into a model, off their start, in evaluation mode."""
    sizes = {"num_experts": E, "rank": R, "lora_alpha": ALPHA}
    tuned = get_peft_model(model, LoraExpertsConfig(**sizes | settings))
    torch.manual_seed(1)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return tuned.eval()


@pytest.mark.parametrize("settings", CASES)
def test_every_linear_of_packed_rows_equals_the_loops(settings, tiny):
    model = experts(tiny("llama"), **settings)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LoraExpertsLayer)}
    for name, layer in layers.items():
        layer.register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: (args[0], output)})
        )
    ids = torch.randint(3, 60, (2, 11), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model(input_ids=ids, **marks(), use_cache=False)
        assert len(seen) == 14
        for name, (x, output) in seen.items():
            update = output - layers[name].base_layer(x)
            for row in range(2):
                expected = oracle(x[row], layers[name], settings, ROWS[row])
                torch.testing.assert_close(update[row], expected, rtol=0, atol=1e-10)
                assert expected.abs().max() > 1e-3


def test_patches_of_an_image_have_weights_of_their_own(tiny, batch):
    model = experts(tiny("clip"), target_modules=["fc1"])
    with record_routing(model) as records:
        model(**batch("clip"))
    assert len(records) == 2
    assert records[0].weights.shape == (3 * 5, E)  # three images of a class token and four patches
    assert len(records[0].weights[:, 0].unique()) == 15


def test_even_experts_are_a_lora_of_their_ranks_sum(tiny, batch):
    model = experts(tiny("llama"), target_modules=["q_proj", "up_proj"])
    config = LoraConfig(r=E * R, lora_alpha=ALPHA, target_modules=["q_proj", "up_proj"])
    lora = get_peft_model(tiny("llama"), config).eval()
    with torch.no_grad():
        for name, layer in model.named_modules():
            if isinstance(layer, LoraExpertsLayer):
                layer.mixlora_router["default"].weight.zero_()
                twin: Any = lora.get_submodule(name)
                twin.lora_A["default"].weight.copy_(layer.mixlora_a["default"].weight)
                twin.lora_B["default"].weight.copy_(layer.mixlora_b["default"].weight.T)
        ids = batch("llama")["input_ids"]
        torch.testing.assert_close(model(ids).logits, lora(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.parametrize("top_k", [None, 2])
def test_the_lora_that_a_prompt_chooses_gives_its_logits(top_k, tiny, tmp_path):
    model = experts(tiny("llama"), router="instance", top_k=top_k)
    ids = torch.randint(3, 60, (1, 6), generator=torch.Generator().manual_seed(2))
    prompt = {"input_ids": ids, "prompt_mask": torch.arange(6)[None] < 4}
    routed = route(model, prompt)
    assert routed.config.r == (top_k or E) * R
    routed.save(tmp_path)
    lora = PeftModel.from_pretrained(tiny("llama"), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(
            lora(input_ids=ids).logits, model(**prompt).logits, rtol=0, atol=1e-6
        )


def test_a_token_router_has_no_lora_of_a_prompt(tiny):
    with pytest.raises(ValueError, match=r"weighs its experts for every token .*'instance'$"):
        route(experts(tiny("llama")), torch.arange(3, 8))


def test_tokens_are_recorded_without_padding_and_their_weights_are_the_load(tiny):
    model = experts(tiny("llama"), target_modules=["q_proj"])
    ids = torch.arange(3, 13).view(2, 5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    with record_routing(model) as records:
        model(input_ids=ids, attention_mask=mask)
    assert [record.layer for record in records] == [
        f"model.layers.{i}.self_attn.q_proj" for i in range(2)
    ]
    assert records[0].rows.tolist() == [0] * 5 + [1] * 3
    assert records[0].weights.sum(dim=-1).tolist() == pytest.approx([1.0] * 8)
    load, _ = factor_load(records, E, weighted=True)["model.layers.0.self_attn.q_proj"]
    scores = records[0].scores_a
    assert scores is not None
    torch.testing.assert_close(load.shares, scores.mean(dim=0))
    assert load.shares.max() > 0.3


def term(scores: list[list[float]], num_chosen: int, decided: list[int]) -> float:
    table = torch.tensor([scores], dtype=torch.float64)
    best = table.topk(num_chosen, dim=-1)
    choice = FactorChoice(best.indices, best.indices, best.values, table, table)
    return float(expert_balance_term(choice, torch.tensor([decided])))


def test_the_balance_term_by_hand():
    assert term([[0.5, 0.5], [0.5, 0.5]], 2, [1, 1]) == pytest.approx(1)
    assert term([[1.0, 0.0], [1.0, 0.0]], 2, [1, 1]) == pytest.approx(2)
    # Means 0.6 and 0.4: 2 (0.36 + 0.16); the padding's score is not read.
    assert term([[0.7, 0.3], [0.5, 0.5], [0.0, 1.0]], 2, [1, 1, 0]) == pytest.approx(1.04)
    # Two of three: choices (0, 1) and (0, 2), shares 1/2, 1/4, 1/4; means 0.55, 0.25, 0.2.
    scores = [[0.5, 0.4, 0.1], [0.6, 0.1, 0.3]]
    assert term(scores, 2, [1, 1]) == pytest.approx(3 * (0.275 + 0.0625 + 0.05))


@pytest.mark.parametrize("settings", CASES)
def test_the_balance_loss_moves_the_router_alone(settings, tiny, batch):
    model = experts(tiny("llama"), **settings, balance=0.5, dropout=0.0).train()
    model(**batch("llama"))
    loss = balance_loss(model)
    assert loss is not None
    assert 0.5 < loss.item() < 0.5 * E
    assert balance_loss(model) is None
    last = model.get_submodule("base_model.model.model.layers.1.mlp.down_proj")
    loss.backward()
    assert last.mixlora_router["default"].weight.grad.abs().max() > 0
    assert last.mixlora_b["default"].weight.grad is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 1}, "num_experts must be 2 or more; got 1"),
        ({"rank": 0}, "rank must be 1 or more; got 0"),
        ({"top_k": 1}, "top_k must lie between 2 and num_experts=4; got 1: the weight of a single"),
        ({"top_k": 5}, "top_k must lie between 2 and num_experts=4; got 5"),
        ({"router": "cls"}, "router must be one of token, instance; got 'cls'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),
        ({"balance": -1.0}, "balance must be 0 or more; got -1.0"),
        ({"text_route": "image"}, "text_route must be one of trained, base; got 'image'"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        LoraExpertsConfig(**settings)
