"""The settings of Conditional Mixture-of-LoRA as PEFT keeps them in `adapter_config.json`."""

from dataclasses import dataclass, field
from typing import Literal, Protocol

from peft import PeftConfig
from peft.utils import PeftType

from ..modality import TextRoute, check_text_route

SELECTIONS = ("hard", "weighted", "straight_through", "random")
SCOPES = ("prompt", "sequence")


class RoutedConfig(Protocol):
    """What layers, hooks and groups read of the settings of a method that routes."""

    inference_mode: bool
    dropout: float
    balance: float
    text_route: TextRoute
    target_modules: list[str] | str | None
    modules_to_save: list[str] | None

    @property
    def routing_scope(self) -> str:
        """What is read to choose: "prompt", "sequence" or "token"."""
        ...

    @property
    def scaling(self) -> float:
        """Factor on the update."""
        ...


@dataclass
class MixLoraConfig(PeftConfig):
    """Settings of Conditional Mixture-of-LoRA (arXiv 2402.15896).

    What a choice of factors is worth, `selection`:

    - "weighted": the normalised scores of the chosen factors, r times their softmax share, enter
      the product. The routers learn; the update is a little more than a sum of plain factors.
    - "straight_through": forward is "hard" bit for bit, backward is the gradient of "weighted".
      The routers learn from a gradient that is biased.
    - "hard": indices only, as the authors' public code (whose CFS is `conditional="reference"`). No
      gradient reaches a router, so routers are fixed random maps, saved with the adapter and never
      trained. The cheapest routing.
    - "random": factors are drawn anew for each instance, from torch's generator; there are no
      routers. For comparison: batch mates, packing and a second run change the draw.

    What is read to choose, `routing_scope`:

    - "prompt": the prompt's valid tokens. With `prompt_mask` [B, T] and `segment_ids` [B, T] among
      the model's arguments, each turn of a conversation uses the choice made from the prompt tokens
      up to and including that turn. Without marks the prompt is every valid token of a row that has
      no cache yet, and tokens after a cache keep its choice. So hand `prompt_mask` over with a new
      turn after a cache, when scoring answers, and in training. Assisted decoding, such as prompt
      lookup, hands the prompt over together with guesses at the answer, and is routed by both.
    - "sequence": all valid tokens of an instance in the current call, the answer's too, as the
      public code (which also reads padding; this does not). After a cache the new tokens alone
      choose, each call anew. Given up: an answer token moves earlier logits, cached decoding
      differs from the full forward, and answers are scored with a choice that has read them.

    Args:
        num_factors: E, rank-1 factors in the pool for A and in the pool for B of each linear.
        rank: r, factors chosen for an instance, at most E; "weighted" and "straight_through" need
            at least 2, since the share of a single factor is always 1.
        conditional: whether B's choice also reads the factors chosen for A (CFS); off: IFS alone.
            "reference": as the authors' public code computes it, where each chosen factor counts by
            the sum of its entries alone and the summed scores go through a second softmax (see
            `Router`). Their checkpoints need it.
        selection: see above.
        routing_scope: see above.
        lora_alpha: the update is scaled by lora_alpha / rank; None: 2 E, as the public code.
        dropout: probability of dropping an input of the factors in training, in [0, 1).
        balance: weight of the load-balancing loss (`balance_loss`), 0 or more; 0 computes none.
        text_route: what samples without an image run through in the language model: "trained", the
            factors they choose; or "base", the base model alone, to the last bit. Then nothing is
            learned from text, in factors and routers, and the balancing loss counts images' groups.
        target_modules: linears to adapt, as a list of name endings or a regular expression, as
            everywhere in PEFT. None: every linear of the language model's blocks (LLaMA's q, k, v,
            o, gate, up, down), found by structure; never a vision tower, connector or output head.
        exclude_modules: names not to adapt, in the same two forms.
        modules_to_save: modules trained whole and saved with the adapter, such as a connector.
        base_fingerprint: content hash of the base model; carried along, for the loader to compare.

    Raises:
        ValueError: naming the value that is out of range.
    """

    num_factors: int = field(default=16)
    rank: int = field(default=4)
    conditional: bool | Literal["reference"] = field(default=True)
    selection: Literal["hard", "weighted", "straight_through", "random"] = field(default="weighted")
    routing_scope: Literal["prompt", "sequence"] = field(default="prompt")
    lora_alpha: float | None = field(default=None)
    dropout: float = field(default=0.05)
    balance: float = field(default=0.0)
    text_route: TextRoute = field(default="trained")
    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    base_fingerprint: str | None = field(default=None)

    @property
    def routed_by_learning(self) -> bool:
        """Whether gradients reach the routers."""
        return self.selection in ("weighted", "straight_through")

    @property
    def scaling(self) -> float:
        """Factor on the update, lora_alpha / r."""
        alpha = 2 * self.num_factors if self.lora_alpha is None else self.lora_alpha
        return alpha / self.rank

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("MIXLORA")
        check_one_of("selection", self.selection, SELECTIONS)
        check_one_of("routing_scope", self.routing_scope, SCOPES)
        if self.conditional not in (True, False, "reference"):
            raise ValueError(
                f"conditional must be true, false or 'reference'; got {self.conditional!r}"
            )
        check_text_route(self.text_route)
        if not 1 <= self.rank <= self.num_factors:
            raise ValueError(
                f"rank must lie between 1 and num_factors={self.num_factors}; got {self.rank}"
            )
        if self.rank == 1 and self.routed_by_learning:
            raise ValueError(
                f"selection='{self.selection}' needs a rank of at least 2: the share of a single "
                "factor is always 1, and no gradient would reach the routers; got rank=1"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1); got {self.dropout}")
        if self.balance < 0:
            raise ValueError(f"balance must be 0 or more; got {self.balance}")
        if self.balance and not self.routed_by_learning:
            raise ValueError(
                f"balance={self.balance} needs routers that learn: selection='weighted' or "
                f"'straight_through'; got '{self.selection}'"
            )


def check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not allowed.

    Raises:
        ValueError: naming the setting, the values allowed and this one.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got '{value}'")
