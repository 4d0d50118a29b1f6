"""Tower and projector as llama.cpp's second file, mmproj: what makes tokens of an image there.

llama.cpp reads a CLIP tower's tokens in an order of its own (build 10257, `tools/mtmd/models/
llava.cpp`): the class token comes after the patches, positions are counted in that order, and all
tokens but the first go to the projector: the first patch is lost, the class token is the last. The
positions can be put right by the order of the table that is written, the tokens cannot. Towers
without a class token (SigLIP) are read as they were trained.

Letters: N images, P patches, T tokens (P, or P + 1 with a class token), C tower width, A heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionModel, PreTrainedModel

from varifocal.assemble import Assembly
from varifocal.errors import ModelError
from varifocal.exporting.gguf import as_numpy, stored_as
from varifocal.exporting.llava import check_llava_export, projector
from varifocal.exporting.merging import Produce, plain_tensors, rounded_to
from varifocal.writing import unwritable_is_an_error

MMPROJ = "mmproj.gguf"
BUILD = 10257
"""llama.cpp's build in which the order of a tower's tokens was read and run."""

_ACTIVATIONS: dict[str, tuple[dict[str, bool], Callable[[Tensor], Tensor]]] = {
    "quick_gelu": ({}, lambda x: x * torch.sigmoid(1.702 * x)),
    "gelu_pytorch_tanh": ({"clip.use_gelu": True}, partial(F.gelu, approximate="tanh")),
    "gelu": ({"clip.use_gelu": True}, F.gelu),
}
_EMBEDDINGS = {
    "embeddings.class_embedding": "v.class_embd",
    "embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "embeddings.patch_embedding.bias": "v.patch_embd.bias",
    "embeddings.position_embedding.weight": "v.position_embd.weight",
    "pre_layrnorm.weight": "v.pre_ln.weight",
    "pre_layrnorm.bias": "v.pre_ln.bias",
}
_BLOCK = {
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
_PROJECTOR = {"local.0": "mm.0", "local.2": "mm.2"}


def check_mmproj(base: PreTrainedModel, *, merges: bool) -> None:
    """Refuse a run whose images llama.cpp would read otherwise than it was trained.

    Args:
        base: the run's model inside any PEFT wrapper.
        merges: whether the tuner's adapters merge into the weights, those of the tower too.

    Raises:
        ModelError: it is no LLaVA, its tower has a class token, or an activation or a layer that
            llama.cpp has no word for.
    """
    check_llava_export(base, merges=merges, to="llamacpp")
    tower: Any = cast(Any, base).vision_tower
    config = tower.model.config
    if isinstance(tower.model, CLIPVisionModel) and projector(base).select == "patches":
        raise ModelError(
            f"llama.cpp (build {BUILD}) reads a CLIP tower's tokens in another order than this run "
            "was trained in: it drops the first patch and puts the class token last, so it would "
            "answer otherwise; train with a SigLIP tower, or with connector.image_tokens: "
            "llamacpp, or use --to llava, which vLLM and transformers serve"
        )
    if config.hidden_act not in _ACTIVATIONS:
        raise ModelError(
            f"llama.cpp's towers have {', '.join(_ACTIVATIONS)}, and this one has "
            f"{config.hidden_act}; use --to llava"
        )
    if config.intermediate_size == config.hidden_size:
        raise ModelError(
            "llama.cpp tells a tower's two feed-forward layers apart by their sizes, and this "
            f"one's are both {config.hidden_size}; use --to llava"
        )
    if num_blocks(tower) == 0:
        raise ModelError("llama.cpp runs at least one block of a tower, and this run reads none")


def num_blocks(tower: Any) -> int:
    """Return how many blocks run before the states that the projector reads."""
    layer = tower.feature_layer
    return layer if layer >= 0 else tower.num_blocks + 1 + layer


def write_mmproj(parts: Assembly, file: Path, dtype: torch.dtype) -> None:
    """Write tower and projector, one tensor in memory at a time.

    Args:
        parts: the trained model, as `check_mmproj` lets it through.
        file: is made.
        dtype: of the matrices; vectors, positions and the patches' matrix are float32.

    Raises:
        ModelError: a number is too large for the number format.
        RunError: the disk is full.
    """
    from gguf import GGUFWriter

    entries = dict(_entries(parts))
    writer = GGUFWriter(file, "clip")
    _add_header(writer, parts)
    ready = {name: partial(_stored, name, produce, dtype) for name, produce in entries.items()}
    for name, produce in ready.items():
        tensor = produce()
        size = tensor.numel() * tensor.element_size()
        kind = stored_as(tensor.dtype)
        writer.add_tensor_info(name, tuple(tensor.shape), cast(Any, None), size, kind)
    with unwritable_is_an_error(file.parent), closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for produce in ready.values():
            writer.write_tensor_data(as_numpy(produce()))


def check_written_mmproj(parts: Assembly, file: Path, dtype: torch.dtype, what: str) -> None:
    """Read the file back and make tokens of images with it, as llama.cpp's graph does.

    What is on disk has to be what was to be written, rounded; then the numbers that were not
    rounded have to give the run's own tokens.

    Args:
        parts: the trained model.
        file: as `write_mmproj` has written it.
        dtype: of its matrices.
        what: the export, for the error.

    Raises:
        ModelError: a number differs, or the tokens are others.
    """
    from gguf import GGUFReader

    reader = GGUFReader(file)
    header = {name: field.contents() for name, field in reader.fields.items()}
    wanted = dict(_entries(parts))
    stored = {tensor.name: tensor for tensor in reader.tensors}
    for name in sorted(wanted.keys() ^ stored.keys()):
        raise ModelError(f"{what}: the tensor {name} is in {MMPROJ} as written or as read alone")
    for name, produce in wanted.items():
        expected = as_numpy(_stored(name, produce, dtype))
        written = np.asarray(stored[name].data).reshape(-1).view(expected.dtype)
        if not np.array_equal(written, expected.reshape(-1)):
            raise ModelError(
                f"{what}: the tensor {name} was read back as something else than was to be "
                "written; nothing was written. Report this with the run's recipe"
            )
    side = cast(Any, parts.base).vision_tower.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    tensors = {name: produce().cpu().double() for name, produce in wanted.items()}
    emulated = emulate_image_tokens(header, tensors, pixels.double())
    own = _own_tokens(parts, pixels)
    gap = float((emulated - own).norm() / own.norm())
    if not gap <= _MOST_GAP:
        raise ModelError(
            f"{what}: {MMPROJ} makes other tokens of an image than the run, by {gap:.2g} of "
            f"themselves (allowed: {_MOST_GAP}); nothing was written. Report this with the run's "
            "recipe"
        )


_MOST_GAP = 2e-3  # llama.cpp's GELU between the projector's layers is the tanh approximation


def emulate_image_tokens(
    header: Mapping[str, Any], tensors: Mapping[str, Tensor], pixels: Tensor
) -> Tensor:
    """Make tokens of images as llama.cpp's graph for the projector `mlp` does.

    Args:
        header: the file's, by llama.cpp's names.
        tensors: the file's.
        pixels: [N, 3, H, W], normalised.

    Returns:
        [N, P, D].
    """
    size = {name.removeprefix("clip.vision."): value for name, value in header.items()}
    width, eps = size["embedding_length"], size["attention.layer_norm_epsilon"]
    layers = size.get("feature_layer")
    blocks = max(layers) if layers else size["block_count"] - 1
    quick = not header.get("clip.use_gelu")
    act = _ACTIVATIONS["quick_gelu" if quick else "gelu_pytorch_tanh"][1]
    patch = tensors["v.patch_embd.weight"]
    states = F.conv2d(pixels, patch, tensors.get("v.patch_embd.bias"), stride=patch.shape[-1])
    states = states.flatten(2).transpose(1, 2)  # [N, P, C]
    patches = states.shape[1]
    if (cls := tensors.get("v.class_embd")) is not None:
        states = torch.cat([states, cls.expand(len(states), 1, width)], dim=1)  # [N, T, C]
    states = states + tensors["v.position_embd.weight"][: states.shape[1]]

    def norm(states: Tensor, name: str) -> Tensor:
        return F.layer_norm(
            states, (width,), tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps
        )

    def linear(states: Tensor, name: str) -> Tensor:
        return F.linear(states, tensors[f"{name}.weight"], tensors[f"{name}.bias"])

    def heads(states: Tensor, name: str) -> Tensor:
        return linear(states, name).unflatten(2, (size["attention.head_count"], -1)).transpose(1, 2)

    if "v.pre_ln.weight" in tensors:
        states = norm(states, "v.pre_ln")
    for block in range(blocks):
        stem = f"v.blk.{block}"
        read = norm(states, f"{stem}.ln1")
        q, k, v = (heads(read, f"{stem}.attn_{part}") for part in "qkv")  # [N, A, T, C / A]
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        states = states + linear(mixed, f"{stem}.attn_out")
        hidden = act(linear(norm(states, f"{stem}.ln2"), f"{stem}.ffn_up"))
        states = states + linear(hidden, f"{stem}.ffn_down")
    states = states[:, -patches:]  # the first is dropped where there is a class token
    return linear(F.gelu(linear(states, "mm.0"), approximate="tanh"), "mm.2")


@torch.no_grad()
def _own_tokens(parts: Assembly, pixels: Tensor) -> Tensor:
    base: Any = parts.base
    tower = base.vision_tower.model
    training = base.training
    base.eval()
    encoded = base.encode_images(pixels.to(tower.device, tower.dtype)).double().cpu()
    base.train(training)
    return encoded


def _add_header(writer: Any, parts: Assembly) -> None:
    tower: Any = cast(Any, parts.base).vision_tower
    config, images = tower.model.config, cast(Any, parts.processor).image_processor
    blocks = num_blocks(tower)
    written = min(blocks + 1, tower.num_blocks)
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool("clip.has_llava_projector", True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(tower.image_size)
    writer.add_vision_patch_size(config.patch_size)
    writer.add_vision_embedding_length(config.hidden_size)
    writer.add_vision_feed_forward_length(config.intermediate_size)
    writer.add_vision_projection_dim(projector(parts.base).out_dim)
    writer.add_vision_head_count(config.num_attention_heads)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_block_count(written)
    if written == blocks:  # llama.cpp runs all but the last, unless it is told
        writer.add_array("clip.vision.feature_layer", [blocks])
    writer.add_vision_image_mean(list(images.image_mean))
    writer.add_vision_image_std(list(images.image_std))
    for key, value in _ACTIVATIONS[config.hidden_act][0].items():
        writer.add_bool(key, value)


def _entries(parts: Assembly) -> Iterator[tuple[str, Produce]]:
    """Name the tensors that llama.cpp reads; later blocks, final norm and head are left out."""
    tower: Any = cast(Any, parts.base).vision_tower
    written = min(num_blocks(tower) + 1, tower.num_blocks)
    for name, produce in plain_tensors(tower.model).items():
        inside = name.removeprefix("vision_model.")
        if inside in _EMBEDDINGS:
            own = partial(_rolled, produce) if _is_clip_position(tower, inside) else produce
            yield _EMBEDDINGS[inside], own
        elif inside.startswith("encoder.layers."):
            number, _, rest = inside.removeprefix("encoder.layers.").partition(".")
            part, _, kind = rest.rpartition(".")
            if int(number) < written:
                yield f"v.blk.{number}.{_BLOCK[part]}.{kind}", produce
    for name, produce in plain_tensors(projector(parts.base)).items():
        part, _, kind = name.rpartition(".")
        yield f"{_PROJECTOR[part]}.{kind}", produce


def _is_clip_position(tower: Any, name: str) -> bool:
    return isinstance(tower.model, CLIPVisionModel) and name.endswith("position_embedding.weight")


def _rolled(produce: Produce) -> Tensor:
    """Put the class token's position last, which llama.cpp counts behind the patches."""
    return produce().roll(-1, dims=0)


def _stored(name: str, produce: Produce, dtype: torch.dtype) -> Tensor:
    """Return a tensor as it is on disk: matrices of blocks and projector alone are rounded."""
    tensor = produce()
    narrow = tensor.dim() == 2 and not name.startswith("v.position_embd")
    return rounded_to(tensor, dtype if narrow else torch.float32, name)
