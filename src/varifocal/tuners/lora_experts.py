"""A mixture of whole LoRAs (LoRAMoE, arXiv 2312.09979; MoLA, arXiv 2402.08562) as a PEFT method.

It runs on MixLoRA's hooks and layers, with experts in the place of factors: an expert is a LoRA of
rank r, and one choice takes its A and its B together. Its tensors have MixLoRA's names.

Dimensions: B rows, T tokens, G routing groups, I inputs and O outputs of a linear, E experts, K
chosen ones, r rank of each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from peft import PeftConfig
from peft.utils import PeftType
from torch import Tensor, nn

from .mixlora import MixLoraLayer, MixLoraModel
from .mixlora.config import RoutedConfig, check_one_of
from .mixlora.groups import Groups
from .mixlora.layer import Factors
from .mixlora.router import FactorChoice
from .mixlora.routing import CachedChoice, Context
from .modality import TextRoute, check_text_route
from .plugin import register

ROUTERS = ("token", "instance")


@dataclass
class LoraExpertsConfig(PeftConfig):
    """Settings of a mixture of LoRA experts.

    Args:
        num_experts: E, LoRAs at each linear, 2 or more: a single expert's weight is always 1, and
            no gradient would reach the router.
        rank: r of each expert.
        router: what an expert's weight is read from: "token", each token's own state (LoRAMoE,
            MoLA); or "instance", the mean state of the prompt's valid tokens, as MixLoRA reads it:
            each turn of a conversation has the weights that its prompt so far gives, and keeps them
            while decoding.
        top_k: K, experts that count, their weights divided by their sum (MoLA), from 2 to E; None:
            all of them (LoRAMoE). All products are computed either way.
        lora_alpha: the update is scaled by lora_alpha / rank.
        dropout: probability of dropping an input of the experts in training, in [0, 1). The router
            reads the input whole.
        balance: weight of the load-balancing loss (`balance_loss`), 0 or more; 0 computes none.
        text_route: what samples without an image run through in the language model: "trained", the
            experts; or "base", the base model alone, to the last bit.
        target_modules: linears to adapt, as everywhere in PEFT. None: every linear of the language
            model's blocks.
        exclude_modules: names not to adapt, in the same two forms.
        modules_to_save: modules trained whole and saved with the adapter, such as a connector.
        base_fingerprint: content hash of the base model; carried along, for the loader to compare.

    Raises:
        ValueError: naming the value that is out of range.
    """

    num_experts: int = field(default=4)
    rank: int = field(default=4)
    router: Literal["token", "instance"] = field(default="token")
    top_k: int | None = field(default=None)
    lora_alpha: float = field(default=16.0)
    dropout: float = field(default=0.05)
    balance: float = field(default=0.0)
    text_route: TextRoute = field(default="trained")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    base_fingerprint: str | None = field(default=None)

    @property
    def routing_scope(self) -> str:
        """What is read to choose, for the hooks: each "token", or the "prompt"."""
        return "token" if self.router == "token" else "prompt"

    @property
    def scaling(self) -> float:
        """Factor on the update, lora_alpha / r."""
        return self.lora_alpha / self.rank

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("LORA_EXPERTS")
        check_one_of("router", self.router, ROUTERS)
        check_text_route(self.text_route)
        if self.num_experts < 2:
            raise ValueError(
                f"num_experts must be 2 or more; got {self.num_experts}: a single expert is a LoRA"
            )
        if self.rank < 1:
            raise ValueError(f"rank must be 1 or more; got {self.rank}")
        if self.top_k is not None and not 2 <= self.top_k <= self.num_experts:
            raise ValueError(
                f"top_k must lie between 2 and num_experts={self.num_experts}; got {self.top_k}: "
                "the weight of a single chosen expert is always 1, and no gradient would reach the "
                "router"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if self.balance < 0:
            raise ValueError(f"balance must be 0 or more; got {self.balance}")


class ExpertRouter(nn.Module):
    """The router of one linear: `weight` [E, I], without a bias.

    LoRAMoE's equation 5 and MoLA's equations 3 and 4: with h a token's state, or an instance's mean
    state, the scores are softmax(W h). Without `top_k` they are the weights; with it the K largest
    are, divided by their sum. The product runs in the state's dtype, the softmax in float32 at
    least.

    Args:
        width: I.
        config: sizes, `router` and `top_k` are read.
    """

    def __init__(self, width: int, config: LoraExpertsConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, width))
        bound = width**-0.5  # what nn.Linear starts from
        nn.init.uniform_(self.weight, -bound, bound)
        self.num_chosen = config.top_k or config.num_experts
        self.by_token = config.router == "token"

    def forward(self, h: Tensor) -> FactorChoice:
        """Choose for states h [B, G, I]: experts [B, G, K], weights [B, G, K], scores [B, G, E]."""
        with torch.autocast(h.device.type, enabled=False):
            logits = F.linear(h, self.weight.to(h.dtype))
            scores = torch.softmax(logits, -1, torch.promote_types(h.dtype, torch.float32))
            chosen = scores.topk(self.num_chosen, dim=-1)
        weights = chosen.values / chosen.values.sum(dim=-1, keepdim=True)
        return FactorChoice(chosen.indices, chosen.indices, weights, scores, scores)

    def matrix_products(self) -> Iterator[tuple[int, bool]]:
        """Yield the multiply-adds a token, and whether the weight is trained; none by instance."""
        if self.by_token:
            yield self.weight.numel(), self.weight.requires_grad


class LoraExpertsLayer(MixLoraLayer):
    """A linear with a mixture of LoRA experts.

    Implements LoRAMoE (arXiv 2312.09979, equation 4): with experts A_e [r, I], B_e [O, r] and the
    weights w [E] that the router gives a token or its instance (`ExpertRouter`),

        y = W x + (lora_alpha / r) * sum_e w_e B_e A_e dropout(x)

    MoLA's (arXiv 2402.08562) is the same sum over the K best experts. Rows e r to e r + r - 1 of
    either pool [E r, I] and [E r, O] are expert e's. A starts as kaiming_uniform(sqrt(5)), B as
    zero, so y = W x until training moves it.

    One skinny product with all experts' A, each expert's r numbers times its weight, one with all
    experts' B: a LoRA of rank E r, and the router's product.
    """

    method = "a mixture of LoRA experts"
    no_merge = (
        "a mixture of LoRA experts cannot be merged into the base weights: every token, or every "
        "prompt, weighs its experts anew. varifocal.tuners.route gives the ordinary LoRA that one "
        "prompt chooses with router='instance', which can be merged"
    )

    def lora_of(self, adapter: str, choice: FactorChoice, group: int) -> tuple[Tensor, Tensor]:
        """Return the LoRA that a group of a single row chose: A [K r, I] and B [O, K r]."""
        rank = cast(LoraExpertsConfig, self.mixlora_config[adapter]).rank
        experts = choice.factors_a[0, group]
        pool_a, pool_b = (
            cast(Factors, pools[adapter]).weight.detach().unflatten(0, (-1, rank))[experts]
            for pools in (self.mixlora_a, self.mixlora_b)
        )
        weights = cast(Tensor, choice.weights)[0, group, :, None, None].to(pool_b.dtype)
        return pool_a.flatten(0, 1), (pool_b * weights).flatten(0, 1).T.contiguous()

    def _pool_size(self, config: RoutedConfig) -> int:
        config = cast(LoraExpertsConfig, config)
        return config.num_experts * config.rank

    def _router(self, config: RoutedConfig) -> nn.Module | None:
        return ExpertRouter(self.in_features, cast(LoraExpertsConfig, config))

    def _route(
        self, adapter: str, x: Tensor, context: Context, cached: CachedChoice | None
    ) -> tuple[FactorChoice, Tensor | None, Tensor]:
        groups, router = cast(Groups, context.groups), self.mixlora_router[adapter]
        if groups.members is None:
            return router(x), None, groups.counts
        total, count = context.totals(x), groups.counts
        if cached is not None and cached.total is not None:
            total, count = total + cached.total.to(total.dtype), count + cached.count
        mean = total / count.clamp(min=1)[..., None].to(total.dtype)
        return router(mean.to(torch.promote_types(mean.dtype, torch.float32))), total, count

    def _balance_term(self, choice: FactorChoice, decided: Tensor) -> Tensor:
        return expert_balance_term(choice, decided)

    def _update(
        self, adapter: str, x: Tensor, y: Tensor, choice: FactorChoice, groups: Groups | None
    ) -> Tensor:
        """Add the experts' update to the base output y [B, T, O]."""
        config = cast(LoraExpertsConfig, self.mixlora_config[adapter])
        pool_a, pool_b = self.mixlora_a[adapter].weight, self.mixlora_b[adapter].weight
        chosen = cast(Tensor, choice.weights).to(x.dtype)
        empty = chosen.new_zeros(*chosen.shape[:2], config.num_experts)
        weights = empty.scatter(-1, choice.factors_a, chosen)  # [B, G, E]
        weights = (
            weights.expand(-1, x.shape[1], -1) if groups is None else groups.per_token(weights)
        )
        if self.context is not None and self.context.is_image is not None:
            weights = weights.masked_fill(~self.context.is_image.to(x.device)[..., None], 0)
        tokens = self.mixlora_dropout[adapter](x).flatten(0, 1)
        products = F.linear(tokens, cast(Tensor, pool_a).to(x.dtype))  # [B T, E r]
        products = products.unflatten(-1, (config.num_experts, config.rank))
        weighted = (products * weights.flatten(0, 1)[..., None]).flatten(-2)
        update = (weighted.to(y.dtype), cast(Tensor, pool_b).to(y.dtype))
        return torch.addmm(y.flatten(0, 1), *update, alpha=config.scaling).view_as(y).to(y.dtype)


