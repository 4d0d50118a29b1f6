"""A plain language model as a GGUF file, which llama.cpp and Ollama read.

A LLaMA with biases after q, k and v, as a folded route is, has exactly Qwen2's form; under the
name `llama` some readers (transformers' among them) drop the biases without a word. So it is
written as `qwen2`, and a model without biases as `llama`, in llama.cpp's order of rotary pairs.

Letters: H heads, D language width.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from varifocal.data.encoding.encoder import Encoder
from varifocal.errors import ModelError
from varifocal.exporting.merging import Produce, rounded_to
from varifocal.exporting.plain_tensors import PlainModel, chat_template
from varifocal.exporting.vocabulary import OTHERWISE, add_vocabulary, vocabulary_of
from varifocal.writing import unwritable_is_an_error

if TYPE_CHECKING:
    from gguf import GGUFWriter

FILE = "model.gguf"
Q8_0 = "q8_0"
"""The number format that GGUF files alone have: whole numbers, a float16 scale for each 32."""

_KINDS = ("llama", "qwen2")
_BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias")


def check_gguf(config: Any) -> None:
    """Refuse what is not written as GGUF here, before anything is computed.

    Args:
        config: the language model's.

    Raises:
        ModelError: the package is missing, or architecture or rotary embedding are of a kind that
            was not held against llama.cpp.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelError("--to gguf writes with the package 'gguf': pip install gguf") from error
    if config.model_type not in _KINDS:
        raise ModelError(
            f"--to gguf writes {' and '.join(_KINDS)} models, not {config.model_type}: {OTHERWISE}"
        )
    rope = config.rope_parameters
    if rope.get("rope_type", "default") != "default" or getattr(config, "use_sliding_window", 0):
        raise ModelError(
            f"--to gguf writes plain rotary embeddings and full attention, and this model has "
            f"{rope.get('rope_type')} or a sliding window: {OTHERWISE}"
        )
    if getattr(config, "head_dim", None) not in (None, _head_dim(config)):
        raise ModelError(
            f"--to gguf writes heads of hidden_size / num_attention_heads = {_head_dim(config)} "
            f"numbers, not {config.head_dim}: {OTHERWISE}"
        )


def write_gguf(
    model: PlainModel,
    tokenizer: PreTrainedTokenizerBase,
    file: Path,
    encoder: Encoder,
    *,
    quantized: bool = False,
) -> tuple[str, ...]:
    """Write a language model and its tokenizer, one tensor in memory at a time.

    Args:
        model: as `check_gguf` lets it through.
        tokenizer: its own.
        file: is made.
        encoder: the run's, for its chat template and the token that ends an answer.
        quantized: whether matrices are written as Q8_0.

    Returns:
        What texts llama.cpp reads otherwise than the run, a sentence each.

    Raises:
        ModelError: a tensor has no place in such a file, or a number is too large for its format.
        RunError: the disk is full.
    """
    from gguf import GGML_QUANT_SIZES, GGUFWriter

    entries = _entries(model)
    biased = any(name.endswith("attn_q.bias") for name in entries)
    writer = GGUFWriter(file, "qwen2" if biased else "llama")
    _add_sizes(writer, model.config, pairs=not biased)
    _add_file_type(writer, model.config.dtype, quantized=quantized)
    vocabulary = vocabulary_of(tokenizer, encoder)
    add_vocabulary(writer, vocabulary, tokenizer, model.config.vocab_size)
    writer.add_eot_token_id(encoder.end_of_turn_id)
    writer.add_chat_template(chat_template(encoder))
    kinds = {own: _kind_of(model.shapes[own], quantized=quantized) for own, _ in entries.values()}
    for name, (own, _) in entries.items():
        shape = model.shapes[own]
        block, block_bytes = GGML_QUANT_SIZES[kinds[own]]
        size = shape.numel() // block * block_bytes
        writer.add_tensor_info(name, tuple(shape.shape), cast(Any, None), size, kinds[own])
    with unwritable_is_an_error(file.parent), closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for own, produce in entries.values():
            tensor = _in_pairs(produce(), own, model.config) if not biased else produce()
            writer.write_tensor_data(_encoded(tensor, kinds[own], own))
    return vocabulary.notes


