"""MMA against the paper's form, written out plainly, with nothing of the package's in it.

Dimensions: B rows or images, T tokens or cells, D width 16, H heads 2, d = D / H.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from torch import Tensor, nn

from varifocal.tuners import MMAConfig, MMALayer

GROUPS, SCALE, TEMPERATURE = 2, 0.7, 3.0
CONFIG = {"dropout": 0.0, "scale": SCALE, "router_temperature": TEMPERATURE}


def adapted(z: Tensor, state: Tensor, p: dict[str, Tensor]) -> Tensor:
    """The adapter on z [B, T, D], routed by a state [B, D]: two grouped 1x1 convolutions."""
    h = z @ p["mma_down.weight"].T + p["mma_down.bias"]
    up, bias = p["mma_up.weight"], p["mma_up.bias"]
    logits = state @ p["mma_router.weight"].T + p["mma_router.bias"]
    w = torch.softmax(logits / TEMPERATURE, dim=-1)
    y = z
    for k in (0, 1):
        branch = F.conv1d(h.transpose(1, 2), up[k][:, :, None], bias[k], groups=GROUPS)
        y = y + SCALE * w[:, k, None, None] * branch.transpose(1, 2)
    return y


def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Softmax attention over [B, H, T, d] where visible [T, T] is true; returns [B, T, D]."""
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


def heads(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 8)).transpose(1, 2)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin


def llama_with_modality_token(
    model: nn.Module, p: list[dict[str, Tensor]], embedding: Tensor, ids: Tensor, modality: Tensor
) -> Tensor:
    """Prepend the modality token, let it see itself, let nobody see it; logits of the others."""
    core = model.model
    x = torch.cat([embedding[modality][:, None], core.embed_tokens(ids)], dim=1)
    length = x.shape[1]
    positions = torch.tensor([[0, *range(length - 1)]])  # the others count as if alone
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[1:, 0] = False
    cos, sin = core.rotary_emb(x, positions)
    for i, layer in enumerate(core.layers):
        z = layer.input_layernorm(x)
        y = adapted(z, z[:, 0], p[i])
        attn = layer.self_attn
        q, k = (rotated(heads(f(y)), cos, sin) for f in (attn.q_proj, attn.k_proj))
        k, v = (t.repeat_interleave(2, dim=1) for t in (k, heads(attn.v_proj(y))))
        x = x + attn.o_proj(attention(q, k, v, visible))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(core.norm(x))[:, 1:]


def clip_routed_by_its_own_cls(
    model: nn.Module, p: list[dict[str, Tensor]], pixels: Tensor
) -> Tensor:
    """CLIP's blocks with an adapter after layer_norm1; last states [B, T, D]."""
    x = model.pre_layrnorm(model.embeddings(pixels))
    visible = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    for i, layer in enumerate(model.encoder.layers):
        z = layer.layer_norm1(x)
        y = adapted(z, z[:, 0], p[i])
        attn = layer.self_attn
        q, k, v = (heads(f(y)) for f in (attn.q_proj, attn.k_proj, attn.v_proj))
        x = x + attn.out_proj(attention(q, k, v, visible))
        x = x + layer.mlp(layer.layer_norm2(x))
    return x


def clip_as_the_public_code_runs_one_image(
    model: nn.Module, p: list[dict[str, Tensor]], pixels: Tensor
) -> Tensor:
    """CLIP's blocks on x [T, 1, D], length first, routed by x[:, 0]; last states [1, T, D]."""
    x = model.pre_layrnorm(model.embeddings(pixels)).transpose(0, 1)
    visible = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool)
    for i, layer in enumerate(model.encoder.layers):
        z = layer.layer_norm1(x)
        y = adapted(z, z[:, 0], p[i]).transpose(0, 1)
        attn = layer.self_attn
        q, k, v = (heads(f(y)) for f in (attn.q_proj, attn.k_proj, attn.v_proj))
        x = x + attn.out_proj(attention(q, k, v, visible)).transpose(0, 1)
        x = x + layer.mlp(layer.layer_norm2(x))
    return x.transpose(0, 1)


def awake(model: nn.Module) -> dict[str, Tensor]:
    """Randomise the trained parameters; return leaves that hold the same numbers."""
    torch.manual_seed(5)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        nn.init.normal_(parameter, std=0.5)
    return {n: p.detach().clone().requires_grad_() for n, p in trained.items()}


def by_layer(leaves: dict[str, Tensor], num_layers: int = 2) -> list[dict[str, Tensor]]:
    def short(name: str) -> str:
        return name.replace(".default", "").split("norm.")[-1].split("norm1.")[-1]

    return [
        {short(n): leaf for n, leaf in leaves.items() if f"layers.{i}." in n}
        for i in range(num_layers)
    ]


