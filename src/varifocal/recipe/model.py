"""The frozen parts and the connector between them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from varifocal.recipe.page import WrongKeyError
from varifocal.recipe.processor import has_bfloat16
from varifocal.recipe.section import Count, Rate, Section


class ConnectorSection(Section):
    """The trained bridge from the vision tower's states to the language model's embeddings."""

    type: Literal["patch_mlp", "cls_pyramid"] = "patch_mlp"
    """`cls_pyramid`: LaVIN's, the CLS state after every fourth block; `patch_mlp`: the patches."""
    hidden_dim: Count | None = None
    """Width of the hidden layer; by default the connector's own (128 for `cls_pyramid`)."""
    num_tokens: Count | None = None
    """`patch_mlp`: local tokens an image is pooled to, a square number; by default every patch."""
    num_global_tokens: Annotated[int, Field(ge=0)] = 0
    """`patch_mlp`: further tokens that read all patches at once."""
    plain: bool = False
    """`patch_mlp`: LLaVA's projector to the letter (every patch, linear, GELU, linear), which
    `varifocal export --to llava` needs: no norm, positions, pooling, global tokens or set scale."""
    weights: str | None = None
    """A run whose trained connector is the start; by default a fresh one, drawn from the seed."""
    alignment: Literal["words"] | None = None
    """`words`: before training, fit the visual tokens to the embeddings of the caption's words."""
    alignment_steps: Count = 2500
    """Steps of the alignment."""
    alignment_batch_size: Count = 64
    """Images a step of the alignment."""
    alignment_learning_rate: Rate = 1e-3
    """Learning rate of the alignment (AdamW)."""
    alignment_scale: Rate = 20.0
    """Factor on the cosine of token and word before the softmax (an inverse temperature)."""

    @model_validator(mode="after")
    def _keys_fit_type(self) -> "ConnectorSection":
        if self.type == "cls_pyramid" and (self.num_tokens or self.num_global_tokens):
            key = "num_tokens" if self.num_tokens else "num_global_tokens"
            raise WrongKeyError(key, "belongs to patch_mlp; cls_pyramid gives a token a block")
        if self.plain and self.type == "cls_pyramid":
            raise WrongKeyError("plain", "belongs to patch_mlp; cls_pyramid reads no patches")
        extra = {
            key: getattr(self, key) for key in ("hidden_dim", "num_tokens", "num_global_tokens")
        }
        if self.plain and any(extra.values()):
            key = next(key for key, value in extra.items() if value)
            raise WrongKeyError(
                key,
                "does not go with plain: LLaVA's projector is as wide as the language model and "
                "gives a token for every patch; leave one of the two out",
            )
        return self


def _choose_dtype(value: Any) -> Any:
    """Turn `auto` into the number format that this machine is fast in."""
    if value == "auto":
        return "bfloat16" if has_bfloat16() else "float32"
    return value


Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"],
    BeforeValidator(
        _choose_dtype, json_schema_input_type=Literal["auto", "float32", "bfloat16", "float16"]
    ),
]


class ModelSection(Section):
    """The frozen parts and how they are loaded.

    Each name is a packaged model (`smollm2-135m-instruct`), a local directory, or a hub id.
    """

    language_model: str
    """A causal language model, or a whole vision-language model when `vision_tower` is null."""
    vision_tower: str | None = None
    """The image encoder to graft on; null: use the language model as it is."""
    connector: ConnectorSection | None = None
    """By default a `patch_mlp` when there is a vision tower."""
    image_side: Count | None = None
    """Side, in pixels, of the squares that images are put on for a Qwen-VL, whose images
    otherwise take as many tokens as they are large; a multiple of 28, which is one token. For a
    SmolVLM the side of its tiles, one to an image."""
    dtype: Dtype = "bfloat16"
    """Number format of the frozen weights; `auto` is bfloat16 where this machine has products of
    it, else float32."""
    attn_implementation: str = "sdpa"
    """transformers' name of the attention code: sdpa, eager, flash_attention_2 ...; or `segments`,
    ours: packed rows on a CPU, each segment alone."""
    quantization: Literal["nf4", "int8"] | None = None
    """Hold the language model's linear layers in 4 or 8 bits (needs the extra `quant`)."""

    @model_validator(mode="before")
    @classmethod
    def _default_connector(cls, page: Any) -> Any:
        if isinstance(page, dict) and page.get("vision_tower") and page.get("connector") is None:
            return {**page, "connector": ConnectorSection()}
        return page

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelSection":
        if self.connector and not self.vision_tower:
            raise WrongKeyError("connector", "there is no vision_tower for it to read")
        if self.image_side and self.vision_tower:
            raise WrongKeyError(
                "image_side", "belongs to a Qwen-VL or SmolVLM; a vision_tower has its own"
            )
        return self
