"""Vision towers: an image in, a sequence of states out, whatever network is inside.

Letters: N images, K cells or states per image, C tower width, H and W image sides in pixels.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    CLIPVisionModel,
    Dinov2Model,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipVisionModel,
)

from varifocal.errors import ModelError, nearest
from varifocal.models.efficientnet import HEAD_CHANNELS, EfficientNetLite

Selection = Literal["patches", "cls_states", "patches_then_cls"]
CLS_STATE_EVERY = 4
"""`cls_states` reads the CLS token after every fourth block, as LaVIN does."""


LLAVA_FEATURE_LAYER = -2
"""`patches` reads the block before the last one, as LLaVA does of CLIP."""


class VisionTower(nn.Module):
    """A vision model and what a connector must know of it.

    Attributes:
        model: the network itself, a `PreTrainedModel`.
        width: C, the width of a state.
        grid: rows and columns of the patch grid.
        num_patches: cells of the grid.
        num_blocks: residual blocks (0 for a network without a CLS token to follow through them).
        image_size: side of the square image it takes, in pixels.
        feature_layer: which layer's states `patches` reads.
    """

    width: int
    grid: tuple[int, int]
    num_blocks: int
    image_size: int
    feature_layer: int

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        # `PreTrainedModel.post_init` of the grafted model gathers these from its direct children.
        self._no_split_modules = set(model._no_split_modules or [])
        self._keep_in_fp32_modules_strict = set(model._keep_in_fp32_modules_strict or [])

    @property
    def num_patches(self) -> int:
        """Number of cells of the patch grid."""
        return self.grid[0] * self.grid[1]

    def num_states(self, select: Selection) -> int:
        """K: how many states an image gives under a selection."""
        return self.num_blocks // CLS_STATE_EVERY if select == "cls_states" else self.num_patches

    def check(self, select: Selection) -> None:
        """Raise `ModelError` when this tower cannot give what a connector reads."""
        if select not in get_args(Selection):
            allowed = get_args(Selection)
            raise ModelError(
                f"select is {select!r}, not one of {allowed}{nearest(select, allowed)}"
            )

    def forward(self, pixel_values: Tensor, select: Selection = "patches") -> Tensor:
        """Encode images.

        Args:
            pixel_values: [N, 3, H, W], normalised by the tower's own image processor.
            select: `patches`, the grid's cells in row-major order; `cls_states`, the CLS token
                after blocks 4, 8, 12, ... before any final norm; or `patches_then_cls`, the cells
                without the first, and the CLS token last, as llama.cpp passes CLIP's tokens on.

        Returns:
            [N, K, C] in the tower's dtype.

        Raises:
            ModelError: the tower has no such states.
        """
        raise NotImplementedError


class TransformersTower(VisionTower):
    """A ViT of transformers: CLIP, SigLIP or DINOv2.

    Args:
        model: the vision model.
        feature_layer: which state `patches` reads, as LLaVA's `vision_feature_layer` counts them:
            0 is the embeddings, -1 the last block's output before the final norm. None is what
            the vision model's own config says under that name, else -2, LLaVA's choice for CLIP.
        num_prefix_tokens: tokens before the patches: 1 where there is a CLS token, 0 where not.
        image_size: side of the images in pixels, None for the config's. DINOv2 alone takes
            another: its published image processors crop to 224 where the config says 518.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        feature_layer: int | None = None,
        num_prefix_tokens: int = 1,
        image_size: int | None = None,
    ) -> None:
        super().__init__(model)
        config = model.config
        self.width = config.hidden_size
        self.num_blocks = config.num_hidden_layers
        self.image_size = image_size or config.image_size
        if self.image_size != config.image_size and not isinstance(model, Dinov2Model):
            raise ModelError(
                f"{type(model).__name__} takes images of {config.image_size} x"
                f" {config.image_size} pixels, not {self.image_size}"
            )
        side = self.image_size // config.patch_size
        self.grid = (side, side)
        self.num_prefix_tokens = num_prefix_tokens
        if feature_layer is None:
            feature_layer = int(getattr(config, "vision_feature_layer", LLAVA_FEATURE_LAYER))
        self.feature_layer = feature_layer
        states = self.num_blocks + 1
        if not -states <= feature_layer < states:
            raise ModelError(
                f"vision_feature_layer is {feature_layer}; this tower has {self.num_blocks} blocks,"
                f" so it must lie between {-states} and {states - 1}"
            )

    def check(self, select: Selection) -> None:
        """Raise `ModelError` for CLS states of a tower without a CLS token, or with 3 blocks."""
        super().check(select)
        if select == "patches_then_cls" and self.num_prefix_tokens != 1:
            raise ModelError(
                f"{self.model.config.model_type} has no CLS token, and llama.cpp reads its patches "
                "as they are: leave connector.image_tokens out"
            )
        if select == "cls_states" and not self.num_prefix_tokens:
            raise ModelError(
                f"{self.model.config.model_type} has no CLS token, which connector 'cls_pyramid'"
                " reads; use connector 'patch_mlp', or a CLIP or DINOv2 tower"
            )
        if select == "cls_states" and not self.num_states(select):
            raise ModelError(
                f"this tower has {self.num_blocks} blocks, and connector 'cls_pyramid' reads the"
                f" CLS state after every {CLS_STATE_EVERY}th; use connector 'patch_mlp'"
            )

    def forward(self, pixel_values: Tensor, select: Selection = "patches") -> Tensor:
        """Encode images: [N, 3, H, W] to [N, K, C]; see `VisionTower.forward`."""
        self.check(select)
        pixel_values = pixel_values.to(self.model.dtype)
        output = self.model(pixel_values=pixel_values, output_hidden_states=True)
        states = output.hidden_states  # embeddings, then after each block: [N, prefix + cells, C]
        if select == "patches":
            return states[self.feature_layer][:, self.num_prefix_tokens :]
        if select == "patches_then_cls":
            read = states[self.feature_layer]
            return torch.cat([read[:, 2:], read[:, :1]], dim=1)
        after = range(CLS_STATE_EVERY, self.num_blocks + 1, CLS_STATE_EVERY)
        return torch.stack([states[block][:, 0] for block in after], dim=1)