def _entries(model: PlainModel) -> dict[str, tuple[str, Produce]]:
    """Name the tensors as GGUF does; attention's last bias, which Qwen2 lacks, has to be zero."""
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH.LLAMA, model.config.num_hidden_layers)
    entries: dict[str, tuple[str, Produce]] = {}
    for own, produce in model.tensors.items():
        stem, _, kind = own.rpartition(".")
        name = names.get_name(stem)
        if own.endswith(".o_proj.bias") and not produce().any():
            continue
        if name is None or (kind == "bias" and not own.endswith(_BIASES)):
            raise ModelError(f"{own} has no place in a GGUF file of llama or qwen2: {OTHERWISE}")
        entries[f"{name}.{kind}"] = (own, produce)
    return entries


def _head_dim(config: Any) -> int:
    return config.hidden_size // config.num_attention_heads


def _add_sizes(writer: GGUFWriter, config: Any, *, pairs: bool) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if pairs:
        writer.add_rope_dimension_count(_head_dim(config))


def _add_file_type(writer: GGUFWriter, dtype: torch.dtype, *, quantized: bool) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    kinds = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
    writer.add_file_type(LlamaFileType["MOSTLY_Q8_0" if quantized else kinds[dtype]])
    if quantized:
        writer.add_quantization_version(GGML_QUANT_VERSION)


def _in_pairs(tensor: Tensor, name: str, config: Any) -> Tensor:
    """Reorder the rows [H x head width, D] of q and k from halves to neighbouring pairs."""
    heads = {
        "q_proj": config.num_attention_heads,
        "k_proj": config.num_key_value_heads,
    }.get(name.split(".")[-2])
    if heads is None:
        return tensor
    halves = tensor.unflatten(0, (heads, 2, -1))  # [H, 2, head width / 2, D]
    return halves.transpose(1, 2).flatten(0, 2).contiguous()


def stored_dtype(shape: Tensor) -> torch.dtype:
    """Return a tensor's number format in the file: vectors are float32, as llama.cpp wants them."""
    return shape.dtype if shape.dim() > 1 else torch.float32


def _kind_of(shape: Tensor, *, quantized: bool) -> Any:
    """Return GGUF's number format of a tensor.

    Args:
        shape: a meta tensor in the number format of the model.
        quantized: whether matrices are Q8_0. As in llama.cpp's own converter, embedding and head
            are too, vectors (norms and biases) are float32, and a matrix whose rows do not divide
            into blocks keeps the model's number format.
    """
    from gguf import GGML_QUANT_SIZES
    from gguf import GGMLQuantizationType as Kind

    if quantized and shape.dim() > 1 and shape.shape[-1] % GGML_QUANT_SIZES[Kind.Q8_0][0] == 0:
        return Kind.Q8_0
    return stored_as(stored_dtype(shape))


def as_read(tensor: Tensor, shape: Tensor, *, quantized: bool) -> Tensor:
    """Return a tensor's numbers as a reader finds them in the file.

    Args:
        tensor: as it was trained.
        shape: as `_kind_of` takes it.
        quantized: likewise.
    """
    from gguf.quants import dequantize

    kind = _kind_of(shape, quantized=quantized)
    if kind.name == "Q8_0":
        return torch.from_numpy(dequantize(_encoded(tensor, kind, ""), kind))
    return tensor.to(stored_dtype(shape))


def _encoded(tensor: Tensor, kind: Any, name: str) -> Any:
    """Return a tensor's numbers, or its blocks' bytes, as they are written."""
    if kind.name != "Q8_0":
        return as_numpy(rounded_to(tensor, getattr(torch, _DTYPES[kind.name]), name))
    from gguf.quants import quantize

    largest = float(tensor.abs().max())
    if largest / 127 > torch.finfo(torch.float16).max:  # a block's scale
        raise ModelError(
            f"{name} holds numbers up to {largest:.3g}, which q8_0 cannot hold; export with "
            "--dtype bfloat16 or float32; nothing was written"
        )
    return quantize(tensor.detach().cpu().float().numpy(), kind)


_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def stop_ids_of(file: Path) -> list[int]:
    """Read the ids at which llama.cpp ends an answer."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return sorted({int(fields[name].contents()) for name in names if name in fields})


def stored_as(dtype: torch.dtype) -> Any:
    """Return GGUF's name of a number format."""
    from gguf import GGMLQuantizationType as Kind

    return {getattr(torch, name): Kind[kind] for kind, name in _DTYPES.items()}[dtype]


def as_numpy(tensor: Tensor) -> Any:
    """Return a tensor's numbers as they are written; numpy has no name for bfloat16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()
