"""Mixture-of-Modality Adaptation (LaVIN, arXiv 2305.15023) as a PEFT method.

Dimensions: B rows or images, T tokens or cells, D width, R bottleneck, G groups; 2 branches, 2
modalities (0 text, 1 image).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType
from torch import Tensor, nn

from .plugin import register
from .routing import ModalityEmbedding, RoutingPass, TokenRouting
from .sites import Router, ancestors, find_sites, image_token_ids, site_of, token_embedding

MODALITY_EMBEDDING = "modality_embedding"
"""Name under which a decoder holds its modality tokens."""


@dataclass
class MMAConfig(PeftConfig):
    """Settings of Mixture-of-Modality Adaptation; the defaults are LaVIN-7B's.

    Args:
        bottleneck_dim: R, width of the adapter's bottleneck; a positive multiple of `num_groups`.
        num_groups: G, groups of the up-projections; must divide the width of every adapted layer.
        dropout: probability of dropping a bottleneck unit in training, in [0, 1).
        scale: s, factor on the adapter's output.
        router_temperature: tau of the routing softmax, above 0 (LaVIN: 10 for 7B, 5 for 13B).
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
    router_temperature: float = field(default=10.0)
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
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if not self.router_temperature > 0:
            raise ValueError(f"router_temperature must be above 0; got {self.router_temperature}")


