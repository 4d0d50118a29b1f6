"""BLEU-4 (Papineni et al. 2002) and CIDEr (Vedantam et al. 2015) as COCO's caption script has them.

That script's "CIDEr" is CIDEr-D, with clipped counts and a penalty on the length; both scores here
agree with it to twelve digits on equal tokens. (Of a single caption the script takes the average
length of the references, here it is the closest one as well.) Tokens: see `tokenise`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

# Left out by the script. Brackets stay as "-lrb-": its list has them in capitals, after the
# change to lower case.
_LEFT_OUT = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}

_ABBREVIATIONS = "mr|mrs|ms|dr|st|vs|jr|sr|co|inc|etc|no|ave"
_TOKEN = re.compile(
    rf"(?:{_ABBREVIATIONS})\.(?=\s+\S)"  # "mr. smith"
    r"|(?:[a-z]\.){2,}"  # "u.s."
    r"|\d+(?:[.,:/]\d+)*(?:st|nd|rd|th|s)?(?![^\W_]|-[^\W_])"  # "1,000", "3:30", "2nd"
    r"|[^\W_]+(?:[-_/&'][^\W_]+)*(?:'(?=\s|$))?"  # "t-shirt", "don't"
    r"|\.{2,}|-{2,}|[^\w\s]|_"
)
_CLITIC = re.compile(r"^(.+?)(n't|'(?:s|m|d|ll|re|ve))$")
_JOINED = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "lemme": ("lem", "me"),
    "gimme": ("gim", "me"),
}


def tokenise(text: str) -> list[str]:
    """Part a caption into lower-case words without punctuation.

    >>> tokenise("A man's t-shirt (red), and he can't surf.")
    ['a', 'man', "'s", 't-shirt', '-lrb-', 'red', '-rrb-', 'and', 'he', 'ca', "n't", 'surf']
    """
    tokens: list[str] = []
    for token in _TOKEN.findall(text.lower().replace("\u2019", "'")):
        tokens += _parts(token)
    return [token for token in tokens if token not in _LEFT_OUT]


def _parts(token: str) -> tuple[str, ...]:
    """Part a word from its clitic, and bare quotes from words."""
    if token in _BRACKETS:
        return (_BRACKETS[token],)
    if token == '"':
        return ("''",)
    if len(token) > 1 and token.endswith("'"):
        return (*_parts(token[:-1]), "'")
    if match := _CLITIC.match(token):
        return (*_parts(match.group(1)), match.group(2))
    return _JOINED.get(token, (token,))


__all__ = ["BleuCounts", "bleu", "bleu_counts", "cider", "tokenise"]

NGRAMS = 4
_SIGMA = 6.0  # CIDEr-D's width of the length penalty, in words
_TINY, _SMALL = 1e-15, 1e-9  # the script's guards against 0 / 0

Tokens = Sequence[str]
Grams = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class BleuCounts:
    """What one caption adds to a corpus' BLEU.

    Attributes:
        length: its words.
        reference_length: words of the reference whose length is closest, the shorter of equals.
        matches: for n = 1..4, n-grams that a reference has too, each at most as often.
        guesses: for n = 1..4, its n-grams.
    """

    length: int
    reference_length: float
    matches: tuple[int, ...]
    guesses: tuple[int, ...]


def bleu_counts(caption: Tokens, references: Sequence[Tokens]) -> BleuCounts:
    """Count a caption's n-grams against its references."""
    most: Grams = Counter()
    for reference in references:
        most |= _grams(reference)
    shared = _grams(caption) & most
    matches = [sum(n for gram, n in shared.items() if len(gram) == k) for k in _orders()]
    length = len(caption)
    closest = min((abs(len(reference) - length), len(reference)) for reference in references)[1]
    guesses = (max(0, length - k + 1) for k in _orders())
    return BleuCounts(length, closest, tuple(matches), tuple(guesses))


def bleu(counts: BleuCounts) -> float:
    """Return BLEU-4, 0 to 1, of a corpus whose counts were added up.

    The geometric mean of the four precisions over the whole corpus, times the brevity penalty
    exp(1 - r / c) where the captions' words c are fewer than the references' r.

    >>> words = "a cat sits on a mat".split()
    >>> round(bleu(bleu_counts(words, [words])), 6)
    1.0
    """
    product = 1.0
    for matches, guesses in zip(counts.matches, counts.guesses, strict=True):
        product *= (matches + _TINY) / (guesses + _SMALL)
    ratio = (counts.length + _TINY) / (counts.reference_length + _SMALL)
    return product ** (1 / NGRAMS) * (math.exp(1 - 1 / ratio) if ratio < 1 else 1.0)


def cider(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Return each caption's CIDEr-D, 0 to 10; a corpus' score is their mean.

    An n-gram weighs its count times log(images / images whose references have it), so that the
    score depends on the whole set of images. Over n = 1..4 and the references, the mean of the
    clipped cosine times exp(-(difference of lengths)^2 / 72), times 10.

    Args:
        captions: one an image.
        references: its references, in the same order.
    """
    document_counts: Grams = Counter()
    for captions_of_image in references:
        document_counts.update(set().union(*map(_grams, captions_of_image)))
    images = math.log(len(references)) if references else 0.0
    scores = []
    for caption, captions_of_image in zip(captions, references, strict=True):
        written = _Weighted.of(caption, document_counts, images)
        likeness = [
            written.likeness(_Weighted.of(reference, document_counts, images))
            for reference in captions_of_image
        ]
        scores.append(10 * sum(likeness) / len(captions_of_image))
    return scores


@dataclass(frozen=True)
class _Weighted:
    """A text's n-grams by weight, for each n, with the vectors' norms and the text's length."""

    weights: tuple[dict[tuple[str, ...], float], ...]
    norms: tuple[float, ...]
    length: int

    @classmethod
    def of(cls, tokens: Tokens, document_counts: Grams, images: float) -> _Weighted:
        weights: tuple[dict[tuple[str, ...], float], ...] = tuple({} for _ in _orders())
        for gram, count in _grams(tokens).items():
            weights[len(gram) - 1][gram] = count * (
                images - math.log(max(1, document_counts[gram]))
            )
        norms = tuple(math.sqrt(sum(w * w for w in by_gram.values())) for by_gram in weights)
        return cls(weights, norms, max(0, len(tokens) - 1))  # the script counts pairs of words

    def likeness(self, reference: _Weighted) -> float:
        penalty = math.exp(-((self.length - reference.length) ** 2) / (2 * _SIGMA**2))
        total = 0.0
        for mine, theirs, norm, other in zip(
            self.weights, reference.weights, self.norms, reference.norms, strict=True
        ):
            value = sum(
                min(weight, theirs.get(gram, 0.0)) * theirs.get(gram, 0.0)
                for gram, weight in mine.items()
            )
            total += value / (norm * other) if norm and other else value
        return penalty * total / NGRAMS


def _orders() -> range:
    return range(1, NGRAMS + 1)


def _grams(tokens: Tokens) -> Grams:
    """Count the n-grams of 1 to 4 words."""
    return Counter(
        tuple(tokens[start : start + k]) for k in _orders() for start in range(len(tokens) - k + 1)
    )
