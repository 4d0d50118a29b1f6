"""The writing of one answer: from a row's logits to tokens, text, log-probabilities and the end.

Letters: V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from varifocal.serving.request import FinishReason, Piece, Request, SampledToken

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
        matches = [(place + len(word), place) for word, place in self._places()]
        if matches:
            self.found = True
            return self._let(min(matches)[1], keep="")
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


class Writing:
    """Writes a request's answer.

    Args:
        request: the request; gets the pieces.
        tokenizer: any tokenizer of transformers.
        stop_ids: ids at which an answer ends.
        max_tokens: most tokens of this answer.
        opening: tokens that the chat template puts in front of every answer; where the answer
            begins with them, they and their log-probabilities are not told.
    """

    def __init__(
        self,
        request: Request,
        tokenizer: Any,
        stop_ids: frozenset[int],
        max_tokens: int,
        opening: Sequence[int] = (),
    ) -> None:
        self.request = request
        self.tokenizer = tokenizer
        self.stop_ids = stop_ids
        self.max_tokens = max_tokens
        self._parser = request.parser
        self._choose = request.sampling.chooser()
        self._opening = Opening(opening)
        self._text = TextStream(tokenizer)
        self._stop = StopWords(request.sampling.stop)
        self._written = 0  # characters that came out of the tokens
        self._told: deque[tuple[int, SampledToken]] = deque()  # where each begins

    def choose(
        self, logits: Tensor, allowed: Tensor, likeliest: int
    ) -> tuple[int, FinishReason | None]:
        """Choose the next token and hand its text on.

        Args:
            logits: [1, V], the model's own.
            allowed: [1, V], the same with minus infinity for what may not be written.
            likeliest: the id of the largest of them.

        Returns:
            The token, and why the answer ends with it; None if it does not.
        """
        sampling = self.request.sampling
        token = likeliest if sampling.temperature == 0 else int(self._choose(allowed)[0])
        self.request.completion_tokens += 1
        is_complete = self._parser is not None and self._parser.push(token)
        if token in self.stop_ids:
            self._end()
            return token, "stop"
        if sampling.logprobs is not None:
            logprob = token_logprob(logits[0], token, sampling.logprobs, self.tokenizer)
            self._told.append((self._written, logprob))
        for piece in self._opening.push(token):
            self._hand_on(self._text.push(piece))
        if self._opening.was_left_out and not self._written:
            self._told.clear()
        if self._stop.found:
            return token, "stop"
        is_cut = self.request.completion_tokens >= self.max_tokens
        if is_cut or is_complete:
            self._end()
            return token, "stop" if self._stop.found or is_complete else "length"
        return token, None

    def _hand_on(self, text: str, *, is_last: bool = False) -> None:
        if self._opening.was_left_out and not self._written:
            text = text.lstrip("\n")
        self._written += len(text)
        passed = self._stop.push(text)
        if is_last:
            passed += self._stop.flush()
        logprobs = []
        while self._told and (
            self._told[0][0] < self._stop.passed or (is_last and not self._stop.found)
        ):
            logprobs.append(self._told.popleft()[1])
        if passed or logprobs:
            self.request.give(Piece(passed, tuple(logprobs)))

    def _end(self) -> None:
        for token in self._opening.flush():
            self._hand_on(self._text.push(token))
        self._hand_on(self._text.flush(), is_last=True)


def token_logprob(logits: Tensor, token: int, top: int, tokenizer: Any) -> SampledToken:
    """Tell a token's log-probability and the likeliest tokens', from logits [V]."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = logits.to(wide).log_softmax(dim=-1)
    best = logprobs.topk(top).indices.tolist() if top else []
    texts = [(*token_text(tokenizer, candidate), float(logprobs[candidate])) for candidate in best]
    text, content = token_text(tokenizer, token)
    return SampledToken(
        text,
        float(logprobs[token]),
        content,
        tuple((text, logprob, content) for text, content, logprob in texts),
    )


def token_text(tokenizer: Any, token: int) -> tuple[str, bytes]:
    """Return a token's text and bytes, special ones in full.

    A byte-level tokenizer may cut a character in two; its tokens then have no text, but bytes.
    """
    text = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    if REPLACEMENT not in text:
        return text, text.encode()
    letters = tokenizer.convert_ids_to_tokens(token)
    try:
        return text, bytes(_BYTES[letter] for letter in letters)
    except KeyError:
        pass
    if letters.startswith("<0x") and letters.endswith(">"):
        return text, bytes([int(letters[3:-1], 16)])
    return text, text.encode()


def _byte_letters() -> dict[str, int]:
    """Return GPT-2's table of printable stand-ins for bytes, the other way round."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    moved = [byte for byte in range(256) if byte not in plain]
    letters = {chr(byte): byte for byte in plain}
    return letters | {chr(256 + place): byte for place, byte in enumerate(moved)}


_BYTES = _byte_letters()
