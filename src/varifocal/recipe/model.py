"""The frozen parts and the connector between them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from varifocal.recipe.base_section import Count, Section
from varifocal.recipe.processor import fastest_attention, has_bfloat16
from varifocal.recipe.strict_yaml import WrongKeyError


class PatchMLPSection(Section):
    """An MLP on the tower's patches, its tokens as large as words; the default."""

    type: Literal["patch_mlp"] = "patch_mlp"
    hidden_dim: Count | None = None
    """Width of the hidden layer; 512 by default."""
    num_tokens: Count | None = None
    """Local tokens an image is pooled to, a square number; by default every patch."""
    num_global_tokens: Annotated[int, Field(ge=0)] = 0
    """Further tokens that read all patches at once."""
    weights: str | None = None
    """A run whose trained connector is the start; by default a fresh one, drawn from the seed."""


class LlavaMLPSection(Section):
    """LLaVA's projector to the letter, which `varifocal export --to llava` needs.

    Every patch, linear, GELU, linear: no norm, positions, pooling, global tokens or set scale.
    """

    type: Literal["mlp2x_gelu"] = "mlp2x_gelu"
    image_tokens: Literal["llava", "llamacpp"] = "llava"
    """`llamacpp`: a CLIP tower's tokens as llama.cpp passes them on, the first patch left out and
    the class token last, so that `varifocal export --to llamacpp` takes the run."""
    weights: str | None = None
    """A run whose trained connector is the start; by default a fresh one, drawn from the seed."""


class LinearSection(Section):
    """The first LLaVA's projector: one linear on every patch, which MixLoRA's checkpoints have."""

    type: Literal["linear"] = "linear"
    weights: str | None = None
    """A run whose trained connector is the start; by default a fresh one, drawn from the seed."""


class ClsPyramidSection(Section):
    """LaVIN's: the CLS state after every fourth block of the tower, each a token."""

    type: Literal["cls_pyramid"] = "cls_pyramid"
    hidden_dim: Count | None = None
    """Width of the hidden layer; 128 by default."""
    weights: str | None = None
    """A run whose trained connector is the start; by default a fresh one, drawn from the seed."""


ConnectorSection = Annotated[
    PatchMLPSection | LlavaMLPSection | LinearSection | ClsPyramidSection,
    Field(discriminator="type"),
    BeforeValidator(lambda page: {"type": "patch_mlp", **page} if isinstance(page, dict) else page),
]


Channels = Annotated[tuple[float, float, float], Field(strict=False)]
"""Red, green and blue."""


class ImagePreparationSection(Section):
    """How an image becomes the square of pixels that the vision tower reads."""

    fit: Literal["crop", "squash", "pad"] | None = None
    """`crop`: its shorter side fills the square, and the middle is cut out; `squash`: both sides
    are pressed to the square's; `pad`: all of it, in a square of the mean colour. By default the
    tower's own."""
    mean: Channels | None = None
    """Of red, green and blue between 0 and 1, subtracted; by default the tower's own."""
    std: Channels | None = None
    """Standard deviations of the same, divided by; by default the tower's own."""

    @model_validator(mode="after")
    def _divides(self) -> "ImagePreparationSection":
        for key in ("mean", "std"):
            given = getattr(self, key)
            least = 0.0 if key == "mean" else 1e-3
            if given is not None and not all(least <= number <= 1 for number in given):
                raise WrongKeyError(key, f"{list(given)} are not three numbers of {least} to 1")
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
    image_preparation: Annotated[
        ImagePreparationSection | None,
        BeforeValidator(lambda page: {"fit": page} if isinstance(page, str) else page),
    ] = None
    """By default the image processor that comes with the tower; `pad`, `squash` or `crop` alone
    means that `fit`."""
    dtype: Dtype = "bfloat16"
    """Number format of the frozen weights; `auto` is bfloat16 where this machine has products of
    it, else float32."""
    attn_implementation: str = "sdpa"
    """transformers' name of the attention code: sdpa, eager, flash_attention_2 ...; or `segments`,
    ours: packed rows on a CPU, each segment alone. `auto` is what trains fastest here: sdpa on a
    GPU; on a CPU segments for float32 weights, eager for 16 bits."""
    quantization: Literal["nf4", "int8"] | None = None
    """Hold the language model's linear layers in 4 or 8 bits (needs the extra `quant`)."""

    @model_validator(mode="before")
    @classmethod
    def _default_connector(cls, page: Any) -> Any:
        if isinstance(page, dict) and page.get("vision_tower") and page.get("connector") is None:
            return {**page, "connector": PatchMLPSection()}
        return page

    @model_validator(mode="before")
    @classmethod
    def _choose_attention(cls, page: Any) -> Any:
        if isinstance(page, dict) and page.get("attn_implementation") == "auto":
            dtype = _choose_dtype(page.get("dtype", cls.model_fields["dtype"].default))
            return {**page, "attn_implementation": fastest_attention(str(dtype))}
        return page

    @model_validator(mode="after")
    def _parts_fit(self) -> "ModelSection":
        if self.connector and not self.vision_tower:
            raise WrongKeyError("connector", "there is no vision_tower for it to read")
        if self.image_side and self.image_preparation:
            raise WrongKeyError(
                "image_preparation", "image_side puts images on squares by itself; give one"
            )
        if self.image_side and self.vision_tower:
            raise WrongKeyError(
                "image_side", "belongs to a Qwen-VL or SmolVLM; a vision_tower has its own"
            )
        return self

    def without_tower(self, **changes: Any) -> "ModelSection":
        """Return the section of the language model alone; a model with its own tower keeps it."""
        parts = ("vision_tower", "connector", "image_preparation") if self.vision_tower else ()
        return self.model_copy(update={**dict.fromkeys(parts), **changes})
