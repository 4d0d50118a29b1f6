"""A language model that sees: a causal LM, a vision tower and the connector between them.

Letters: B rows, T tokens, N images, K states per image, C tower width, V visual tokens per image,
D language width.
"""

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast

from varifocal.errors import ModelError
from varifocal.models.connector import Connector, build_connector
from varifocal.models.distributed import in_world, is_sharded, touch
from varifocal.models.generation import GraftedGenerationMixin, RowMemory
from varifocal.models.image_rows import check_row_images
from varifocal.models.vision import Selection, VisionTower, tower_from_config


class GraftedConfig(PreTrainedConfig):
    """The three parts of a grafted model.

    Attributes:
        language_config: the causal language model's config.
        vision_config: the vision model's config.
        connector_config: options of `build_connector`: `type` and the connector's own arguments.
        image_token_id: the placeholder's id. The language model's embedding is not resized for
            it: the id lies past the vocabulary (or in its padding) and is never looked up.
        vision_feature_layer: which layer's patches the tower gives; null is the tower's default.
        image_size: side of the images in pixels; null is the vision model's own.
    """

    model_type = "grafted"
    attribute_map: ClassVar[dict[str, str]] = {"text_config": "language_config"}
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "language_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="efficientnet_lite"),
    }

    language_config: dict[str, Any] | PreTrainedConfig | None = None
    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    connector_config: dict[str, Any] | None = None
    image_token_id: int = 0
    vision_feature_layer: int | None = None
    image_size: int | None = None
    tie_word_embeddings: bool = False

    def get_text_config(
        self, decoder: bool | None = None, encoder: bool | None = None
    ) -> PreTrainedConfig:
        """Return the language model's config: generation reads its sizes there."""
        return self.language_config  # pyright: ignore[reportReturnType]


