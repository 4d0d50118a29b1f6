"""MixLoRA against the paper's equations, written out plainly, with nothing of the package's in it.

A batch is a list of rows, a row a list of segments, a segment a list of turns (prompt tokens,
answer tokens). Dimensions: T tokens, I inputs and O outputs of a linear, E factors, r chosen ones.
"""

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from varifocal.tuners import MixLoraConfig

E, R, ALPHA = 5, 3, 2.5
ROWS = [[[(3, 2)], [(2, 1), (1, 2)]], [[(2, 2), (3, 1), (2, 1)]]]  # 11 tokens each
SEVEN = [f"self_attn.{n}_proj" for n in "qkvo"] + [f"mlp.{n}_proj" for n in ("gate", "up", "down")]


def turns_of(row: list) -> list[tuple[list[int], list[int]]]:
    """For each turn: the prompt tokens that decide for it, and the tokens that follow."""
    turns, start = [], 0
    for segment in row:
        deciding: list[int] = []
        for prompt, answer in segment:
            deciding = deciding + list(range(start, start + prompt))
            turns.append((deciding, list(range(start, start + prompt + answer))))
            start += prompt + answer
    return turns


def marks_of(row: list) -> dict[str, list]:
    marks: dict[str, list] = {"prompt_mask": [], "segment_ids": [], "position_ids": []}
    for number, segment in enumerate(row):
        for prompt, answer in segment:
            marks["prompt_mask"] += [True] * prompt + [False] * answer
        length = sum(map(sum, segment))
        marks["segment_ids"] += [number] * length
        marks["position_ids"] += range(length)
    return marks


def top(scores: Tensor) -> list[int]:
    values = scores.tolist()
    return sorted(range(E), key=lambda e: -values[e])[:R]


def softmax(logits: Tensor) -> Tensor:
    return logits.exp() / logits.exp().sum()


def update(h: Tensor, p: dict[str, Tensor], selection: str) -> Tensor:
    """The dense update [O, I] of one instance with mean input h [I].

    "reference" among p is the conditional router as the public code's einsum `brd,rfe->bre` has it.
    """
    a, b = p["a"], p["b"]
    p_a = softmax(p["independent_a"] @ h)
    chosen_a = top(p_a)
    p_b = softmax(p["independent_b"] @ h)
    if "conditional" in p:
        for i in range(R):
            p_b = p_b + softmax(a[chosen_a[i]] @ p["conditional"][i])
    if "reference" in p:
        chosen = a[chosen_a][None]  # [1, r, I], the batch's letter b
        logits = torch.einsum("brd,rfe->bre", chosen, p["reference"])
        p_b = p_b + softmax(torch.softmax(logits, dim=-1).sum(dim=1)[0])
    chosen_b = top(p_b)
    delta = torch.zeros(b.shape[1], a.shape[1], dtype=a.dtype)
    for e, f in zip(chosen_a, chosen_b, strict=True):
        weight = 1.0
        if selection == "weighted":
            weight = R * p_a[e] / sum(p_a[k] for k in chosen_a)
            weight = weight * R * p_b[f] / sum(p_b[k] for k in chosen_b)
        delta = delta + weight * torch.outer(b[f], a[e])
    return ALPHA / R * delta


def linear(
    x: Tensor,
    weight: Tensor,
    p: dict[str, Tensor],
    row: list,
    selection: str,
    is_image: Tensor | None = None,
) -> Tensor:
    """A linear with its update on one row x [T, I], of image tokens [T] alone; returns [T, O]."""
    y = list(x @ weight.T)
    for deciding, following in turns_of(row):
        delta = update(x[deciding].mean(dim=0), p, selection)
        for t in following if is_image is None else [t for t in following if is_image[t]]:
            y[t] = y[t] + delta @ x[t]
    return torch.stack(y)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def llama(
    model: nn.Module,
    p: dict,
    row: list,
    ids: Tensor,
    selection: str,
    is_image: Tensor | None = None,
) -> Tensor:
    """Logits [T, vocabulary] of one packed row; segments do not see one another."""
    core, marks = model.model, marks_of(row)
    x = core.embed_tokens(ids)
    segments = torch.tensor(marks["segment_ids"])
    visible = torch.ones(len(ids), len(ids)).tril().bool() & (segments[:, None] == segments)
    cos, sin = (t[0] for t in core.rotary_emb(x, torch.tensor([marks["position_ids"]])))
    for i, layer in enumerate(core.layers):

        def run(name: str, z: Tensor, i: int = i, layer: nn.Module = layer) -> Tensor:
            weight = layer.get_submodule(name).base_layer.weight
            return linear(z, weight, p[f"{i}.{name}"], row, selection, is_image)

        z = layer.input_layernorm(x)
        q, k, v = (run(f"self_attn.{n}_proj", z).unflatten(-1, (-1, 8)) for n in "qkv")
        q, k = (rotated(t.transpose(0, 1), cos, sin) for t in (q, k.expand(-1, 2, -1)))
        scores = (q @ k.transpose(1, 2)) / 8**0.5
        weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
        mixed = weights @ v.expand(-1, 2, -1).transpose(0, 1)
        x = x + run("self_attn.o_proj", mixed.transpose(0, 1).flatten(1))
        z = layer.post_attention_layernorm(x)
        gated = nn.functional.silu(run("mlp.gate_proj", z)) * run("mlp.up_proj", z)
        x = x + run("mlp.down_proj", gated)
    return model.lm_head(core.norm(x))


