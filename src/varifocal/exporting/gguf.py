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
) -> tuple[str, ...]:
    """Write a language model and its tokenizer, one tensor in memory at a time.

    Args:
        model: as `check_gguf` lets it through.
        tokenizer: its own.
        file: is made.
        encoder: the run's, for its chat template and the token that ends an answer.

    Returns:
        What texts llama.cpp reads otherwise than the run, a sentence each.

    Raises:
        ModelError: a tensor has no place in such a file.
        RunError: the disk is full.
    """
    from gguf import GGUFWriter

    entries = _entries(model)
    biased = any(name.endswith("attn_q.bias") for name in entries)
    writer = GGUFWriter(file, "qwen2" if biased else "llama")
    _add_sizes(writer, model.config, pairs=not biased)
    vocabulary = vocabulary_of(tokenizer, encoder)
    add_vocabulary(writer, vocabulary, tokenizer, model.config.vocab_size)
    writer.add_eot_token_id(encoder.end_of_turn_id)
    writer.add_chat_template(chat_template(encoder))
    for name, (own, _) in entries.items():
        shape = model.shapes[own]
        kind = stored_as(stored_dtype(shape))
        size = shape.numel() * (4 if kind.name == "F32" else 2)
        writer.add_tensor_info(name, tuple(shape.shape), cast(Any, None), size, kind)
    with unwritable_is_an_error(file.parent), closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for own, produce in entries.values():
            tensor = rounded_to(produce(), stored_dtype(model.shapes[own]), own)
            tensor = _in_pairs(tensor, own, model.config) if not biased else tensor
            writer.write_tensor_data(as_numpy(tensor))
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
    from gguf import LlamaFileType

    kinds = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(LlamaFileType[kinds[config.dtype]])
    if pairs:
        writer.add_rope_dimension_count(_head_dim(config))


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


def stop_ids_of(file: Path) -> list[int]:
    """Read the ids at which llama.cpp ends an answer."""
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    return sorted({int(fields[name].contents()) for name in names if name in fields})


def stored_as(dtype: torch.dtype) -> Any:
    """Return GGUF's name of a number format."""
    from gguf import GGMLQuantizationType as Kind

    return {torch.float32: Kind.F32, torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}[dtype]


def as_numpy(tensor: Tensor) -> Any:
    """Return a tensor's numbers as they are written; numpy has no name for bfloat16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        tensor = tensor.view(torch.int16)
    return tensor.numpy()
