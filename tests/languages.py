"""Small language models for exports: of bytes, or of SentencePiece's pieces."""

import json

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny import TEMPLATE


def byte_level(cuts=None, *, ascii_alone=False):
    """A tokenizer of bytes: their letters, two pairs of them, four special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if ascii_alone:  # whatever is written is text
        alphabet = [letter for letter in alphabet if letter.isascii()] + ["\u0120", "\u010a"]
    words = {c: i for i, c in enumerate([*alphabet, "in", "ll"])}
    core = Tokenizer(models.BPE(vocab=words, merges=[("i", "n"), ("l", "l")]))
    core.pre_tokenizer = cuts or pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        **{f"{n}_token": t for n, t in {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}.items()},
        unk_token="<unk>",
    )


def save_language(directory, cuts=None, template=TEMPLATE, special=(), tokenizer=None, **changes):
    """Save a small LLaMA under a tokenizer, by default one of bytes."""
    tokenizer = tokenizer or byte_level(cuts)
    if special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    ends = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), **{**sizes, **ends, **changes})
    LlamaForCausalLM(config).save_pretrained(directory)


PIECES = """The quick brown fox jumps over the lazy dog. What comes after four lines? I'll say: one,
two, three colours of a house and its garden; the system asks the user, the assistant answers."""


def sentencepiece(*, legacy=True):
    """LLaMA's kind of tokenizer: pieces with bytes to fall back on, here of one sentence."""
    alphabet = sorted(set(PIECES.replace("\n", " ").replace(" ", "\u2581")))
    words = [word for word in PIECES.split() for _ in range(2)]
    core = Tokenizer(models.BPE())
    core.train_from_iterator(
        ["\u2581" + word for word in words],
        trainers.BpeTrainer(vocab_size=200, initial_alphabet=alphabet, show_progress=False),
    )
    trained = json.loads(core.to_str())["model"]["vocab"]
    pieces = sorted((p for p in trained if len(p) > 1), key=trained.__getitem__)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {token: number for number, token in enumerate([*tokens, *pieces, *alphabet])}
    merges = [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in vocab and piece[at:] in vocab
    ]
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True))
    blanks = normalizers.Replace(" ", "\u2581")
    if legacy:
        core.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), blanks])
    else:
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    core.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} "
    "{% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}</s>{% else %}{{ m.content }} "
    "{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

OWN_END = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|eot|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