def awake(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Randomise pools and routers; return leaves that hold the same numbers, by linear."""
    torch.manual_seed(5)
    leaves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if ".mixlora_" in name:
            nn.init.normal_(tensor, std=0.5)
            place, _, own = name.partition(".mixlora_")
            key = place.split("layers.")[1]
            short = own[0] if own[0] in "ab" else own.split(".")[-1]
            leaves.setdefault(key, {})[short] = tensor.detach().clone().requires_grad_()
    return leaves


def renamed(tensors: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {new if name == old else name: tensor for name, tensor in tensors.items()}


def inputs(rows: list) -> dict[str, Tensor]:
    marks = [marks_of(row) for row in rows]
    batch = {name: torch.tensor([mark[name] for mark in marks]) for name in marks[0]}
    random = torch.Generator().manual_seed(7)
    return batch | {"input_ids": torch.randint(3, 60, batch["segment_ids"].shape, generator=random)}


@pytest.mark.parametrize("conditional", [True, False, "reference"])
@pytest.mark.parametrize("selection", ["hard", "weighted"])
def test_packed_conversations_equal_the_papers_equations(selection, conditional, tiny):
    config = MixLoraConfig(
        num_factors=E,
        rank=R,
        lora_alpha=ALPHA,
        dropout=0.0,
        selection=selection,
        conditional=conditional,
    )
    model = get_peft_model(tiny("llama"), config).eval()
    leaves, batch = awake(model), inputs(ROWS)
    assert set(leaves) == {f"{i}.{name}" for i in (0, 1) for name in SEVEN}
    if conditional == "reference":
        leaves = {key: renamed(own, "conditional", "reference") for key, own in leaves.items()}
    found = model(**batch, use_cache=False).logits
    expected = torch.stack(
        [
            llama(model.get_base_model(), leaves, row, ids, selection)
            for row, ids in zip(ROWS, batch["input_ids"], strict=True)
        ]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)  # its norms are in float32
    direction = torch.randn_like(expected)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    compare_gradients(model, leaves, learnt=selection == "weighted")


def test_with_text_left_to_the_base_the_segments_with_an_image_alone_are_updated(tiny):
    sizes = {"num_factors": E, "rank": R, "lora_alpha": ALPHA, "dropout": 0.0}
    model = get_peft_model(tiny("llama"), MixLoraConfig(**sizes, text_route="base")).eval()
    leaves, batch = awake(model), inputs(ROWS)
    is_image = batch["segment_ids"] == 0  # row 0: an image segment and a text one; row 1: image
    found = model(**batch, modality_ids=is_image.long(), use_cache=False).logits
    base = model.get_base_model()
    rows = zip(ROWS, batch["input_ids"], is_image, strict=True)
    expected = torch.stack(
        [llama(base, leaves, row, ids, "weighted", images) for row, ids, images in rows]
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    direction = torch.randn_like(expected)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    compare_gradients(model, leaves, learnt=True)


def compare_gradients(model: nn.Module, leaves: dict, *, learnt: bool) -> None:
    for key, own in leaves.items():
        layer = model.get_submodule(f"base_model.model.model.layers.{key}")
        router = layer.mixlora_router["default"]
        for name, leaf in renamed(own, "reference", "conditional").items():
            holder = router if len(name) > 1 else getattr(layer, f"mixlora_{name}")["default"]
            tensor = getattr(holder, name if len(name) > 1 else "weight")
            if len(name) > 1 and not learnt:
                assert leaf.grad is None  # by the equations themselves
                assert not tensor.requires_grad
                assert tensor.grad is None
                continue
            size = leaf.grad.abs().max().clamp(min=1.0)
            assert leaf.grad.abs().max() > 1e-6, (key, name)
            torch.testing.assert_close(
                tensor.grad / size, leaf.grad / size, rtol=0, atol=1e-6, msg=f"{key} {name}"
            )


def test_one_linear_to_the_last_digits():
    """Without a transformers norm around it: whole tensors at 1e-10 in float64."""
    torch.manual_seed(0)
    tower = nn.Sequential(nn.Linear(7, 9, bias=False)).double()
    config = MixLoraConfig(
        num_factors=E, rank=R, lora_alpha=ALPHA, dropout=0.0, target_modules=["0"]
    )
    model = get_peft_model(tower, config).eval()
    p = {}
    for name, tensor in model.state_dict().items():
        if ".mixlora_" in name:
            nn.init.normal_(tensor, std=1.0)
            own = name.partition(".mixlora_")[2]
            p[own[0] if own[0] in "ab" else own.split(".")[-1]] = tensor
    x = torch.randn(4, 6, 7).double()
    weight = model.get_base_model()[0].base_layer.weight
    expected = torch.stack([linear(one, weight, p, [[(6, 0)]], "weighted") for one in x])
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)
