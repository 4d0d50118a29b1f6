"""Token ids in, whole characters out, and no further than a stop word.

A tokenizer may spread one character over several tokens, and a stop word may begin in one token
and end in another. Both are held back until it is clear what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class TextStream:
    """Turns token ids into text as they come, without ever splitting a character.

    A tokenizer may also write a token differently at the start of a text. So each token is decoded
    together with those of the last piece that was given out, and held back while its text ends in
    half a character.

    Args:
        tokenizer: any tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ids: list[int] = []
        self._before = 0  # where the last piece that was given out begins
        self._given = 0  # how many tokens have been given out

    def push(self, token: int) -> str:
        """Take a token and return the text that is now whole, perhaps none."""
        self._ids.append(token)
        piece = self._pending()
        return "" if piece.endswith(REPLACEMENT) else self._give(piece)

    def flush(self) -> str:
        """Return what was held back: half characters, as replacement characters."""
        return self._give(self._pending())

    def _pending(self) -> str:
        """Return the text beyond what was given."""
        context = self._text(self._ids[self._before : self._given])
        return self._text(self._ids[self._before :])[len(context) :]

    def _give(self, piece: str) -> str:
        """Note that all tokens are given out, if they have text."""
        if piece:
            self._before, self._given = self._given, len(self._ids)
        return piece

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class Opening:
    """Holds back what a chat template puts in front of every answer: an empty thought, a channel.

    Args:
        ids: the tokens that it consists of.

    Attributes:
        was_left_out: whether the answer began with it.
    """

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = list(ids)
        self._matched = 0
        self._is_over = not self._ids
        self.was_left_out = False

    def push(self, token: int) -> list[int]:
        """Take a token and return those that belong to the answer."""
        if self._is_over:
            return [token]
        if token == self._ids[self._matched]:
            self._matched += 1
            self.was_left_out = self._is_over = self._matched == len(self._ids)
            return []
        return [*self.flush(), token]

    def flush(self) -> list[int]:
        """Return what was held back: the answer begins, or ends, in another way."""
        held = [] if self._is_over else self._ids[: self._matched]
        self._is_over = True
        return held


class StopWords:
    """Lets text through up to the stop word that is complete first, never a part of one.

    Of words that are complete at the same character the longest counts. So the text does not
    depend on the pieces in which it comes, which "the word that begins first" would: of "abab" and
    "b", "b" is found in the text "ab" before anyone can know that "abab" will follow.

    Args:
        words: where an answer ends; none empty.

    Attributes:
        found: whether a stop word has come; nothing is let through from then on.
        passed: how many characters have been let through.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self.found = False
        self.passed = 0
        self._held = ""

    def push(self, text: str) -> str:
        """Take text and return what can no longer be part of a stop word."""
        if self.found:
            return ""
        self._held += text
        found = [(place + len(word), place) for word, place in self._places()]
        if found:
            self.found = True
            return self._let(min(found)[1], keep="")
        held = max((_overlap(self._held, word) for word in self.words), default=0)
        return self._let(len(self._held) - held)

    def flush(self) -> str:
        """Return what was held back: the answer ended before it became a stop word."""
        return "" if self.found else self._let(len(self._held))

    def _places(self) -> list[tuple[str, int]]:
        """Return the stop words that the held text has, with the first place of each."""
        return [(word, place) for word in self.words if (place := self._held.find(word)) >= 0]

    def _let(self, length: int, keep: str | None = None) -> str:
        text = self._held[:length]
        self._held = self._held[length:] if keep is None else keep
        self.passed += length
        return text


def _overlap(text: str, word: str) -> int:
    """Return the length of the longest end of a text that a word begins with, short of the word.

    >>> _overlap("the en", "end"), _overlap("abab", "abaa"), _overlap("xyz", "end")
    (2, 2, 0)
    """
    longest = min(len(text), len(word) - 1)
    return next((n for n in range(longest, 0, -1) if word.startswith(text[-n:])), 0)
