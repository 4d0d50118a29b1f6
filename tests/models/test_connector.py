"""Connectors: sizes, what each token reads, scale, seeds."""

import math

import pytest
import torch

from varifocal.errors import ModelError
from varifocal.models import ClsPyramid, PatchMLP, build_connector, build_tower
from varifocal.models.connector import embedding_scale


@pytest.mark.parametrize(("width", "parameters"), [(4096, 659_584), (5120, 791_680)])
def test_cls_pyramid_has_lavins_parameters(width, parameters):
    with torch.device("meta"):
        neck = ClsPyramid(1024, width)
    assert sum(p.numel() for p in neck.parameters()) == parameters
    assert parameters == 1024 * 128 + 128 + 128 * width + width
    assert neck(torch.empty(2, 6, 1024, device="meta")).shape == (2, 6, width)


def test_cls_pyramid_is_the_papers_formula():
    neck = ClsPyramid(24, 32, hidden_dim=8, num_states=2).double()
    states = torch.randn(3, 2, 24, dtype=torch.float64)
    hidden = states @ neck.down.weight.T + neck.down.bias
    expected = (hidden * torch.sigmoid(hidden)) @ neck.up.weight.T + neck.up.bias
    torch.testing.assert_close(neck(states), expected, rtol=1e-10, atol=1e-10)


def test_local_tokens_are_llavas_projector_on_averaged_cells():
    mlp = PatchMLP(6, 10, 7, grid=(4, 4), num_tokens=4).double()
    torch.nn.init.normal_(mlp.position)
    states = torch.randn(2, 16, 6, dtype=torch.float64)
    first, _, second = mlp.local
    for cell, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
        inside = [states[:, 4 * (row + i) + column + j] for i in (0, 1) for j in (0, 1)]
        mean = torch.stack(inside).mean(0)
        normed = (mean - mean.mean(1, keepdim=True)) / (
            mean.var(1, keepdim=True, unbiased=False) + 1e-5
        ).sqrt()
        hidden = (normed + mlp.position[cell]) @ first.weight.T + first.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        expected = hidden @ second.weight.T + second.bias
        torch.testing.assert_close(mlp(states)[:, cell], expected, rtol=1e-10, atol=1e-10)


def test_local_tokens_read_their_cell_and_global_tokens_read_all():
    mlp = PatchMLP(6, 10, 7, grid=(4, 4), num_tokens=16, num_global_tokens=2)
    assert mlp.tokens_per_image == 18
    states = torch.randn(1, 16, 6)
    changed = states.clone()
    changed[0, 5] += 1.0 + torch.arange(6)
    moved = (mlp(states) != mlp(changed)).any(-1)[0].tolist()
    assert [index for index, token in enumerate(moved) if token] == [5, 16, 17]


def test_global_tokens_of_a_large_grid_stay_small():
    with torch.device("meta"):
        mlp = PatchMLP(1024, 4096, 512, grid=(24, 24), num_global_tokens=4)
    overview = sum(p.numel() for p in mlp.overview.parameters())
    assert mlp.tokens_per_image == 24 * 24 + 4
    narrow = 1024 * 64 + 64
    assert overview == narrow + (64 * 64 * 512 + 512) + (512 * 4 * 4096 + 4 * 4096)


