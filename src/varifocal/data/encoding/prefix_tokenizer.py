"""Text to token ids in pieces, with borders where a prompt ends and an answer ends."""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerBase

from varifocal.errors import ModelError

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
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    factor = _shrinks(settings["normalizer"])
    swallows = any(token["lstrip"] or token["rstrip"] for token in settings["added_tokens"])
    if factor is None or swallows or not _keeps_every_byte(settings, tokenizer.get_vocab()):
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


def _keeps_every_byte(settings: dict[str, Any], vocabulary: dict[str, int]) -> bool:
    """Tell whether each byte of a text comes out in a token."""
    model, before = settings["model"], settings["pre_tokenizer"] or {}
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


_SHORT = 64
"""Tails of a prompt up to so many characters are remembered; they are the template's, and few."""
_MOST_TAILS = 4096


@dataclass(frozen=True)
class _Mark:
    """A special token in a text: its characters, and its place among the ids."""

    start: int
    end: int
    index: int


class PieceTokenizer:
    """Tokenises a text as a whole and says which ids belong to which of its pieces.

    A special token is a wall: nothing merges across it, so the ids before one in the whole text
    are those of the text before it. Only what follows the last wall is tokenised again to see
    where a prompt ends.

    Attributes:
        tokenizer: any tokenizer of transformers.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._walls = _walls(tokenizer)
        self._walls_swallow = any(
            token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values()
        )
        longest_first = sorted(self._walls, key=lambda token: (-len(token), token))
        self._wall = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._wall_ids = frozenset(self._walls.values())
        self._tails: dict[str, list[int]] = {}

    def split(self, text: str, cuts: Sequence[int]) -> list[list[int]]:
        """Split a text into token ids with borders at certain characters.

        Where a token would lie across a border, both sides are tokenised apart, because that is
        how they meet when the model is asked: a prompt first, then what it writes.

        Args:
            text: a rendered conversation.
            cuts: characters at which a piece ends, ascending.

        Returns:
            The ids of `len(cuts) + 1` pieces.
        """
        pieces: list[list[int]] = []
        base, used, last = 0, 0, 0
        joint = self._ids(text)
        marks = self._marks(text, joint)
        for cut in cuts:
            left = self._before(base, cut, text, joint, marks)
            if joint[: len(left)] == left and left[:used] == joint[:used]:
                pieces.append(left[used:])
                used = len(left)
            else:
                apart = left[used:] if left[:used] == joint[:used] else None
                pieces.append(self._continue(text[last:cut]) if apart is None else apart)
                joint, marks = self._after(cut, text, joint, marks)
                base, used = cut, 0
            last = cut
        return [*pieces, joint[used:]]

    def _marks(self, text: str, joint: Sequence[int]) -> list[_Mark]:
        """Find the walls of a text in its ids; none where the two do not agree."""
        matches = list(self._wall.finditer(text))
        places = [index for index, number in enumerate(joint) if number in self._wall_ids]
        if [self._walls[match.group()] for match in matches] != [joint[place] for place in places]:
            return []
        pairs = zip(matches, places, strict=True)
        return [_Mark(match.start(), match.end(), place) for match, place in pairs]

    def _before(
        self, base: int, cut: int, text: str, joint: Sequence[int], marks: Sequence[_Mark]
    ) -> list[int]:
        """Return the ids from a character to another, as if nothing followed.

        Args:
            base: where `joint` begins.
            cut: where the ids end.
            text: all of it.
            joint: ids of the text from `base` on.
            marks: the walls in it.
        """
        place = bisect_left(marks, cut, key=lambda mark: mark.start)
        if place == 0 or marks[place - 1].end > cut:
            return self._ids(text[:cut]) if base == 0 else self._continue(text[base:cut])
        mark = marks[place - 1]
        return [*joint[: mark.index], *self._tail(text[mark.start : cut])]

    def _after(
        self, cut: int, text: str, joint: Sequence[int], marks: Sequence[_Mark]
    ) -> tuple[list[int], list[_Mark]]:
        """Return the ids from a character on, tokenised apart, and the walls in them.

        After the next wall they are those of before, so a conversation of many turns is not
        tokenised from each turn to its end.
        """
        place = bisect_left(marks, cut, key=lambda mark: mark.start)
        if place == len(marks) or self._walls_swallow:
            return self._continue(text[cut:]), []
        old = marks[place]
        begin = self._continue(text[cut : old.start]) if old.start > cut else []
        shift = len(begin) - old.index
        later = [_Mark(mark.start, mark.end, mark.index + shift) for mark in marks[place:]]
        return [*begin, *joint[old.index :]], later

    def _tail(self, text: str) -> list[int]:
        """Tokenise what begins with a wall, or remember it."""
        known = self._tails.get(text)
        if known is not None:
            return known
        ids = self._ids(text)
        if len(text) <= _SHORT and len(self._tails) < _MOST_TAILS:
            self._tails[text] = ids
        return ids

    def _ids(self, text: str) -> list[int]:
        backend = _plain_backend(self.tokenizer)
        if backend is not None:  # without offsets, which take a quarter of the time
            return backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
        encoding = self.tokenizer(text, add_special_tokens=False, verbose=False)
        return list(encoding.input_ids)

    def _continue(self, text: str) -> list[int]:
        """Tokenise text that stands after other text.

        Some tokenizers (Llama-2's) set a blank in front of whatever they are given. So the text is
        tokenised after a stand-in, whose ids are taken off again where the two do not merge.
        """
        for stand_in in ("\n", ":", "x"):
            begin = self._ids(stand_in)
            joint = self._ids(stand_in + text)
            if joint[: len(begin)] == begin:
                return joint[len(begin) :]
        return self._ids(text)


def _walls(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the special tokens that are found in raw text, wherever they stand, and their ids."""
    if not tokenizer.is_fast:
        return {}
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.special and not token.normalized and not token.single_word and token.content
    }


def _plain_backend(tokenizer: Any) -> Any:
    """Return the tokenizer's Rust part if it would now give whole texts' ids, else None.

    Whoever padded or truncated with this tokenizer before has left that set in it.
    """
    if not tokenizer.is_fast or tokenizer.split_special_tokens:
        return None
    backend = tokenizer.backend_tokenizer
    changed = backend.padding or backend.truncation or backend.encode_special_tokens
    return None if changed else backend


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """Return the SHA-256, in hex, over everything that decides a tokenizer's ids."""
    if tokenizer.is_fast:
        settings: Any = json.loads(tokenizer.backend_tokenizer.to_str())
        for state in ("padding", "truncation"):  # what the last caller asked for
            settings.pop(state, None)
    else:
        added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
        settings = [type(tokenizer).__name__, tokenizer.get_vocab(), added]
    settings = [settings, dict(tokenizer.special_tokens_map), bool(tokenizer.split_special_tokens)]
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def placeholder_id(
    tokenizer: PreTrainedTokenizerBase, token: str | None, number: int | None
) -> int | None:
    """Return the id of an image placeholder; None without one.

    Args:
        tokenizer: any tokenizer of transformers.
        token: the placeholder.
        number: the id it should have; None for any.

    Raises:
        ModelError: it is not one token, or has another id.
    """
    if token is None:
        return None
    ids = list(tokenizer(token, add_special_tokens=False).input_ids)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ModelError(
            f"the tokenizer does not know the image placeholder '{token}' as one token"
        )
    if number is not None and ids[0] != number:
        raise ModelError(
            f"the placeholder '{token}' has id {ids[0]} in the tokenizer, not {number}"
        )
    return ids[0]
