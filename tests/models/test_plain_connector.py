"""The connector that is LLaVA's projector: the same numbers, its start, what it refuses."""

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from varifocal.errors import ModelError
from varifocal.models import build_connector, build_tower
from varifocal.models.connector import PlainMLP


def sizes(tokens):
    return tokens.detach().float().pow(2).mean(-1).sqrt()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_patch_gives_a_token_as_wide_as_a_word(make_vit, kind):
    tower = build_tower(make_vit(kind))
    mlp = build_connector({"plain": True}, tower, 32)
    assert isinstance(mlp, PlainMLP)
    assert mlp.tokens_per_image == tower.num_states(mlp.select) == 16
    assert mlp(torch.randn(3, 16, 24)).shape == (3, 16, 32)
    assert sum(p.numel() for p in mlp.parameters()) == 24 * 32 + 32 + 32 * 32 + 32


def test_it_is_transformers_projector():
    vision = CLIPVisionConfig(hidden_size=24, num_attention_heads=4)
    text = LlamaConfig(hidden_size=32, num_attention_heads=4)
    theirs = LlavaMultiModalProjector(LlavaConfig(vision_config=vision, text_config=text)).double()
    ours = PlainMLP(24, 32, (4, 4), output_scale=0.3).double()
    theirs.linear_1.load_state_dict(ours.local[0].state_dict())
    theirs.linear_2.load_state_dict(ours.local[2].state_dict())
    states = torch.randn(3, 16, 24, dtype=torch.float64)
    torch.testing.assert_close(ours(states), theirs(states), rtol=0, atol=1e-12)


def test_a_fresh_ones_tokens_are_as_large_as_was_asked_and_training_may_change_that(make_vit):
    torch.manual_seed(0)
    tower = build_tower(make_vit("clip"))
    scaled = build_connector({"plain": True, "output_scale": 3.0}, tower, 32, seed=0)
    free = build_connector({"plain": True}, tower, 32, seed=0)
    states = torch.randn(8, 16, 24)
    assert float(sizes(scaled(states)).mean()) == pytest.approx(3.0, rel=0.3)
    cosine = torch.cosine_similarity(scaled(states), free(states), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    with torch.no_grad():
        scaled.local[2].weight.mul_(2)
        scaled.local[2].bias.mul_(2)
    assert float(sizes(scaled(states)).mean()) == pytest.approx(6.0, rel=0.3)


def test_it_enters_at_a_size_measured_with_the_states_it_is_shown():
    mlp = PlainMLP(24, 32, (4, 4), output_scale=1.0)
    large = 30 * torch.randn(5, 16, 24)
    mlp.enter_at(0.07, large)
    assert float(sizes(mlp(large)).mean()) == pytest.approx(0.07, rel=1e-4)


def test_drawn_anew_it_is_as_large_again():
    torch.manual_seed(0)
    mlp = PlainMLP(24, 32, (4, 4), output_scale=3.0)
    before = mlp.local[0].weight.clone()
    mlp.reset_parameters()
    assert not torch.equal(mlp.local[0].weight, before)
    assert float(sizes(mlp(torch.randn(8, 16, 24))).mean()) == pytest.approx(3.0, rel=0.3)


def test_a_seed_decides_and_its_options_build_it_again(make_vit):
    tower = build_tower(make_vit("clip"))
    state = torch.get_rng_state()
    options = {"type": "patch_mlp", "plain": True, "output_scale": 0.5}
    one, other = (build_connector(options, tower, 32, seed=seed) for seed in (3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.config() == options
    same = build_connector(one.config(), tower, 32, seed=3)
    assert all(map(torch.equal, one.state_dict().values(), same.state_dict().values()))
    assert not torch.equal(one.local[0].weight, other.local[0].weight)


def test_on_meta_it_is_built_without_numbers():
    with torch.device("meta"):
        mlp = PlainMLP(1024, 4096, (24, 24), output_scale=1.0)
    assert mlp(torch.empty(1, 576, 1024, device="meta")).shape == (1, 576, 4096)


def test_bfloat16_states_train_its_float32_numbers():
    mlp = PlainMLP(24, 32, (4, 4))
    mlp(torch.randn(2, 16, 24).bfloat16()).pow(2).sum().backward()
    assert all(p.dtype == torch.float32 and p.grad.abs().max() > 0 for p in mlp.parameters())


def test_states_of_another_grid_are_refused():
    with pytest.raises(ModelError, match="built for 4 x 4 cells and was given 9 states"):
        PlainMLP(24, 32, (4, 4))(torch.randn(1, 9, 24))
