"""The fewest tokens that a text can take, without tokenising it."""

from __future__ import annotations

import json
import math
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

_COMPOSED = 3
"""A normal form takes at most three bytes for one: a composed letter is a third of its parts."""


class TokenBound:
    """Bounds a text's tokens from below by its bytes: none stands for more than the longest token.

    That holds for tokenizers of bytes: every byte is in some token. Where runs of text can become
    one token or none (an unknown token, lower case, blanks that a special token swallows), nothing
    is known and the bound is 0.

    Args:
        tokenizer: any tokenizer of transformers.

    Attributes:
        longest: most bytes of a text that one token can stand for; None where nothing is known.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.longest = _longest(tokenizer)

    def __call__(self, text: str) -> int:
        """Return a number of tokens that a text takes at least."""
        return 0 if self.longest is None else -(-len(text.encode()) // self.longest)


def _longest(tokenizer: Any) -> int | None:
    if not tokenizer.is_fast:
        return None
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    factor = _shrinks(told["normalizer"])
    swallows = any(token["lstrip"] or token["rstrip"] for token in told["added_tokens"])
    if factor is None or swallows or not _keeps_every_byte(told, tokenizer.get_vocab()):
        return None
    return factor * max(len(token.encode()) for token in tokenizer.get_vocab())


def _shrinks(normalizer: dict[str, Any] | None) -> int | None:
    """Return how many times shorter a normalizer can make a text; None where it is not known."""
    if normalizer is None:
        return 1
    kind = normalizer["type"]
    if kind == "Sequence":
        factors = [_shrinks(each) for each in normalizer["normalizers"]]
        known = [each for each in factors if each is not None]
        return math.prod(known) if len(known) == len(factors) else None
    if kind == "Prepend":
        return 1
    if kind in ("NFC", "NFD"):
        return _COMPOSED
    if kind == "Replace":
        old, new = normalizer["pattern"].get("String"), normalizer["content"]
        return 1 if old and len(new.encode()) >= len(old.encode()) else None
    return None


def _keeps_every_byte(told: dict[str, Any], vocabulary: dict[str, int]) -> bool:
    """Tell whether each byte of a text comes out in a token."""
    model, before = told["model"], told["pre_tokenizer"] or {}
    if model["type"] != "BPE":
        return False
    if model.get("byte_fallback"):
        return all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))
    steps = before.get("pretokenizers", [before])
    drops = {"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}
    for step in steps:
        removed = step.get("behavior", "") == "Removed"
        if removed or step.get("type") in drops:
            return False
    is_byte_level = any(step.get("type") == "ByteLevel" for step in steps)
    return is_byte_level and all(letter in vocabulary for letter in ByteLevel.alphabet())
