"""Where an adapter before self-attention belongs: the norms of a model, and what routes each.

It reads the structure of a transformers model (blocks in an `nn.ModuleList`, an attention next to
the norm, the owner of the blocks), never the model's type, so a new architecture needs at most one
more norm name here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

NORMS_BEFORE_ATTENTION = (
    "input_layernorm",  # LLaMA, Mistral, Qwen, Gemma, Phi, SmolLM, GPT-NeoX, Falcon, Bloom ...
    "layer_norm1",  # CLIP, SigLIP, Idefics
    "norm1",  # DINOv2, Qwen-VL's tower
    "layernorm_before",  # ViT, DeiT
    "ln_1",  # GPT-2, GPT-J, GPT-Neo
    "ln_attn",  # Falcon's new decoder
    "norm_1",  # MPT
    "operator_norm",  # LFM2
)

CLASS_TOKENS = ("class_embedding", "cls_token")

Router = Literal["modality", "cls", "mean"]
"""Whose state chooses the branches: the modality token's, the image's CLS, or the image's mean."""


@dataclass(frozen=True)
class Site:
    """One norm that an adapter can follow.

    Attributes:
        name: the norm's name in the model.
        router: whose state chooses the branches.
        owner: the name of the module whose blocks these are ("" for the model itself); for a
            language model its decoder, the module with the token embedding.
    """

    name: str
    router: Router
    owner: str


def find_sites(model: nn.Module, *, vision_tower: bool) -> list[Site]:
    """List the norms before self-attention of every decoder layer and, if asked, ViT block.

    Args:
        model: any transformers model.
        vision_tower: also list the norms in vision towers.
    """
    sites = []
    for name, _ in model.named_modules():
        block, _, leaf = name.rpartition(".")
        if leaf in NORMS_BEFORE_ATTENTION and _attends(model.get_submodule(block)):
            site = site_of(model, name)
            if site is not None and (vision_tower or site.router == "modality"):
                sites.append(site)
    return sites


def site_of(model: nn.Module, name: str) -> Site | None:
    """Tell what routes an adapter at a named module; None outside decoders and vision towers."""
    owner = _owner_of_blocks(model, name)
    if owner is None:
        return None
    if token_embedding(model.get_submodule(owner)) is not None:
        return Site(name, "modality", owner)
    tower = _vision_tower(model, owner)
    if tower is None:
        return None
    has_cls = any(n.rpartition(".")[2] in CLASS_TOKENS for n, _ in tower.named_parameters())
    return Site(name, "cls" if has_cls else "mean", owner)


def is_in_vision_tower(model: nn.Module, name: str) -> bool:
    """Tell whether a named module, in blocks or not, is part of a model that reads no text."""
    return _vision_tower(model, name) is not None


def token_embedding(module: nn.Module) -> nn.Embedding | None:
    """Return a language decoder's token embedding; None for any other module."""
    if not isinstance(module, PreTrainedModel):
        return None
    try:
        embedding = module.get_input_embeddings()
    except NotImplementedError:
        return None
    for wrapped in ("original_module", "base_layer"):  # PEFT's modules_to_save, another tuner
        embedding = getattr(embedding, wrapped, embedding)
    return embedding if isinstance(embedding, nn.Embedding) else None


def image_token_ids(module: nn.Module) -> list[int]:
    """List the placeholder token ids of images and videos in a module's own config."""
    config = getattr(module, "config", None)
    names = ("image_token_id", "image_token_index", "video_token_id")
    ids = {getattr(config, name, None) for name in names}
    return sorted(i for i in ids if isinstance(i, int))


def ancestors(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Walk from the module of that name up to the model, both included."""
    while name:
        yield name, model.get_submodule(name)
        name = name.rpartition(".")[0]
    yield "", model


def _attends(block: nn.Module) -> bool:
    return any("attn" in child or "attention" in child for child, _ in block.named_children())


def _owner_of_blocks(model: nn.Module, name: str) -> str | None:
    for ancestor, module in ancestors(model, name):
        if isinstance(module, nn.ModuleList):
            return ancestor.rpartition(".")[0]
    return None


def _vision_tower(model: nn.Module, name: str) -> PreTrainedModel | None:
    """Find the largest model around a module that reads images and no text."""
    tower = None
    for _, module in ancestors(model, name):
        if isinstance(module, PreTrainedModel):
            if not _reads_images_only(module):
                return tower
            tower = module
    return tower


def _reads_images_only(model: PreTrainedModel) -> bool:
    reads = model.input_modalities or ()
    only_images = "image" in reads and "text" not in reads
    return only_images or model.main_input_name == "pixel_values"