class EfficientNetTower(VisionTower):
    """EfficientNet-Lite's last map, cell by cell: 7x7x1280 for lite0 at 224 pixels."""

    def __init__(
        self, model: EfficientNetLite, feature_layer: int = -1, image_size: int | None = None
    ) -> None:
        super().__init__(model)
        # said by the grafted model's name for it, which no layer of a language model shares
        self._keep_in_fp32_modules_strict = {"vision_tower"}
        if feature_layer != -1:
            raise ModelError(
                f"vision_feature_layer is {feature_layer}; EfficientNet-Lite gives only its last"
                " map: use -1, or leave it out"
            )
        self.width = HEAD_CHANNELS
        self.num_blocks = 0
        self.image_size = image_size or model.config.image_size
        side = -(-self.image_size // 32)
        self.grid = (side, side)
        self.feature_layer = feature_layer

    def check(self, select: Selection) -> None:
        """Raise `ModelError` for anything but patches: a convolutional network has no CLS token."""
        super().check(select)
        if select != "patches":
            raise ModelError(
                "EfficientNet-Lite has no CLS token, which connector 'cls_pyramid' reads;"
                " use connector 'patch_mlp', or a CLIP or DINOv2 tower"
            )

    def forward(self, pixel_values: Tensor, select: Selection = "patches") -> Tensor:
        """Encode images: [N, 3, H, W] to [N, rows x columns, 1280]."""
        self.check(select)
        cells = self.model(pixel_values.to(self.model.dtype))  # [N, C, rows, columns]
        return cells.flatten(2).transpose(1, 2)


PREFIX_TOKENS: dict[type[PreTrainedModel], int] = {
    CLIPVisionModel: 1,
    Dinov2Model: 1,
    SiglipVisionModel: 0,
}
"""The ViTs whose `hidden_states` are known, and how many tokens stand before their patches."""

VISION_MODELS: dict[str, type[PreTrainedModel]] = {
    "clip": CLIPVisionModel,
    "clip_vision_model": CLIPVisionModel,
    "dinov2": Dinov2Model,
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "efficientnet_lite": EfficientNetLite,
}
"""A config's `model_type` -> the vision model that is taken from such a checkpoint."""


def build_tower(
    model: PreTrainedModel, feature_layer: int | None = None, image_size: int | None = None
) -> VisionTower:
    """Wrap a vision model in its tower.

    Args:
        model: `CLIPVisionModel`, `SiglipVisionModel`, `Dinov2Model` or `EfficientNetLite`.
        feature_layer: which layer's patches; None is the tower's own default.
        image_size: side of the images in pixels; None is the model's own.

    Raises:
        ModelError: the model is of no known kind, or cannot do what is asked.
    """
    options = {} if feature_layer is None else {"feature_layer": feature_layer}
    if isinstance(model, EfficientNetLite):
        return EfficientNetTower(model, image_size=image_size, **options)
    prefix = PREFIX_TOKENS.get(type(model))
    if prefix is None:
        known = [kind.__name__ for kind in (*PREFIX_TOKENS, EfficientNetLite)]
        raise ModelError(
            f"{type(model).__name__} is not a vision tower Varifocal knows ({', '.join(known)})"
        )
    return TransformersTower(model, num_prefix_tokens=prefix, image_size=image_size, **options)


def tower_from_config(
    config: PreTrainedConfig, feature_layer: int | None = None, image_size: int | None = None
) -> VisionTower:
    """Build an untrained tower (on the meta device too) from its vision model's config."""
    return build_tower(AutoModel.from_config(config), feature_layer, image_size)
