"""What is trained inside the frozen parts."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from varifocal.recipe.base_section import Count, Rate, Section, Share

TextRoute = Literal["trained", "base"]
ModuleNames = Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
SEVEN_LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class MMASection(Section):
    """LaVIN's mixture-of-modality adapters (arXiv 2305.15023)."""

    type: Literal["mma"] = "mma"
    bottleneck_dim: Count = 8
    """Width an adapter projects down to."""
    router: bool | Literal["token"] = True
    """Mix two branches, by modality in the language model, by each image's CLS (or mean) state in
    the tower; `token`: there by each patch's own state, as LaVIN's checkpoints need it; false: one
    plain branch, the adapter MMA is compared with."""
    router_temperature: Rate = 10.0
    """Divides the router's logits before its softmax; the paper takes 10 (7B) and 5 (13B)."""
    text_route: TextRoute = "trained"
    """What samples without an image run through: trained adapters, or the base model alone."""
    scale: float = 1.0
    """Factor on the adapter's output."""
    dropout: Share = 0.1
    """Share of the bottleneck that is dropped in training, 0 to below 1."""
    projection_bias: bool = True
    """Biases in the adapter's projections, as LaVIN's have; false: a route is exactly a LoRA, which
    vLLM serves."""
    adapt_vision_tower: bool = True
    """Also put an adapter into every block of the vision tower, where it is a transformer."""
    train_connector: bool = True
    """Train and save the connector with the adapters."""
    weights: str | None = None
    """A run whose trained adapter is the start, its connector too; by default a fresh one."""


class LoraSection(Section):
    """PEFT's LoRA, for comparison."""

    type: Literal["lora"] = "lora"
    rank: Count = 8
    """Rank of the update."""
    text_route: TextRoute = "trained"
    """What samples without an image run through: the trained LoRA, or the base model alone."""
    lora_alpha: Rate = 16.0
    """The update is scaled by lora_alpha / rank."""
    dropout: Share = 0.05
    """Share of the layer's input that is dropped in training, 0 to below 1."""
    target_modules: ModuleNames = ATTENTION
    """Ends of the names of the linear layers that are adapted."""
    adapt_vision_tower: bool = False
    """Also adapt the layers of these names inside the vision tower."""
    train_connector: bool = True
    """Train and save the connector with the adapters."""
    weights: str | None = None
    """A run whose trained adapter is the start, its connector too; by default a fresh one."""


class NoTunerSection(Section):
    """Nothing but the connector is trained."""

    type: Literal["none"] = "none"
    train_connector: bool = True
    """Train and save the connector; false: train nothing, only evaluate."""


class MixLoraSection(Section):
    """Conditional Mixture-of-LoRA (arXiv 2402.15896): low-rank factors picked per instance."""

    type: Literal["mixlora"] = "mixlora"
    num_factors: Count = 16
    """E: rank-1 factors in each pool."""
    rank: Count = 4
    """r: factors picked for an instance."""
    text_route: TextRoute = "trained"
    """What samples without an image run through: trained factors, or the base model alone."""
    conditional: bool | Literal["reference"] = True
    """Let the choice for B read the factors chosen for A and the instance (the paper's CFS);
    `reference`: as the authors' public code computes it, which their checkpoints need."""
    selection: Literal["hard", "weighted", "straight_through", "random"] = "weighted"
    """How scores enter: indices alone (the public code), as weights, or in the gradient alone."""
    routing_scope: Literal["prompt", "sequence"] = "prompt"
    """What decides: the prompt's tokens, or all tokens of the instance (the public code)."""
    lora_alpha: Rate | None = None
    """The update is scaled by lora_alpha / rank; by default 2 E, as the public code has it."""
    balance: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss that spreads the load over the factors; 0 for none."""
    dropout: Share = 0.05
    """Share of the layer's input that is dropped in training, 0 to below 1."""
    target_modules: ModuleNames = SEVEN_LINEARS
    """Ends of the names of the linear layers that are adapted."""
    adapt_vision_tower: bool = False
    """Also adapt the layers of these names inside the vision tower."""
    train_connector: bool = True
    """Train and save the connector with the adapters."""
    weights: str | None = None
    """A run whose trained adapter is the start, its connector too; by default a fresh one."""


class LoraExpertsSection(Section):
    """A mixture of whole LoRAs (LoRAMoE, arXiv 2312.09979; MoLA, arXiv 2402.08562)."""

    type: Literal["lora_experts"] = "lora_experts"
    num_experts: Count = 4
    """E: LoRAs at each linear, 2 or more."""
    rank: Count = 4
    """r: rank of each expert."""
    router: Literal["token", "instance"] = "token"
    """What weighs the experts: each token's own state, or the mean state of the prompt."""
    top_k: Count | None = None
    """K: experts that count, from 2 to E, their weights divided by their sum; by default all."""
    text_route: TextRoute = "trained"
    """What samples without an image run through: trained experts, or the base model alone."""
    lora_alpha: Rate = 16.0
    """The update is scaled by lora_alpha / rank."""
    balance: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss that spreads the load over the experts; 0 for none."""
    dropout: Share = 0.05
    """Share of the layer's input that is dropped in training, 0 to below 1."""
    target_modules: ModuleNames = SEVEN_LINEARS
    """Ends of the names of the linear layers that are adapted."""
    adapt_vision_tower: bool = False
    """Also adapt the layers of these names inside the vision tower."""
    train_connector: bool = True
    """Train and save the connector with the adapters."""
    weights: str | None = None
    """A run whose trained adapter is the start, its connector too; by default a fresh one."""


PeftMethod = Literal[
    "lora", "ia3", "vera", "randlora", "loha", "lokr", "hira", "gralora", "miss", "oft", "hra",
    "road", "delora", "fourierft", "c3a", "waveft",
]  # fmt: skip


class PeftSection(Section):
    """Another of PEFT's methods, by its name there: (IA)3, VeRA, OFT; DoRA and rsLoRA of `lora`."""

    type: Literal["peft"] = "peft"
    method: PeftMethod
    """Name of the method in PEFT, in small letters."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of the method's config in PEFT, such as {r: 16, use_dora: true} of `lora`."""
    target_modules: ModuleNames = ATTENTION
    """Ends of the names of the linear layers that are adapted."""
    adapt_vision_tower: bool = False
    """Also adapt the layers of these names inside the vision tower."""
    train_connector: bool = True
    """Train and save the connector with the adapters."""
    weights: str | None = None
    """A run whose trained adapter is the start, its connector too; by default a fresh one."""


class FullSection(Section):
    """Full fine-tuning of the language model; the vision tower stays frozen."""

    type: Literal["full"] = "full"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format the trained weights are held in; bfloat16 halves them, and rounds updates."""
    train_connector: bool = True
    """Train the connector with the language model."""


def leaves_text(tuner: Section) -> bool:
    """Tell whether samples without an image run the base model alone, and so teach nothing."""
    return getattr(tuner, "text_route", "trained") == "base"


TunerSection = Annotated[
    MMASection
    | MixLoraSection
    | LoraExpertsSection
    | LoraSection
    | PeftSection
    | FullSection
    | NoTunerSection,
    Field(discriminator="type"),
    BeforeValidator(lambda page: {"type": "mma", **page} if isinstance(page, dict) else page),
]
