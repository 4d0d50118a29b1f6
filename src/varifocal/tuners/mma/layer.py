"""MMA's layer: a norm, then two bottleneck branches mixed by a router.

Dimensions: B rows or images, T tokens or cells, D width, R bottleneck, G groups; 2 branches, 2
modalities (0 text, 1 image), M mixtures of branches.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..sites import Router
from .config import MMAConfig
from .routing import RoutingPass, TokenRouting

NO_MERGE = (
    "MMA cannot be merged into the base weights: each modality, and each image in a vision tower, "
    "mixes the branches with its own weights, and without a router an adapter is no scale a norm "
    "could hold. Fold it per modality when exporting instead"
)


class BranchUp(nn.Module):
    """The grouped up-projections B0, B1 (or B0 alone) of an adapter, zero at the start.

    Output unit i of branch k reads only the bottleneck units of its own group,
    `B_k(h)_i = weight[k, i] . h_group(i) + bias[k, i]`, as a grouped 1x1 convolution does.
    `weight` is [K, D, R / G], `bias` [K, D] or None, K branches.

    Args:
        num_branches: K.
        width: D, a multiple of `num_groups`.
        bottleneck_dim: R, a multiple of `num_groups`.
        num_groups: G.
        bias: whether there is one.

    Raises:
        ValueError: if the groups do not divide the width.
    """

    def __init__(
        self,
        num_branches: int,
        width: int,
        bottleneck_dim: int,
        num_groups: int,
        bias: bool = True,
    ) -> None:
        super().__init__()
        if width % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide the layer's width {width}")
        self.weight = nn.Parameter(torch.zeros(num_branches, width, bottleneck_dim // num_groups))
        self.bias = nn.Parameter(torch.zeros(num_branches, width)) if bias else None


class MMALayer(nn.Module, BaseTunerLayer):
    """A norm followed by LaVIN's mixture-of-modality adapter.

    Implements `Z' = Z + s * router(f_a1(Z), f_a2(Z); f_w(h))` of LaVIN (arXiv 2305.15023), with
    two branches that share their down-projection:

        z = norm(x)
        y = z + s * (w_0 B_0(A z) + w_1 B_1(A z)),    w = softmax((W h + b) / tau)

    A: D -> R with bias, dropout after it; B_0, B_1: R -> D in G groups with bias, zero at the
    start, so y = z until training moves them (`projection_bias=False` leaves the biases of A
    and B out). Which state h routes depends on `router`:

    - "modality" (language models): the modality token's own state in this layer. Its weights w are
      a table [2 modalities, 2 branches], computed once per forward pass and looked up by each
      token's `modality_ids`; see `routing.py`. With `text_route="base"` the table's text row is
      zero, so text has y = z.
    - "cls" (vision towers): each image's own CLS state z[:, 0].
    - "mean" (vision towers without a CLS token, such as SigLIP): each image's own mean state.

    An adapter whose config says `router="token"` routes each state of a vision tower by itself, h =
    z[:, t]. One whose config says `router=False` has one branch and asks for no state:
    `y = z + s * B_0(A z)`.

    Args:
        base_layer: the norm, D wide.
        router: whose state routes.
        name: the norm's name in the model, for error messages.
    """

    adapter_layer_names = ("mma_down", "mma_up", "mma_router")
    other_param_names = ("mma_dropout", "mma_config")

    def __init__(self, base_layer: nn.Module, router: Router, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.router: Router = router
        self.name = name
        self.width = _width(base_layer, name)
        self.mma_down = nn.ModuleDict()
        self.mma_up = nn.ModuleDict()
        self.mma_router = nn.ModuleDict()
        self.mma_dropout = nn.ModuleDict()
        self.mma_config: dict[str, MMAConfig] = {}
        self.context: RoutingPass | TokenRouting | None = None
        self.merged_adapters: list[str] = []

    def matrix_products(self) -> Iterator[tuple[int, bool]]:
        """Yield the multiply-adds a token of each product, and whether its weight is trained.

        The down-projection, and the one up: a block [2 (R + 1), D] for two modalities. There is one
        block of R + 1 rows without a router, for both, and with text left to the base, for images.
        """
        for name in self.active_adapters:
            if name in self.mma_down:
                down, up = cast(nn.Linear, self.mma_down[name]), self.mma_up[name]
                yield down.in_features * down.out_features, _trains(down)
                both = name in self.mma_router and self.mma_config[name].text_route == "trained"
                mixtures = 2 if both else 1
                yield mixtures * (down.out_features + 1) * self.width, _trains(up)

    def update_layer(self, adapter_name: str, config: MMAConfig) -> None:
        """Add a fresh adapter: device, dtype and training mode are the norm's."""
        down = nn.Linear(self.width, config.bottleneck_dim, bias=config.projection_bias)
        nn.init.xavier_uniform_(down.weight)
        if config.projection_bias:
            nn.init.zeros_(down.bias)
        self.mma_down[adapter_name] = down
        self.mma_up[adapter_name] = BranchUp(
            2 if config.router else 1,
            self.width,
            config.bottleneck_dim,
            config.num_groups,
            config.projection_bias,
        )
        if config.router:
            self.mma_router[adapter_name] = nn.Linear(self.width, 2)
        self.mma_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.mma_config[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.train(self.base_layer.training)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Norm, then adapt.

        Args:
            x: [B, T, D] hidden states before the norm.
            *args: further arguments of the norm.
            **kwargs: further arguments of the norm.

        Returns:
            [B, T, D] in the norm's own output dtype.

        Raises:
            RuntimeError: if a language model's layer runs outside its decoder's forward pass.
            ValueError: if several adapters are active, or the states are not [B, T, D].
        """
        z = self.base_layer(x, *args, **kwargs)
        adapter = self._adapter()
        if adapter is None:
            return z
        up = cast(BranchUp, self.mma_up[adapter])
        if not self.mma_config[adapter].router:
            return self._mix(adapter, z, None, up.weight, up.bias)
        if self._routes_tokens(adapter):
            return self._mix(adapter, z, self._route_tokens(adapter, z), up.weight, up.bias)
        if z.dim() != 3:
            raise ValueError(
                f"{self.name}: MMA routes by whole rows or images and needs states [rows, tokens, "
                f"width]; got {list(z.shape)}. Change target_modules, or set vision_tower=False"
            )
        if self.router == "modality":
            return self._adapt_tokens(adapter, z)
        state = z[:, :1] if self.router == "cls" else z.mean(dim=1, keepdim=True)  # [B, 1, D]
        return self._mix(adapter, z, self._route(adapter, state), up.weight, up.bias)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge; see `MMAModel`."""
        raise ValueError(NO_MERGE)

    def _adapter(self) -> str | None:
        """Name the adapter to run, None for none; in a language model the decoder has chosen."""
        if self.context is not None:
            return self.context.adapter if self.context.adapter in self.mma_down else None
        if self.disable_adapters:
            return None
        active = [name for name in self.active_adapters if name in self.mma_down]
        if len(active) > 1:
            raise ValueError(f"MMA runs one adapter at a time; got {active}")
        return active[0] if active else None

    def _adapt_tokens(self, adapter: str, z: Tensor) -> Tensor:
        context = self.context
        if context is None:
            raise RuntimeError(
                f"{self.name} ran outside its decoder's forward pass, where its routing is set. "
                "Checkpoint activations through transformers (gradient_checkpointing), and spread "
                "over devices with torchrun, not nn.DataParallel"
            )
        up = cast(BranchUp, self.mma_up[adapter])
        if isinstance(context, RoutingPass):
            weights = self._route(adapter, z)  # [2, 1, 2]
            context.table = weights[:, 0]
            return self._mix(adapter, z, weights, up.weight, up.bias)
        table, shares = context.table, context.modality
        if self.mma_config[adapter].text_route == "base":
            if shares is None:
                return z
            table, shares = table[1:], shares[..., 1:]
        elif shares is None:
            table = table[:1]
        # Few weights, many tokens: mix the branches of each modality, then look modalities up.
        weight = torch.einsum("mb,bdk->mdk", table, up.weight.to(table.dtype))
        bias = None if up.bias is None else table @ up.bias.to(table.dtype)
        return self._mix(adapter, z, shares, weight, bias)

    def _route(self, adapter: str, state: Tensor) -> Tensor:
        """Turn routing states [..., D] into branch weights [..., 2], in float32 at least.

        Written as a sum of products: a matrix product's last bits depend on how many rows it has,
        and an image's weights should not depend on its batch mates even there.
        """
        router = cast(nn.Linear, self.mma_router[adapter])
        dtype = torch.promote_types(state.dtype, torch.float32)
        products = state.to(dtype)[..., None, :] * router.weight.to(dtype)  # [..., 2, D]
        logits = products.sum(dim=-1) + router.bias.to(dtype)
        return torch.softmax(logits / self.mma_config[adapter].router_temperature, dim=-1)

    def _routes_tokens(self, adapter: str) -> bool:
        return self.router != "modality" and self.mma_config[adapter].router == "token"

    def _route_tokens(self, adapter: str, z: Tensor) -> Tensor:
        """Turn the states of a tower [..., D] into branch weights of each [..., 2].

        As `_route`, one branch after the other: [..., 2, D] of every state would be large.
        """
        router = cast(nn.Linear, self.mma_router[adapter])
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        sums = [(z * row).sum(dim=-1) for row in router.weight.to(z.dtype)]
        logits = torch.stack(sums, dim=-1) + router.bias.to(z.dtype)
        return torch.softmax(logits / self.mma_config[adapter].router_temperature, dim=-1)

    def _mix(
        self, adapter: str, z: Tensor, shares: Tensor | None, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Add `s * sum_m shares[..., m] * (weight[m] h + bias[m])`, h the bottleneck, to z.

        One skinny product down, one up: the shares are multiplied into the bottleneck, and the
        grouped projections of all m stand below one another in one block matrix.

        Args:
            adapter: the adapter's name.
            z: [B, T, D].
            shares: [B, T or 1, M]; None for M = 1 and a share of 1. A token whose shares are all 0
                keeps its z to the last bit.
            weight: [M, D, R / G].
            bias: [M, D], or None.
        """
        down = cast(nn.Linear, self.mma_down[adapter])
        shift = cast("Tensor | None", down.bias)
        h = F.linear(z, down.weight.to(z.dtype), None if shift is None else shift.to(z.dtype))
        h = F.pad(self.mma_dropout[adapter](h), (0, 1), value=1.0)  # [B, T, R + 1]
        if shares is not None:
            h = (shares.to(z.dtype)[..., None] * h[..., None, :]).flatten(-2)  # [B, T, M (R + 1)]
        block = _block_matrix(weight, bias, down.out_features).to(z.dtype)
        scale = self.mma_config[adapter].scale
        y = torch.addmm(z.flatten(0, -2), h.flatten(0, -2), block, alpha=scale)
        return y.view_as(z).to(z.dtype)


def _block_matrix(weight: Tensor, bias: Tensor | None, bottleneck_dim: int) -> Tensor:
    """Lay grouped projections out as one matrix.

    Args:
        weight: [M, D, R / G].
        bias: [M, D], or None.
        bottleneck_dim: R.

    Returns:
        [M (R + 1), D]: for each m, R rows that are zero outside their group's outputs, and its
        bias, zero where there is none.
    """
    num_mixtures, width, per_group = weight.shape
    groups = bottleneck_dim // per_group
    grouped = weight.view(num_mixtures, groups, width // groups, per_group)
    own = torch.eye(groups, dtype=weight.dtype, device=weight.device)
    rows = torch.einsum("gc,mcok->mgkco", own, grouped).reshape(num_mixtures, -1, width)
    last = weight.new_zeros(num_mixtures, 1, width) if bias is None else bias[:, None]
    return torch.cat([rows, last], dim=1).flatten(0, 1)


def _width(norm: nn.Module, name: str) -> int:
    weight = getattr(norm, "weight", None)
    shape = weight.shape if weight is not None else getattr(norm, "normalized_shape", ())
    if len(shape) != 1:
        raise ValueError(f"{name} is no norm over one dimension; got {type(norm).__name__}")
    return int(shape[0])


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
