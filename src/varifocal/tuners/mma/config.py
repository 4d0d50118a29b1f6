"""The settings of MMA as PEFT keeps them in `adapter_config.json`."""

from dataclasses import dataclass, field
from typing import Literal

from peft import PeftConfig
from peft.utils import PeftType

from ..modality import TextRoute, check_text_route


@dataclass
class MMAConfig(PeftConfig):
    """Settings of Mixture-of-Modality Adaptation; the defaults are LaVIN-7B's.

    Args:
        bottleneck_dim: R, width of the adapter's bottleneck; a positive multiple of `num_groups`.
        num_groups: G, groups of the up-projections; must divide the width of every adapted layer.
        dropout: probability of dropping a bottleneck unit in training, in [0, 1).
        scale: s, factor on the adapter's output.
        projection_bias: whether the projections have biases, as LaVIN's have. Without them a
            route is exactly a LoRA of rank R on the linears that read a norm, which servers of
            LoRAs take.
        router: whether a router mixes two branches, and what routes an image in a vision tower.
            True: each image's own CLS state, or its mean state where there is no CLS token.
            "token": each patch routes itself, as in LaVIN's public code for a batch of one image;
            their checkpoints need it. A language model is routed by modality either way. False: one
            branch, alike for text and images, and no modality tokens: the plain adapter that
            LaVIN's ablation compares with. At equal parameters its bottleneck is about one and a
            half times as wide.
        router_temperature: tau of the routing softmax, above 0 (LaVIN: 10 for 7B, 5 for 13B).
        text_route: what samples without an image run through in the language model: "trained", the
            adapter, mixed for text; or "base", the base model alone, to the last bit. Then nothing
            is learned from text, and an adapter runs only for tokens of samples with an image.
        target_modules: norms to adapt, as a list of name endings or a regular expression, as
            everywhere in PEFT. None: the norm before self-attention in every decoder layer and,
            with `vision_tower`, in every ViT block, found by structure.
        exclude_modules: names not to adapt, in the same two forms.
        vision_tower: whether vision towers get adapters; read where `target_modules` is None.
        modules_to_save: modules trained whole and saved with the adapter, such as a connector.
        base_fingerprint: content hash of the base model; carried along, for the loader to compare.

    Raises:
        ValueError: naming the value that is out of range.
    """

    bottleneck_dim: int = field(default=8)
    num_groups: int = field(default=2)
    dropout: float = field(default=0.1)
    scale: float = field(default=1.0)
    projection_bias: bool = field(default=True)
    router: bool | Literal["token"] = field(default=True)
    router_temperature: float = field(default=10.0)
    text_route: TextRoute = field(default="trained")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    vision_tower: bool = field(default=True)
    modules_to_save: list[str] | None = field(default=None)
    base_fingerprint: str | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("MMA")
        if self.num_groups < 1:
            raise ValueError(f"num_groups must be at least 1; got {self.num_groups}")
        if self.bottleneck_dim < 1 or self.bottleneck_dim % self.num_groups:
            raise ValueError(
                f"bottleneck_dim must be a positive multiple of num_groups={self.num_groups}; "
                f"got {self.bottleneck_dim}"
            )
        if self.router not in (True, False, "token"):
            raise ValueError(f"router must be true, false or 'token'; got {self.router!r}")
        check_text_route(self.text_route)
        if self.text_route == "base" and not self.router:
            raise ValueError(
                "text_route='base' needs router=True: without a router text and images share the "
                "one branch"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if not self.router_temperature > 0:
            raise ValueError(f"router_temperature must be above 0; got {self.router_temperature}")