class BranchUp(nn.Module):
    """The two grouped up-projections B0, B1 of an adapter, zero at the start.

    Output unit i of branch m reads only the bottleneck units of its own group,
    `B_m(h)_i = weight[m, i] . h_group(i) + bias[m, i]`, as a grouped 1x1 convolution does.

    Args:
        width: D, a multiple of `num_groups`.
        bottleneck_dim: R, a multiple of `num_groups`.
        num_groups: G.

    Raises:
        ValueError: if the groups do not divide the width.
    """

    def __init__(self, width: int, bottleneck_dim: int, num_groups: int) -> None:
        super().__init__()
        if width % num_groups:
            raise ValueError(f"num_groups={num_groups} does not divide the layer's width {width}")
        self.weight = nn.Parameter(torch.zeros(2, width, bottleneck_dim // num_groups))
        self.bias = nn.Parameter(torch.zeros(2, width))


class MMALayer(nn.Module, BaseTunerLayer):
    """A norm followed by LaVIN's mixture-of-modality adapter.

    Implements `Z' = Z + s * router(f_a1(Z), f_a2(Z); f_w(h))` of arXiv 2305.15023, section 3.1,
    with the two branches sharing their down-projection:

        z = norm(x)
        y = z + s * (w_0 B_0(A z) + w_1 B_1(A z)),    w = softmax((W h + b) / tau)

    A: D -> R with bias, dropout after it; B_0, B_1: R -> D in G groups with bias, zero at the
    start, so y = z until training moves them. Which state h routes depends on `router`:

    - "modality" (language models): the modality token's own state in this layer. Its weights w are
      a table [2 modalities, 2 branches], computed once per forward pass and looked up by each
      token's `modality_ids`; see `routing.py`.
    - "cls" (vision towers): each image's own CLS state z[:, 0].
    - "mean" (vision towers without a CLS token, such as SigLIP): each image's own mean state.

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

    def update_layer(self, adapter_name: str, config: MMAConfig) -> None:
        """Add a fresh adapter, on the device and in the dtype of the norm."""
        down = nn.Linear(self.width, config.bottleneck_dim)
        nn.init.xavier_uniform_(down.weight)
        nn.init.zeros_(down.bias)
        self.mma_down[adapter_name] = down
        self.mma_up[adapter_name] = BranchUp(self.width, config.bottleneck_dim, config.num_groups)
        self.mma_router[adapter_name] = nn.Linear(self.width, 2)
        self.mma_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.mma_config[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
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
            ValueError: if several adapters are active, or a tower's states are not [B, T, D].
        """
        z = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return z
        if self.router == "modality":
            return self._adapt_tokens(z)
        adapter = self._active_here()
        if adapter is None:
            return z
        if z.dim() != 3:
            raise ValueError(
                f"{self.name}: MMA routes each image by its own states and needs [images, cells, "
                f"width]; got {list(z.shape)}. Set vision_tower=False for this model"
            )
        state = z[:, :1] if self.router == "cls" else z.mean(dim=1, keepdim=True)  # [B, 1, D]
        up = cast(BranchUp, self.mma_up[adapter])
        return self._mix(adapter, z, self._route(adapter, state), up.weight, up.bias)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge; see `MMAModel`."""
        raise ValueError(_NO_MERGE)

    def _active_here(self) -> str | None:
        active = [name for name in self.active_adapters if name in self.mma_down]
        if len(active) > 1:
            raise ValueError(f"MMA runs one adapter at a time; got {active}")
        return active[0] if active else None

    def _adapt_tokens(self, z: Tensor) -> Tensor:
        context = self.context
        if context is None:
            if self._active_here() is None:
                return z
            raise RuntimeError(
                f"{self.name} ran outside its decoder's forward pass, where its routing is set. "
                "Checkpoint activations through transformers (gradient_checkpointing), and spread "
                "over devices with torchrun, not nn.DataParallel"
            )
        up = cast(BranchUp, self.mma_up[context.adapter])
        if isinstance(context, RoutingPass):
            weights = self._route(context.adapter, z)  # [2, 1, 2]
            context.table = weights[:, 0]
            return self._mix(context.adapter, z, weights, up.weight, up.bias)
        # Few weights, many tokens: mix the branches of each modality, then look modalities up.
        table = context.table if context.modality is not None else context.table[:1]  # [M, 2]
        weight = torch.einsum("mb,bdk->mdk", table, up.weight.to(table.dtype))
        bias = table @ up.bias.to(table.dtype)
        return self._mix(context.adapter, z, context.modality, weight, bias)

    def _route(self, adapter: str, state: Tensor) -> Tensor:
        """Turn routing states [..., D] into branch weights [..., 2], in float32 at least."""
        router = cast(nn.Linear, self.mma_router[adapter])
        dtype = torch.promote_types(state.dtype, torch.float32)
        logits = F.linear(state.to(dtype), router.weight.to(dtype), router.bias.to(dtype))
        return torch.softmax(logits / self.mma_config[adapter].router_temperature, dim=-1)

    def _mix(
        self, adapter: str, z: Tensor, shares: Tensor | None, weight: Tensor, bias: Tensor
    ) -> Tensor:
        """Add `s * sum_m shares[..., m] * (weight[m] h + bias[m])`, h the bottleneck, to z.

        One skinny product down, one up: the shares are multiplied into the bottleneck, and the
        grouped projections of all m stand below one another in one block matrix.

        Args:
            adapter: the adapter's name.
            z: [B, T, D].
            shares: [B, T or 1, M]; None for M = 1 and a share of 1.
            weight: [M, D, R / G].
            bias: [M, D].
        """
        down = cast(nn.Linear, self.mma_down[adapter])
        h = F.linear(z, down.weight.to(z.dtype), down.bias.to(z.dtype))
        h = F.pad(self.mma_dropout[adapter](h), (0, 1), value=1.0)  # [B, T, R + 1]
        if shares is not None:
            h = (shares.to(z.dtype)[..., None] * h[..., None, :]).flatten(-2)  # [B, T, M (R + 1)]
        block = _block_matrix(weight, bias, down.out_features).to(z.dtype)
        delta_scale = self.mma_config[adapter].scale
        y = torch.addmm(z.flatten(0, -2), h.flatten(0, -2), block, alpha=delta_scale)
        return y.view_as(z).to(z.dtype)


_NO_MERGE = (
    "MMA cannot be merged into the base weights: each modality, and each image in a vision tower, "
    "mixes the branches with its own weights. Fold it per modality when exporting instead"
)


class MMAModel(BaseTuner):
    """Puts MMA layers around the norms before self-attention, and modality tokens into decoders.

    Merging is refused (`merge_and_unload`, `merge_adapter`): the weights depend on the modality.

    Args:
        model: any transformers model.
        peft_config: `MMAConfig`, alone or by adapter name.
        adapter_name: name of the adapter.
    """

    prefix = "mma_"
    # PEFT only asks isinstance, which takes a tuple.
    tuner_layer_cls = (MMALayer, ModalityEmbedding)  # pyright: ignore[reportAssignmentType]

    def unload(self) -> nn.Module:
        """Return the base model without adapters, modality tokens or hooks."""
        model = super().unload()
        for _, decoder in decoders(model):
            getattr(decoder, MODALITY_EMBEDDING).remove_hooks()
            delattr(decoder, MODALITY_EMBEDDING)
        return model

    def _prepare_adapter_config(
        self, peft_config: PeftConfig, model_config: dict[str, Any]
    ) -> PeftConfig:
        config = cast(MMAConfig, peft_config)
        if config.target_modules is None:
            names = [s.name for s in find_sites(self.model, vision_tower=config.vision_tower)]
            if not names:
                raise ValueError(
                    f"found no norm before self-attention in {type(self.model).__name__}; name the "
                    "norms in target_modules"
                )
            config.target_modules = _shortest(names, self.model)
        return config

    def _check_merge_allowed(self) -> None:
        raise ValueError(_NO_MERGE)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        config = cast(MMAConfig, peft_config)
        site = site_of(self.model, current_key)
        if site is None:
            raise ValueError(
                f"{current_key} is neither in a language model's decoder layers nor in a vision "
                "tower's blocks; change target_modules"
            )
        layer = target if isinstance(target, MMALayer) else None
        if layer is None:
            layer = MMALayer(target, site.router, current_key)
            layer.set_adapter(self.active_adapters)
            setattr(parent, target_name, layer)
        layer.update_layer(adapter_name, config)
        if site.router == "modality":
            tokens = _modality_embedding(self.model, site.owner, adapter_name, layer.width)
            tokens.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
            inside = current_key[len(site.owner) + 1 :] if site.owner else current_key
            tokens.layer_names[adapter_name].append(inside)


def decoders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk through the language model decoders of a model that hold modality tokens."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(getattr(module, MODALITY_EMBEDDING, None), ModalityEmbedding)
    ]
    # A PeftModel lends its base model's attributes; only the decoder itself owns the child.
    yield from ((name, m) for name, m in found if MODALITY_EMBEDDING in m._modules)


def routing_table(model: nn.Module, adapter_name: str | None = None) -> dict[str, Tensor]:
    """Read the branch weights of each modality in every adapted decoder layer.

    Args:
        model: a model with an MMA adapter, as a `PeftModel` or not.
        adapter_name: the adapter; by default the active one.

    Returns:
        For each adapted norm's name in the base model, in order, the weights [2 modalities, 2
        branches]: rows text and image, each adding up to 1. float32 on the CPU. Vision towers are
        not listed: their weights belong to single images.

    Raises:
        ValueError: if no decoder holds that adapter.
    """
    tables: dict[str, Tensor] = {}
    for _, decoder in decoders(model):
        tokens = cast(ModalityEmbedding, decoder.modality_embedding)
        adapter = adapter_name or next(iter(tokens.active_adapters), "")
        if adapter in tokens.layer_names:
            with torch.no_grad(), _evaluating(decoder):
                found = tokens.tables(decoder, adapter)
            layers = cast(list[MMALayer], tokens.layers(decoder, adapter))
            tables |= {lay.name: t.float().cpu() for lay, t in zip(layers, found, strict=True)}
    if not tables:
        raise ValueError(f"no language model here holds an MMA adapter '{adapter_name or ''}'")
    return tables


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training


def _block_matrix(weight: Tensor, bias: Tensor, bottleneck_dim: int) -> Tensor:
    """Lay grouped projections out as one matrix.

    Args:
        weight: [M, D, R / G].
        bias: [M, D].
        bottleneck_dim: R.

    Returns:
        [M (R + 1), D]: for each m, R rows that are zero outside their group's outputs, and its
        bias.
    """
    num_mixtures, width, per_group = weight.shape
    groups = bottleneck_dim // per_group
    grouped = weight.view(num_mixtures, groups, width // groups, per_group)
    own = torch.eye(groups, dtype=weight.dtype, device=weight.device)
    rows = torch.einsum("gc,mcok->mgkco", own, grouped).reshape(num_mixtures, -1, width)
    return torch.cat([rows, bias[:, None]], dim=1).flatten(0, 1)


def _width(norm: nn.Module, name: str) -> int:
    weight = getattr(norm, "weight", None)
    shape = weight.shape if weight is not None else getattr(norm, "normalized_shape", ())
    if len(shape) != 1:
        raise ValueError(f"{name} is no norm over one dimension; got {type(norm).__name__}")
    return int(shape[0])


def _shortest(names: list[str], model: nn.Module) -> list[str]:
    """Name modules by their last part where that means no other module."""
    leaves = {name.rpartition(".")[2] for name in names}
    same = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in leaves}
    return sorted(leaves) if same == set(names) else names


def _modality_embedding(
    model: nn.Module, owner: str, adapter_name: str, width: int
) -> ModalityEmbedding:
    decoder = model.get_submodule(owner)
    if MODALITY_EMBEDDING not in decoder._modules:
        outer = [m for name, m in ancestors(model, owner) if name != owner]
        readers = [m for m in (*outer, decoder) if image_token_ids(m)]
        setattr(
            decoder,
            MODALITY_EMBEDDING,
            ModalityEmbedding(decoder, readers[0] if readers else None),
        )
    tokens = cast(ModalityEmbedding, decoder.modality_embedding)
    if adapter_name not in tokens.mma_embedding:
        like = cast(nn.Embedding, token_embedding(decoder)).weight
        tokens.add(adapter_name, width, like)
    return tokens


register("mma", MMAConfig, MMAModel)
