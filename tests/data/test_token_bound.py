"""The fewest tokens of a text are never more than it takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tiny import byte_tokenizer
from varifocal.data.encoding.prefix_tokenizer import TokenBound


def merging(normalizer=None, **model) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes that writes up to eight "a" as one token."""
    letters = {letter: number for number, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    vocabulary = {**letters, "aa": 256, "aaaa": 257, "aaaaaaaa": 258}
    merges = [("a", "a"), ("aa", "aa"), ("aaaa", "aaaa")]
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **model))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    if normalizer is not None:
        core.normalizer = normalizer
    return PreTrainedTokenizerFast(tokenizer_object=core)


def words() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.WordLevel({"[UNK]": 0, "magnet": 1}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]")


def swallowing() -> PreTrainedTokenizerFast:
    tokenizer = merging()
    tokenizer.add_tokens([AddedToken("<x>", lstrip=True, normalized=False)])
    return tokenizer


NORMAL = normalizers.Sequence([normalizers.NFC()])
TOKENIZERS = {
    "bytes": byte_tokenizer(),
    "merging": merging(),
    "a normal form": merging(NORMAL),
    "blanks made visible": merging(normalizers.Replace(" ", "\u2581")),
    "words": words(),
    "lower case": merging(normalizers.Lowercase()),
    "blanks taken out": merging(normalizers.Replace(" ", "")),
    "a token that swallows blanks": swallowing(),
}
parts = st.sampled_from(["a" * 8, "a" * 100, "\u212a", "\u1f82", "e\u0301", " ", "magnet", "<x>"])
texts = st.lists(parts | st.text(st.characters(exclude_categories=["Cs"]))).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=40, deadline=None)
@given(text=texts)
def test_no_text_takes_fewer(name, text) -> None:
    tokenizer = TOKENIZERS[name]
    taken = len(tokenizer(text, add_special_tokens=False).input_ids)
    assert TokenBound(tokenizer)(text) <= taken


@pytest.mark.parametrize(
    ("name", "longest"),
    [
        ("bytes", 5),  # <pad>
        ("merging", 8),
        ("a normal form", 24),
        ("blanks made visible", 8),
        ("words", None),
        ("lower case", None),
        ("blanks taken out", None),
        ("a token that swallows blanks", None),
    ],
)
def test_the_longest_token_is_known_where_every_byte_comes_out(name, longest) -> None:
    bound = TokenBound(TOKENIZERS[name])
    assert bound.longest == longest
    assert bound("a" * 100) == (0 if longest is None else -(-100 // longest))
