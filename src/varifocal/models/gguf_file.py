"""From a GGUF file of the LLaMA architecture to a `from_pretrained` directory.

transformers reads GGUF files too; for this one it takes twenty seconds, reads the file three times
and leaves out the pre-tokenizer that the file names. The format is read by the `gguf` package; here
are only the names, the order of the rotary dimensions, and the tokenizer.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from varifocal.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFReader

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL = 3  # GGUF's token type of <|im_start|> and its like


def convert_gguf(file: Path, directory: Path, dtype: torch.dtype) -> None:
    """Write a model's config, weights (dequantised) and tokenizer.

    Args:
        file: a GGUF file of architecture `llama` with a `smollm` byte-level BPE tokenizer.
        directory: existing; gets what `from_pretrained` reads.
        dtype: of the weights.

    Raises:
        ModelError: the `gguf` package is missing, or the file is of another kind.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(f"{file.name} is read by the package 'gguf': pip install gguf") from error
    reader = GGUFReader(file)
    kind = (_field(reader, "general.architecture"), _field(reader, "tokenizer.ggml.pre"))
    if kind != ("llama", "smollm"):
        raise ModelError(f"{file}: architecture and tokenizer are {kind}, not llama and smollm")
    config = _config(reader)
    config.dtype = dtype
    config.architectures = [LlamaForCausalLM.__name__]
    config.save_pretrained(directory)
    GenerationConfig.from_model_config(config).save_pretrained(directory)
    weights = {name: tensor.to(dtype) for name, tensor in _weights(reader, config)}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(reader, config).save_pretrained(directory)


def _field(reader: "GGUFReader", name: str) -> Any:
    field = reader.get_field(name)
    return None if field is None else field.contents()


def _config(reader: "GGUFReader") -> LlamaConfig:
    def of(name: str) -> Any:
        return _field(reader, f"llama.{name}")

    return LlamaConfig(
        vocab_size=of("vocab_size"),
        hidden_size=of("embedding_length"),
        intermediate_size=of("feed_forward_length"),
        num_hidden_layers=of("block_count"),
        num_attention_heads=of("attention.head_count"),
        num_key_value_heads=of("attention.head_count_kv"),
        max_position_embeddings=of("context_length"),
        rope_parameters={"rope_type": "default", "rope_theta": of("rope.freq_base")},
        rms_norm_eps=round(of("attention.layer_norm_rms_epsilon"), 9),  # stored as float32
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
    )


def _weights(reader: "GGUFReader", config: LlamaConfig) -> list[tuple[str, Tensor]]:
    """Dequantise every tensor to float32, under transformers' names."""
    from gguf.quants import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = []
    for entry in reader.tensors:
        *block, part, kind = entry.name.split(".")  # blk.3.attn_q.weight or output_norm.weight
        prefix = f"model.layers.{block[1]}." if block else ""
        tensor = torch.tensor(dequantize(entry.data, entry.tensor_type))
        if part in heads:
            tensor = _halves(tensor, heads[part])
        found.append((f"{prefix}{_NAMES[part]}.{kind}", tensor))
    return found


def _halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's rows from llama.cpp's rotary pairs (0, 1) to halves (0, d / 2)."""
    pairs = weight.unflatten(0, (num_heads, -1, 2))  # [heads, head width / 2, 2, D]
    return pairs.transpose(1, 2).flatten(0, 2).contiguous()


def _tokenizer(reader: "GGUFReader", config: LlamaConfig) -> PreTrainedTokenizerFast:
    tokens = _field(reader, "tokenizer.ggml.tokens")
    types = _field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    backend = Tokenizer(BPE({token: number for number, token in enumerate(tokens)}, merges))
    # what the file calls "smollm": digits stand alone, then GPT-2's byte-level words
    digits, words = Digits(individual_digits=True), ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = Sequence([digits, words])  # pyright: ignore[reportAttributeAccessIssue]
    backend.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in control]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[config.bos_token_id],
        eos_token=tokens[config.eos_token_id],
        pad_token=tokens[config.pad_token_id],
        unk_token=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _field(reader, "tokenizer.chat_template")
    return tokenizer