class LoraExpertsModel(MixLoraModel):
    """Puts LoRA experts around linears, and routing hooks on language model decoders.

    Merging is refused (`merge_and_unload`, `merge_adapter`): the update depends on the token or the
    prompt.
    """

    layer_cls = LoraExpertsLayer


def expert_balance_term(choice: FactorChoice, decided: Tensor) -> Tensor:
    """Measure how unevenly a batch loads the experts: 1 if evenly, up to E if by one expert.

    `E * sum_e f_e P_e`, P_e an expert's mean score over tokens or instances. With `top_k`, MoLA's
    loss, which is that of Switch Transformers (arXiv 2101.03961, equation 4): f_e is the share of
    choices that fell on expert e, without a gradient. Where all experts count, shares of choices
    are even whatever the router does, so f_e is P_e: 1 plus the squared coefficient of variation of
    the experts' importance, which LoRAMoE's localized balancing constraint measures, too. Its two
    kinds of experts, one for each type of task, are not there.

    Args:
        choice: of all groups of a batch, with scores.
        decided: [B, G], 0 for groups that nobody decides for, such as padding.
    """
    scores = cast(Tensor, choice.scores_a)
    num_experts = scores.shape[-1]
    shares = decided.to(scores.dtype)[..., None] / decided.sum().clamp(min=1)  # [B, G, 1]
    mean = load = (scores * shares).sum(dim=(0, 1))
    if choice.factors_a.shape[-1] < num_experts:
        picked = F.one_hot(choice.factors_a, num_experts).to(scores.dtype).mean(dim=-2)
        load = (picked * shares).sum(dim=(0, 1))
    return num_experts * (load * mean).sum()


register("lora_experts", LoraExpertsConfig, LoraExpertsModel, shares_prefix=True)