class GraftedForConditionalGeneration(PreTrainedModel, GraftedGenerationMixin):
    """Any causal LM, any vision tower and a connector, as one model of transformers.

    A row without an image is the bare language model's row, bit for bit; a batch without one
    never runs the tower or the connector. Connector and visual tokens are computed in the
    connector's dtype (float32) and enter the language model in its own.

    Args:
        config: the parts' configs.
        language_model: the built causal LM; None builds it, untrained, from the config.
        vision_tower: the built tower; None builds it, untrained, from the config.
        connector: the built connector; None builds it from the config.

    Attributes:
        vision_passes: how many images have gone through the tower.
    """

    config_class = GraftedConfig
    config: GraftedConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")  # pyright: ignore[reportAssignmentType]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: GraftedConfig,
        language_model: PreTrainedModel | None = None,
        vision_tower: VisionTower | None = None,
        connector: Connector | None = None,
    ) -> None:
        super().__init__(config)
        self._skip_keys_device_placement = {"past_key_values"}
        self._keep_in_fp32_modules_strict = {"connector"}
        for part in (language_model, vision_tower, connector):
            if part is not None:
                _mark_initialised(part)
        self.language_model: Any = language_model or AutoModelForCausalLM.from_config(
            config.get_text_config()
        )
        vision_config: Any = config.vision_config
        self.vision_tower = vision_tower or tower_from_config(
            vision_config, config.vision_feature_layer, config.image_size
        )
        self.connector = connector or build_connector(
            config.connector_config or {},
            self.vision_tower,
            self.get_input_embeddings().embedding_dim,
        )
        self.select: Selection = self.connector.select
        self.tokens_per_image = self.connector.tokens_per_image
        self.vision_passes = 0
        self._row_modality = RowMemory()
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the language model's input embeddings."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Set the language model's input embeddings."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Return the language model's head."""
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Set the language model's head."""
        self.language_model.set_output_embeddings(new_embeddings)

    def get_decoder(self, *_: Any) -> nn.Module:
        """Return the language model's decoder: its layers, without the head."""
        return self.language_model.get_decoder()

    def set_decoder(self, decoder: nn.Module, *_: Any) -> None:
        """Set the language model's decoder."""
        self.language_model.set_decoder(decoder)

    def encode_images(
        self, pixel_values: Tensor | None = None, image_features: Tensor | None = None
    ) -> Tensor:
        """Turn images into visual tokens.

        Args:
            pixel_values: [N, 3, H, W] from the processor; or
            image_features: [N, K, C], what the tower gives for them under `connector.select`.

        Returns:
            [N, V, D] in the connector's dtype.
        """
        if (pixel_values is None) == (image_features is None):
            raise ModelError("give either pixel_values or image_features, and not both")
        if pixel_values is not None:
            image_features = self.see(pixel_values)
        return self.connector(image_features)

    def see(self, pixel_values: Tensor) -> Tensor:
        """Run the tower: [N, 3, H, W] to the states its connector reads, [N, K, C].

        Without a graph when nothing in the tower trains, adapters included.
        """
        self.vision_passes += pixel_values.shape[0]
        return self._run_tower(pixel_values)

    def _run_tower(self, pixel_values: Tensor) -> Tensor:
        trains = any(parameter.requires_grad for parameter in self.vision_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and trains):
            return self.vision_tower(pixel_values, select=self.select)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        modality_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the language model over text and images.

        Args:
            input_ids: [B, T], each image as `connector.tokens_per_image` placeholders.
            attention_mask: [B, T] for padded rows; none for packed ones.
            position_ids: [B, T]; they restart at each segment of a packed row.
            past_key_values: the cache to continue.
            inputs_embeds: [B, T, D] instead of `input_ids`; then no images.
            labels: [B, T], -100 where there is no loss; shifted inside the loss.
            use_cache: whether to fill a cache.
            logits_to_keep: as in transformers: the last so many, or an index tensor.
            pixel_values: [N, 3, H, W], images in the row-major order of their placeholders; or
            image_features: [N, K, C], what the frozen tower gave for them.
            modality_ids: [B, T], 1 in samples with an image; derived from `input_ids` when None.
            segment_ids: [B, T], handed on to tuners.
            prompt_mask: [B, T], handed on to tuners.
            kwargs: handed on to the language model.

        Returns:
            The language model's output: `loss`, `logits` [B, T, vocabulary], `past_key_values`.

        Raises:
            ModelError: placeholders and images do not match.
        """
        entering = self._enter(input_ids, inputs_embeds, pixel_values, image_features)
        if input_ids is not None and modality_ids is None:
            modality_ids = self._derive_modality(
                input_ids, past_key_values, segment_ids, position_ids, attention_mask
            )
        output = self.language_model(
            **entering,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **_given(modality_ids=modality_ids, segment_ids=segment_ids, prompt_mask=prompt_mask),
            **kwargs,
        )
        self._row_modality.note(getattr(output, "past_key_values", None), modality_ids)
        return output

    def _derive_modality(
        self, input_ids: Tensor, cache: Cache | None, *place: Tensor | None
    ) -> Tensor:
        """Tell whose samples have an image [B, T], by placeholders and by what a cache holds."""
        is_image = input_ids == self.config.image_token_id
        return self._row_modality.extend(cache, is_image, *place)

    def _enter(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        image_features: Tensor | None,
    ) -> dict[str, Tensor]:
        """Return what goes into the decoder by its name: states [B, T, D], or the ids as they are.

        Raises:
            ModelError: both or neither are given, or images without ids.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ModelError("give either input_ids or inputs_embeds, and not both")
        if input_ids is None:
            if pixel_values is not None or image_features is not None:
                raise ModelError("images need input_ids, whose placeholders say where they go")
            return _given(inputs_embeds=inputs_embeds)
        embeds = self._embed(input_ids, pixel_values, image_features)
        return {"input_ids": input_ids} if embeds is None else {"inputs_embeds": embeds}

    def _embed(
        self, input_ids: Tensor, pixel_values: Tensor | None, image_features: Tensor | None
    ) -> Tensor | None:
        """Embed text and images [B, T, D]; None when the ids can go down as they are."""
        is_image = input_ids == self.config.image_token_id
        images = image_features if pixel_values is None else pixel_values
        num_images = 0 if images is None else images.shape[0]
        check_row_images(int(is_image.sum()), num_images, self.tokens_per_image)
        if not num_images and not in_world():
            return None
        # words first, with images or without: sharded parts must run in one order everywhere
        # the placeholder's id may lie past the vocabulary: look up another in its place
        embeds = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))
        if not num_images:
            zero = self._zero(embeds, image_features)
            return embeds if zero is None else embeds + zero.to(embeds.dtype)
        visual = self.encode_images(pixel_values, image_features).flatten(0, 1)
        visual = visual.to(embeds.device, embeds.dtype)
        return embeds.masked_scatter(is_image.unsqueeze(-1), visual)

    def _zero(self, embeds: Tensor, image_features: Tensor | None) -> Tensor | None:
        """Keep step with the other processes on a batch without images; None in evaluation.

        No weight is looked at here: ZeRO-3 would gather it, and wait for processes with images.
        """
        if is_sharded(self.vision_tower, self.connector):
            if image_features is None:
                side = self.vision_tower.image_size
                image_features = self._run_tower(embeds.new_zeros(1, 3, side, side))
            else:
                image_features = image_features.new_zeros(1, *image_features.shape[1:])
            return (self.connector(image_features) * 0).sum()
        return touch(self.vision_tower, self.connector) if self.training else None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise the connector; the other parts are transformers models and know how."""
        if isinstance(module, Connector):
            module.reset_parameters()


def graft(
    language_model: PreTrainedModel,
    vision_tower: VisionTower,
    connector: Connector,
    image_token_id: int,
) -> GraftedForConditionalGeneration:
    """Join built parts into one model; nothing is copied and nothing is drawn anew.

    Args:
        language_model: a causal LM of transformers.
        vision_tower: the tower.
        connector: a connector built for both.
        image_token_id: the placeholder's id in the processor's tokenizer.

    Raises:
        ModelError: the connector was built for another tower or another language model.
    """
    width = language_model.get_input_embeddings().embedding_dim
    if (connector.in_dim, connector.out_dim) != (vision_tower.width, width):
        raise ModelError(
            f"the connector maps width {connector.in_dim} to {connector.out_dim}, but the tower"
            f" gives {vision_tower.width} and the language model takes {width}"
        )
    language_config, vision_config = language_model.config, vision_tower.model.config
    config = GraftedConfig(
        language_config=language_config,
        vision_config=vision_config,
        connector_config=connector.config(),
        image_token_id=image_token_id,
        vision_feature_layer=vision_tower.feature_layer,
        image_size=vision_tower.image_size,
        dtype=language_model.dtype,
        # said for each part, since a composite config otherwise resets its parts' choice
        attn_implementation={  # pyright: ignore[reportCallIssue]
            "": language_config._attn_implementation,
            "language_config": language_config._attn_implementation,
            "vision_config": vision_config._attn_implementation,
        },
    )
    model = GraftedForConditionalGeneration(config, language_model, vision_tower, connector)
    model.generation_config = copy.deepcopy(language_model.generation_config)
    if image_token_id < language_config.vocab_size:
        # in the padding of the vocabulary: no one trained it, and no one may write it
        suppressed = model.generation_config.suppress_tokens or []
        model.generation_config.suppress_tokens = [*suppressed, image_token_id]
    return model


def _given(**marks: Tensor | None) -> dict[str, Tensor]:
    """Those of a batch's marks that it carries."""
    return {name: mark for name, mark in marks.items() if mark is not None}


def _mark_initialised(part: nn.Module) -> None:
    """Tell transformers that a part's weights are not to be drawn anew."""
    for module in part.modules():
        module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]


AutoConfig.register(GraftedConfig.model_type, GraftedConfig, exist_ok=True)
AutoModelForImageTextToText.register(GraftedConfig, GraftedForConditionalGeneration, exist_ok=True)
