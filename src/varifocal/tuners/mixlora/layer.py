"""MixLoRA's layer: a linear, and the low-rank update that an instance chooses from two pools.

Dimensions: B rows, T tokens, G routing groups, I inputs and O outputs of the linear, E factors, R
chosen ones (r).
"""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import Tensor, nn

from .config import MixLoraConfig, RoutedConfig
from .groups import Groups, find_groups
from .router import FactorChoice, Router, balance_term, draw_factors, weigh_pairs
from .routing import CachedChoice, Chosen, Context

NO_MERGE = (
    "MixLoRA cannot be merged into the base weights: every prompt chooses its own factors. "
    "varifocal.tuners.route gives the ordinary LoRA that one prompt chooses, which can be merged"
)


class Factors(nn.Module):
    """One pool: E factors, the rows of `weight` [E, I] (A) or [E, O] (B)."""

    def __init__(self, num_factors: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(num_factors, width))


class MixLoraLayer(nn.Module, BaseTunerLayer):
    """A linear with a Conditional Mixture-of-LoRA update.

    Implements arXiv 2402.15896 for pools of rank-1 factors a_e [I], b_e [O], e = 1..E. An instance
    chooses r of each (`Router`), I_1..I_r for A and J_1..J_r for B, ordered by score, and the i-th
    of B is paired with the i-th of A:

        y = W x + (lora_alpha / r) * sum_i w_i b_{J_i} (a_{I_i} . dropout(x))

    The pair's weight w_i is 1 or learnt, see `MixLoraConfig.selection`. With `text_route="base"`
    tokens of samples without an image have y = W x, to the last bit. A starts as
    kaiming_uniform(sqrt(5)), B as zero, so y = W x until training moves it.

    Never a dense update: all E products with A at once, one skinny matrix product whatever the
    instances choose; of each token's E numbers the r chosen go, weighted, to the places of their
    partners in an otherwise empty row; one skinny product with B, added to the base output.

    Linears of a decoder's blocks are routed by the groups that the decoder's hook finds
    (`groups.py`). Any other linear takes each row of its input [B, T, I] as an instance and all its
    tokens as the prompt, such as the patches of an image in a vision tower.

    Args:
        base_layer: the linear; quantised ones are wrapped as they are.
        in_decoder: whether a decoder's hook sets its context.
        name: the linear's name in the model.
    """

    method = "MixLoRA"
    no_merge = NO_MERGE
    adapter_layer_names = ("mixlora_a", "mixlora_b", "mixlora_router")
    other_param_names = ("mixlora_dropout", "mixlora_config")

    def __init__(self, base_layer: nn.Module, in_decoder: bool, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_decoder = in_decoder
        self.name = name
        self.in_features, self.out_features = _sizes(base_layer, name)
        self.mixlora_a = nn.ModuleDict()
        self.mixlora_b = nn.ModuleDict()
        self.mixlora_router = nn.ModuleDict()
        self.mixlora_dropout = nn.ModuleDict()
        self.mixlora_config: dict[str, RoutedConfig] = {}
        self.context: Context | None = None
        self.listeners: list[Callable[[Chosen], None]] = []
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: RoutedConfig) -> None:
        """Add a fresh adapter: device, dtype and training mode are the linear's."""
        size = self._pool_size(config)
        pool = Factors(size, self.in_features)
        nn.init.kaiming_uniform_(pool.weight, a=math.sqrt(5))
        self.mixlora_a[adapter_name] = pool
        self.mixlora_b[adapter_name] = Factors(size, self.out_features)
        # after the pools: a seed draws what it drew before there were other kinds of routers
        if (router := self._router(config)) is not None:
            self.mixlora_router[adapter_name] = router
        self.mixlora_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.mixlora_config[adapter_name] = config
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.train(self.base_layer.training)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the linear and add the update.

        Args:
            x: [B, T, I].
            *args: further arguments of the linear.
            **kwargs: further arguments of the linear.

        Returns:
            [B, T, O] in the linear's own output dtype.

        Raises:
            RuntimeError: if a decoder's linear runs outside its decoder's forward pass.
            ValueError: if several adapters are active, or x is not [B, T, I].
        """
        y = self.base_layer(x, *args, **kwargs)
        adapter = self.adapter()
        if adapter is None:
            return y
        if x.dim() != 3:
            raise ValueError(
                f"{self.name}: {self.method} routes by rows and needs inputs [rows, tokens, "
                f"width]; got {list(x.shape)}. Leave it out of target_modules"
            )
        choice, groups = self._choose(adapter, x)
        if self.context is not None and self.context.is_left:
            return y
        return self._update(adapter, x, y, choice, groups)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse to merge; see `MixLoraModel`."""
        raise ValueError(self.no_merge)

    def adapter(self) -> str | None:
        """Name the adapter to run, None for none; in recomputation the one that ran."""
        if self.context is not None:
            return self.context.adapter if self.context.adapter in self.mixlora_a else None
        if self.disable_adapters:
            return None
        active = [name for name in self.active_adapters if name in self.mixlora_a]
        if len(active) > 1:
            raise ValueError(f"{self.method} runs one adapter at a time; got {active}")
        return active[0] if active else None

    def lora_of(self, adapter: str, choice: FactorChoice, group: int) -> tuple[Tensor, Tensor]:
        """Return the LoRA that a group of a single row chose: A [r, I] and B [O, r]."""
        pool_a = cast(Factors, self.mixlora_a[adapter]).weight.detach()
        pool_b = cast(Factors, self.mixlora_b[adapter]).weight.detach()
        partners = pool_b[choice.factors_b[0, group]]  # [r, O]
        if choice.weights is not None:
            partners = partners * choice.weights[0, group, :, None].to(partners.dtype)
        return pool_a[choice.factors_a[0, group]], partners.T.contiguous()

    def _pool_size(self, config: RoutedConfig) -> int:
        """Return the rows of a fresh adapter's pools."""
        return cast(MixLoraConfig, config).num_factors

    def _router(self, config: RoutedConfig) -> nn.Module | None:
        """Return a fresh adapter's routers, if there are any."""
        config = cast(MixLoraConfig, config)
        return None if config.selection == "random" else Router(self.in_features, config)

    def _choose(self, adapter: str, x: Tensor) -> tuple[FactorChoice, Groups | None]:
        """Choose for the groups of a batch; after a cache, go on with what is kept."""
        context = self.context
        if context is None:
            if self.in_decoder:
                raise RuntimeError(
                    f"{self.name} ran outside its decoder's forward pass, where its routing is "
                    "set. Checkpoint activations through transformers (gradient_checkpointing), "
                    "and spread over devices with torchrun, not nn.DataParallel"
                )
            valid = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
            whole = find_groups(self.mixlora_config[adapter], {}, valid, past=0)
            context = Context(adapter, whole, listeners=self.listeners)
        groups = context.groups
        cached = None if context.cached is None else context.cached[self.name]
        if groups is None:
            assert cached is not None
            return cached.choice, None
        choice, total, count = self._route(adapter, x, context, cached)
        term = None
        if self.mixlora_config[adapter].balance and self.training and torch.is_grad_enabled():
            term = self._balance_term(choice, groups.decided)
        context.publish(self.name, choice, term)
        if cached is not None:
            choice = _with_current(cached.choice, choice)
        if context.keeping:
            context.memory[self.name] = _keep(groups, choice, total, count)
        return choice, groups

    def _route(
        self, adapter: str, x: Tensor, context: Context, cached: CachedChoice | None
    ) -> tuple[FactorChoice, Tensor | None, Tensor]:
        """Choose afresh for all groups; also return the sums and numbers of their members."""
        groups = cast(Groups, context.groups)
        config = cast(MixLoraConfig, self.mixlora_config[adapter])
        count = groups.counts + (0 if cached is None else cached.count)  # [B, G]
        if config.selection == "random":
            shape = (x.shape[0], count.shape[1])
            return draw_factors(shape, config.num_factors, config.rank, x.device), None, count
        with torch.set_grad_enabled(torch.is_grad_enabled() and config.routed_by_learning):
            total = context.totals(x)
            if cached is not None and cached.total is not None:
                total = total + cached.total.to(total.dtype)
            pool = cast(Factors, self.mixlora_a[adapter]).weight
            mean = total / count.clamp(min=1)[..., None].to(total.dtype)
            choice = self.mixlora_router[adapter](mean, pool, config.rank)
        return weigh_pairs(choice, config.selection), total, count

    def _balance_term(self, choice: FactorChoice, decided: Tensor) -> Tensor:
        return balance_term(choice, decided)

    def _update(
        self, adapter: str, x: Tensor, y: Tensor, choice: FactorChoice, groups: Groups | None
    ) -> Tensor:
        """Add the chosen update to the base output y [B, T, O]."""
        config = self.mixlora_config[adapter]
        pool_a, pool_b = self.mixlora_a[adapter].weight, self.mixlora_b[adapter].weight

        def per_token(values: Tensor) -> Tensor:
            return values.expand(-1, x.shape[1], -1) if groups is None else groups.per_token(values)

        tokens = self.mixlora_dropout[adapter](x).flatten(0, 1)
        products = F.linear(tokens, cast(Tensor, pool_a).to(x.dtype)).unflatten(0, x.shape[:2])
        chosen = products.gather(-1, per_token(choice.factors_a))  # [B, T, R]
        if choice.weights is not None:
            chosen = chosen * per_token(choice.weights.to(chosen.dtype))
        if self.context is not None and self.context.is_image is not None:
            chosen = chosen.masked_fill(~self.context.is_image.to(chosen.device)[..., None], 0)
        placed = torch.zeros_like(products).scatter(-1, per_token(choice.factors_b), chosen)
        update = (placed.flatten(0, 1).to(y.dtype), cast(Tensor, pool_b).to(y.dtype))
        return torch.addmm(y.flatten(0, 1), *update, alpha=config.scaling).view_as(y).to(y.dtype)


