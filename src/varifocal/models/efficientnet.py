"""EfficientNet-Lite: the small convolutional network that needs no hub to be had.

Published by Tan and Le's team with the TensorFlow TPU models (Apache-2.0): EfficientNet
(arXiv 1905.11946) without squeeze-and-excite, with ReLU6 for swish, and with a stem and a head that
do not grow with the width multiplier. This is our own module; its parameters carry the names of
the PyTorch port's checkpoints less their leading underscores (`_blocks.0._bn1` is `blocks.0.bn1`).

Letters: N images, C channels, H height, W width.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

# variant -> width multiplier, depth multiplier, image side in pixels
SCALES: dict[str, tuple[float, float, int]] = {
    "lite0": (1.0, 1.0, 224),
    "lite1": (1.0, 1.1, 240),
    "lite2": (1.1, 1.2, 260),
}
# repeats, kernel size, stride, expansion, output channels: the seven stages of EfficientNet-B0
STAGES: tuple[tuple[int, int, int, int, int], ...] = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
BN_EPS = 1e-3
BN_MOMENTUM = 0.01


class EfficientNetLiteConfig(PreTrainedConfig):
    """Which EfficientNet-Lite: its multipliers and the side of the images it was trained on.

    Args:
        width_multiplier: factor on the channels of every stage, not of the stem or the head.
        depth_multiplier: factor on the repeats of every stage but the first and the last.
        image_size: side of the square image in pixels.
    """

    model_type = "efficientnet_lite"

    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    image_size: int = 224

    @classmethod
    def variant(cls, name: str) -> "EfficientNetLiteConfig":
        """Return the published configuration of `lite0`, `lite1` or `lite2`."""
        width, depth, size = SCALES[name]
        return cls(width_multiplier=width, depth_multiplier=depth, image_size=size)


def scale_channels(channels: int, multiplier: float, divisor: int = 8) -> int:
    """Scale a channel count and round it to a multiple of 8, never down by more than 10 %."""
    scaled = channels * multiplier
    rounded = max(divisor, int(scaled + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * scaled else rounded


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's `SAME`: ceil(side / stride) outputs, odd pad last."""

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', ceil(H / stride), ceil(W / stride)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (
            max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
            for side in input.shape[-2:]
        )
        if height or width:
            before_h, before_w = height // 2, width // 2
            input = F.pad(input, (before_w, width - before_w, before_h, height - before_h))
        return super().forward(input)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPS, momentum=BN_MOMENTUM)


class InvertedResidual(nn.Module):
    """Widen by a 1x1 convolution, filter each channel on its own, narrow again, add the input."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand_conv = SameConv2d(channels, wide, 1, bias=False) if expansion != 1 else None
        self.bn0 = _norm(wide) if expansion != 1 else None
        self.depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self.bn1 = _norm(wide)
        self.project_conv = SameConv2d(wide, out_channels, 1, bias=False)
        self.bn2 = _norm(out_channels)
        self.residual = stride == 1 and channels == out_channels

    def forward(self, input: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, C', H / stride, W / stride]."""
        x = input
        if self.expand_conv is not None and self.bn0 is not None:
            x = F.relu6(self.bn0(self.expand_conv(x)))
        x = F.relu6(self.bn1(self.depthwise_conv(x)))
        x = self.bn2(self.project_conv(x))
        return x + input if self.residual else x


def _blocks(config: EfficientNetLiteConfig) -> nn.ModuleList:
    """Lay out the stages; the first and the last are not repeated by depth scaling."""
    blocks = nn.ModuleList()
    channels = STEM_CHANNELS
    for stage, (repeats, kernel, stride, expansion, base) in enumerate(STAGES):
        out_channels = scale_channels(base, config.width_multiplier)
        if 0 < stage < len(STAGES) - 1:
            repeats = math.ceil(repeats * config.depth_multiplier)
        for repeat in range(repeats):
            step = stride if repeat == 0 else 1
            blocks.append(InvertedResidual(channels, out_channels, kernel, step, expansion))
            channels = out_channels
    return blocks


class EfficientNetLite(PreTrainedModel):
    """EfficientNet-Lite without its classifier.

    Batch norms always use their stored statistics, in training too: a tower that is frozen or
    tuned by adapters must give an image the same features whatever its batch mates.
    """

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    # it has no attention, so any choice of attention code for the whole model suits it
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self._no_split_modules = {InvertedResidual.__name__}
        # In bfloat16 the features move by 6 % and no time is saved on a CPU: the 3.4M weights stay
        # float32 whatever dtype the language model is loaded in.
        self._keep_in_fp32_modules_strict = {"conv", "bn0", "bn1", "bn2"}
        self.conv_stem = SameConv2d(3, STEM_CHANNELS, 3, 2, bias=False)
        self.bn0 = _norm(STEM_CHANNELS)
        self.blocks = _blocks(config)
        last = scale_channels(STAGES[-1][-1], config.width_multiplier)
        self.conv_head = SameConv2d(last, HEAD_CHANNELS, 1, bias=False)
        self.bn1 = _norm(HEAD_CHANNELS)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the stem: the first thing an image meets."""
        return self.conv_stem

    def train(self, mode: bool = True) -> "EfficientNetLite":
        """Set the training mode, of everything but the batch norms."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> Tensor:
        """Return the head's map before pooling.

        Args:
            pixel_values: [N, 3, H, W], normalised as (rgb - 127) / 128 with rgb in 0..255.
            kwargs: ignored, as other transformers vision models do.

        Returns:
            [N, 1280, ceil(H / 32), ceil(W / 32)], each value between 0 and 6.
        """
        # half as long again is spent on a CPU when channels come first
        pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        x = F.relu6(self.bn0(self.conv_stem(pixel_values)))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.bn1(self.conv_head(x)))

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as the paper's code does: normal, scaled to the fan out."""
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] ** 2 * module.out_channels // module.groups
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


def from_port(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename a PyTorch port's checkpoint to this module's names, leaving out the classifier."""
    return {
        ".".join(part.lstrip("_") for part in name.split(".")): tensor
        for name, tensor in state.items()
        if not name.startswith("_fc.")
    }


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLite, exist_ok=True)
