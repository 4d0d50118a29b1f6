"""Average normalised Levenshtein similarity (Biten et al. 2019, "Scene text visual QA", eq. 1).

For each question the best of its right answers counts: 1 - NL, where NL is the edit distance of the
two texts over the length of the longer one, and 0 from NL = 0.5 on. Case and runs of blanks do not
count. (The public script of the ST-VQA challenge gives 0.5 at NL = 0.5, where the paper gives 0.)
"""

from __future__ import annotations

from collections.abc import Sequence

THRESHOLD = 0.5


def anls(answer: str, references: Sequence[str], threshold: float = THRESHOLD) -> float:
    """Return what an answer earns, 0 to 1.

    Args:
        answer: as the model wrote it.
        references: the right answers, at least one.
        threshold: normalised distance from which on an answer earns nothing.

    Raises:
        ValueError: there are no references.

    >>> anls("helo", ["hello", "goodbye"]), anls("dog", ["cat"])
    (0.8, 0.0)
    """
    if not references:
        raise ValueError("there is no right answer to compare with")
    distance = min(_normalised(_plain(answer), _plain(right)) for right in references)
    return 1 - distance if distance < threshold else 0.0


def levenshtein(first: str, second: str) -> int:
    """Count the insertions, deletions and replacements of a character that turn one into the other.

    >>> levenshtein("kitten", "sitting"), levenshtein("", "abc")
    (3, 3)
    """
    row = list(range(len(second) + 1))
    for number, one in enumerate(first, start=1):
        before, row = row, [number]
        for place, other in enumerate(second):
            row.append(min(before[place + 1] + 1, row[place] + 1, before[place] + (one != other)))
    return row[-1]


def _normalised(first: str, second: str) -> float:
    longest = max(len(first), len(second))
    return levenshtein(first, second) / longest if longest else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