def _with_current(current: FactorChoice, fresh: FactorChoice) -> FactorChoice:
    """Put the current turn's kept choice in the place of group 0."""
    weights = None
    if current.weights is not None and fresh.weights is not None:
        weights = torch.cat([current.weights.to(fresh.weights), fresh.weights[:, 1:]], dim=1)
    return FactorChoice(
        torch.cat([current.factors_a, fresh.factors_a[:, 1:]], dim=1),
        torch.cat([current.factors_b, fresh.factors_b[:, 1:]], dim=1),
        weights,
    )


def _keep(
    groups: Groups, choice: FactorChoice, total: Tensor | None, count: Tensor
) -> CachedChoice:
    """Take what holds at each row's end."""
    choice = choice.detached()
    weights = None if choice.weights is None else groups.at_last(choice.weights)
    return CachedChoice(
        FactorChoice(groups.at_last(choice.factors_a), groups.at_last(choice.factors_b), weights),
        None if total is None else groups.at_last(total.detach()),
        groups.at_last(count),
    )


def _sizes(linear: nn.Module, name: str) -> tuple[int, int]:
    inputs, outputs = _get_in_out_features(linear)
    unfit = isinstance(linear, (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if inputs is None or outputs is None or unfit:
        raise ValueError(f"{name} is no linear layer; got {type(linear).__name__}")
    return inputs, outputs
