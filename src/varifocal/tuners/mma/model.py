"""MMA put into a model: layers around its norms, modality tokens into its decoders."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from ..modality import check_text_is_untouched, reader_of
from ..plugin import evaluating
from ..sites import find_sites, site_of, token_embedding
from ..targets import check_config
from .config import MMAConfig
from .layer import NO_MERGE, MMALayer
from .routing import ModalityEmbedding

MODALITY_EMBEDDING = "modality_embedding"
"""Name under which a decoder holds its modality tokens."""


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
        check_config(self.model, config)
        if config.text_route == "base":
            check_text_is_untouched(self.model, config.modules_to_save)
        return config

    def _check_merge_allowed(self) -> None:
        raise ValueError(NO_MERGE)

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
        if config.router and site.router == "modality":
            tokens = _modality_embedding(self.model, site.owner, adapter_name, config)
            tokens.set_adapter(self.active_adapters, inference_mode=config.inference_mode)
            inside = current_key[len(site.owner) + 1 :] if site.owner else current_key
            tokens.layer_names[adapter_name].append(inside)


def decoders(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Walk through the language model decoders of a model that hold modality tokens."""
    for name, module in list(model.named_modules()):
        if isinstance(module._modules.get(MODALITY_EMBEDDING), ModalityEmbedding):
            yield name, module


def routing_table(model: nn.Module, adapter_name: str | None = None) -> dict[str, Tensor]:
    """Read the branch weights of each modality in every adapted decoder layer.

    Args:
        model: a model with an MMA adapter, as a `PeftModel` or not.
        adapter_name: the adapter; by default the active one.

    Returns:
        For each adapted norm's name in the base model, in order, the weights [2 modalities, 2
        branches]: rows text and image, each adding up to 1, or zeros for text that is left to the
        base model. float32 on the CPU. Vision towers are not listed: their weights belong to single
        images.

    Raises:
        ValueError: if no decoder holds that adapter, or it has no router.
    """
    tables: dict[str, Tensor] = {}
    for _, decoder in decoders(model):
        tokens = cast(ModalityEmbedding, decoder.modality_embedding)
        adapter = adapter_name or next(iter(tokens.active_adapters), "")
        if adapter in tokens.layer_names:
            with torch.no_grad(), evaluating(decoder):
                weights = tokens.tables(decoder, adapter)
            layers = cast(list[MMALayer], tokens.layers(decoder, adapter))
            tables |= {lay.name: t.float().cpu() for lay, t in zip(layers, weights, strict=True)}
    if not tables:
        raise ValueError(no_routing(model, adapter_name))
    return tables


def no_routing(model: nn.Module, adapter_name: str | None = None) -> str:
    """Say why a model's decoders hold no routing of an adapter."""
    unrouted = {
        name
        for layer in model.modules()
        if isinstance(layer, MMALayer)
        for name, config in layer.mma_config.items()
        if not config.router and adapter_name in (None, name)
    }
    if unrouted:
        return f"MMA adapter '{min(unrouted)}' has one branch and no routing (router=False)"
    return f"no language model here holds an MMA adapter '{adapter_name or ''}'"


def _shortest(names: list[str], model: nn.Module) -> list[str]:
    """Name modules by their last part where that means no other module."""
    leaves = {name.rpartition(".")[2] for name in names}
    same = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in leaves}
    return sorted(leaves) if same == set(names) else names


def _modality_embedding(
    model: nn.Module, owner: str, adapter_name: str, config: MMAConfig
) -> ModalityEmbedding:
    """Find or attach a decoder's modality tokens, and give them those of an adapter."""
    decoder = model.get_submodule(owner)
    if MODALITY_EMBEDDING not in decoder._modules:
        tokens = ModalityEmbedding(decoder, reader_of(model, owner))
        decoder.add_module(MODALITY_EMBEDDING, tokens)
    tokens = cast(ModalityEmbedding, decoder.get_submodule(MODALITY_EMBEDDING))
    if adapter_name not in tokens.mma_embedding:
        like = cast(nn.Embedding, token_embedding(decoder))
        tokens.add(adapter_name, like, config.text_route)
        tokens.train(decoder.training)
    return tokens