def compare(model: nn.Module, leaves: dict[str, Tensor], found: Tensor, expected: Tensor) -> None:
    """Compare outputs, and the gradients of every trained parameter under a random loss."""
    tolerance = {"rtol": 0, "atol": 1e-6}  # transformers' norms compute in float32
    torch.testing.assert_close(found, expected, **tolerance)
    direction = torch.randn_like(expected)
    (found * direction).sum().backward()
    (expected * direction).sum().backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == leaves.keys()
    for name, parameter in trained.items():
        size = leaves[name].grad.abs().max().clamp(min=1.0)
        assert leaves[name].grad.abs().max() > 1e-4, name
        torch.testing.assert_close(
            parameter.grad / size, leaves[name].grad / size, **tolerance, msg=name
        )


def test_language_model_equals_a_prepended_and_masked_modality_token(tiny, batch):
    base = tiny("llama")
    model = get_peft_model(copy.deepcopy(base), MMAConfig(**CONFIG)).train()
    leaves = awake(model)
    inputs = batch("llama")
    (embedding,) = (leaf for name, leaf in leaves.items() if "modality_embedding" in name)
    expected = llama_with_modality_token(
        base, by_layer(leaves), embedding, inputs["input_ids"], inputs["modality_ids"][:, 0]
    )
    compare(model, leaves, model(**inputs).logits, expected)


@pytest.mark.parametrize("text_route", ["trained", "base"])
def test_packed_row_equals_a_prepended_and_masked_modality_token_each(text_route, tiny, batch):
    base = tiny("llama")
    config = MMAConfig(**CONFIG, text_route=text_route)
    model = get_peft_model(copy.deepcopy(base), config).train()
    leaves = awake(model)
    (embedding,) = (leaf for name, leaf in leaves.items() if "modality_embedding" in name)
    ids = batch("llama")["input_ids"]
    pieces, kinds = [ids[0, :4], ids[1, :7], ids[0, 3:5]], [1, 0, 1]
    expected = [
        llama_with_modality_token(
            base, by_layer(leaves), embedding, piece[None], torch.tensor([kind])
        )
        if kind or text_route == "trained"
        else base(piece[None]).logits
        for piece, kind in zip(pieces, kinds, strict=True)
    ]
    found = model(
        input_ids=torch.cat(pieces)[None],
        position_ids=torch.cat([torch.arange(len(piece)) for piece in pieces])[None],
        modality_ids=torch.cat(
            [torch.full_like(piece, kind) for piece, kind in zip(pieces, kinds, strict=True)]
        )[None],
        use_cache=False,
    ).logits
    compare(model, leaves, found, torch.cat(expected, dim=1))


def test_clip_equals_blocks_routed_by_each_images_own_cls(tiny, batch):
    base = tiny("clip")
    model = get_peft_model(copy.deepcopy(base), MMAConfig(**CONFIG)).train()
    leaves = awake(model)
    pixels = batch("clip")["pixel_values"]
    expected = clip_routed_by_its_own_cls(base, by_layer(leaves), pixels)
    compare(model, leaves, model(pixel_values=pixels).last_hidden_state, expected)


def test_router_token_equals_the_public_codes_tower_on_each_image_alone(tiny, batch):
    base = tiny("clip")
    model = get_peft_model(copy.deepcopy(base), MMAConfig(**CONFIG, router="token")).train()
    leaves = awake(model)
    pixels = batch("clip")["pixel_values"]
    own = by_layer(leaves)
    images = [clip_as_the_public_code_runs_one_image(base, own, one[None]) for one in pixels]
    compare(model, leaves, model(pixel_values=pixels).last_hidden_state, torch.cat(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("router", ["cls", "mean", "token"])
def test_layer_computes_the_papers_formula(router, dtype):
    torch.manual_seed(2)
    norm = nn.LayerNorm(16)
    layer = MMALayer(norm, "mean" if router == "mean" else "cls", "norm")
    layer.set_adapter("default")
    kind = {"router": "token"} if router == "token" else {}
    layer.update_layer("default", MMAConfig(**CONFIG, **kind))
    layer.to(dtype)
    parameters = dict(layer.named_parameters())
    for name, parameter in parameters.items():
        if "mma" in name:
            nn.init.normal_(parameter)
    x = torch.randn(3, 5, 16, dtype=dtype)
    z = norm(x)
    plain = {name.replace(".default", ""): p for name, p in parameters.items()}
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    if router == "token":
        flat = z.flatten(0, 1)
        expected = adapted(flat[:, None], flat, plain).view_as(z)
    else:
        expected = adapted(z, z[:, 0] if router == "cls" else z.mean(dim=1), plain)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=tolerance)