@pytest.mark.parametrize("kind", ["cls_pyramid", "patch_mlp"])
def test_output_scale_is_every_tokens_root_mean_square(make_vit, kind):
    tower = build_tower(make_vit("clip"))
    scaled = build_connector({"type": kind, "output_scale": 0.13}, tower, 32, seed=0)
    free = build_connector({"type": kind}, tower, 32, seed=0)
    states = torch.randn(3, tower.num_states(scaled.select), 24)
    size = scaled(states).pow(2).mean(-1).sqrt()
    torch.testing.assert_close(size, torch.full_like(size, 0.13), rtol=1e-3, atol=0)
    cosine = torch.cosine_similarity(scaled(states), free(states), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_embedding_scale_measures_what_is_looked_up():
    words = torch.nn.Embedding(500, 16)
    expected = words.weight.pow(2).mean(1).sqrt().mean().item()
    assert embedding_scale(words) == pytest.approx(expected, rel=1e-6)
    assert embedding_scale(words, sample=50) == pytest.approx(expected, rel=0.1)

    class Scaled(torch.nn.Embedding):
        def forward(self, input):
            return super().forward(input) * 4

    large = Scaled(500, 16)
    large.load_state_dict(words.state_dict())
    assert embedding_scale(large) == pytest.approx(4 * expected, rel=1e-6)


def test_a_seed_decides_and_leaves_the_generator_alone(make_vit):
    tower = build_tower(make_vit("clip"))
    options = {"type": "patch_mlp", "num_global_tokens": 1}
    state = torch.get_rng_state()
    one, same, other = (build_connector(options, tower, 32, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(one.local[0].weight, other.local[0].weight)


def test_linear_is_one_product_as_large_as_words_at_the_start(make_vit):
    tower = build_tower(make_vit("clip"))
    options = {"type": "linear", "output_scale": 0.2}
    first = build_connector(options, tower, 32, seed=0)
    assert first.config() == options
    (linear,) = first.local
    states = torch.randn(2, 16, 24)
    expected = states @ linear.weight.T + linear.bias
    torch.testing.assert_close(first(states), expected)
    assert expected.pow(2).mean(-1).sqrt().mean().item() == pytest.approx(0.2, rel=0.1)
    again = build_connector(options, tower, 32)
    again.load_state_dict(first.state_dict())
    assert torch.equal(again(states), first(states))


@pytest.mark.parametrize("kind", ["cls_pyramid", "patch_mlp"])
def test_config_builds_the_same_connector_again(make_vit, kind):
    tower = build_tower(make_vit("clip"))
    options = {"type": kind, "hidden_dim": 9, "output_scale": 0.5}
    if kind == "patch_mlp":
        options |= {"num_tokens": 4, "num_global_tokens": 2, "position_embedding": False}
    first = build_connector(options, tower, 32)
    assert first.config() == options
    again = build_connector(first.config(), tower, 32)
    again.load_state_dict(first.state_dict())
    states = torch.randn(2, tower.num_states(first.select), 24)
    assert torch.equal(first(states), again(states))


def test_parameters_take_gradients_in_the_connectors_own_dtype(make_vit):
    tower = build_tower(make_vit("clip"))
    mlp = build_connector({"num_tokens": 4, "num_global_tokens": 1}, tower, 32)
    mlp(torch.randn(2, 16, 24).bfloat16()).pow(2).sum().backward()
    for name, parameter in mlp.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"type": "patch_mpl"}, "'patch_mpl' is not one of .*did you mean 'patch_mlp'"),
        (
            {"num_tokens": 5},
            "num_tokens is 5; this tower's 4 x 4 cells can be pooled to 1, 4, 9, 16",
        ),
        ({"num_tokens": 25}, "can be pooled to 1, 4, 9, 16, or left"),
        ({"hidden": 3}, "connector 'patch_mlp': .*unexpected keyword argument 'hidden'"),
    ],
)
def test_wrong_options_are_answered(make_vit, options, text):
    with pytest.raises(ModelError, match=text):
        build_connector(options, build_tower(make_vit("clip")), 32)


def test_cls_pyramid_needs_cls_states(make_vit):
    with pytest.raises(ModelError, match="no CLS token, which connector 'cls_pyramid' reads"):
        build_connector({"type": "cls_pyramid"}, build_tower(make_vit("siglip")), 32)


def test_states_of_another_grid_are_refused(make_vit):
    mlp = build_connector({"num_tokens": 4}, build_tower(make_vit("clip")), 32)
    with pytest.raises(ModelError, match="built for 4 x 4 cells and was given 9 states"):
        mlp(torch.randn(1, 9, 24))
