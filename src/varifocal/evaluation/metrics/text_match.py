"""Yes-or-no answers: how they are read, and POPE's scores (Li et al. 2023)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

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
    for number, left in enumerate(first, start=1):
        before, row = row, [number]
        for place, right in enumerate(second):
            row.append(min(before[place + 1] + 1, row[place] + 1, before[place] + (left != right)))
    return row[-1]


def _normalised(first: str, second: str) -> float:
    longest = max(len(first), len(second))
    return levenshtein(first, second) / longest if longest else 0.0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


_WORDS = "zero one two three four five six seven eight nine ten"
NUMBER_WORDS = {word: str(value) for value, word in enumerate(_WORDS.split())}


def normalise_short(text: str) -> str:
    """Drop case, blanks around and within, and the final full stop.

    >>> normalise_short(" Light blue. ")
    'light blue'
    """
    return " ".join(text.split()).rstrip(".").strip().lower()


def read_short(text: str) -> str | None:
    r"""Return a written answer's first line made plain; None when nothing is left.

    >>> read_short("Left.\nBecause it is."), read_short(" .")
    ('left', None)
    """
    lines = text.strip().splitlines()
    return normalise_short(lines[0]) or None if lines else None


def says(text: str, reference: str) -> bool:
    """Tell whether the words of a reference stand in a text, one after the other.

    Case, blanks and the reference's final full stop do not count. A word that denies it does not
    count either: "not red" says "red".

    >>> says("It is a red Car.", "red car"), says("a scarlet car", "car."), says("a scar", "car")
    (True, True, False)
    """
    wanted = normalise_short(reference) or " ".join(reference.lower().split())
    words = " ".join(text.lower().split())
    return bool(wanted) and re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", words) is not None


_EDGES = string.punctuation + string.whitespace


def read_yes_no(text: str) -> str | None:
    """Return the "yes" or "no" of a written answer's first sentence, or None.

    As in POPE's script a sentence with "no" or "not" says no, whatever else it says. That script
    takes everything else for a yes; here a yes needs the word.

    >>> read_yes_no("Yes, there is. No doubt."), read_yes_no("There is not."), read_yes_no("A dog")
    ('yes', 'no', None)
    """
    sentence = text.strip().lower().split(".")[0]
    words = {word.strip(_EDGES) for word in sentence.replace(",", " ").split()}
    if words & {"no", "not"}:
        return "no"
    return "yes" if "yes" in words else None


def read_prefix(text: str) -> str | None:
    """Return "yes" or "no" by MME's rule, or None for its "other".

    Full stops do not count; a lone letter y or n is an answer; else the first four letters have
    to hold the word.

    >>> read_prefix("Yes, it is."), read_prefix("N"), read_prefix("I think no")
    ('yes', 'no', None)
    """
    answer = text.lower().strip().replace(".", "")
    if answer in ("y", "n"):
        return "yes" if answer == "y" else "no"
    return next((word for word in ("yes", "no") if word in answer[:4]), None)


@dataclass(frozen=True)
class Confusion:
    """Counts of questions whose right answer is yes or no; "yes" is the positive class.

    Attributes:
        hits: yes, and said so.
        misses: yes, and something else said.
        alarms: no, but yes said.
        passes: no, and said so.
        silences: no, and nothing that could be read said.
    """

    hits: int = 0
    misses: int = 0
    alarms: int = 0
    passes: int = 0
    silences: int = 0

    @property
    def count(self) -> int:
        """All questions."""
        return self.hits + self.misses + self.alarms + self.passes + self.silences

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return _share(self.hits + self.passes, self.count)

    @property
    def precision(self) -> float:
        """Share of the said yeses that are right; 0 where none was said."""
        return _share(self.hits, self.hits + self.alarms)

    @property
    def recall(self) -> float:
        """Share of the yeses that were said; 0 where there are none."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 0 where both are."""
        return _share(2 * self.hits, 2 * self.hits + self.alarms + self.misses)

    @property
    def yes_ratio(self) -> float:
        """Share of questions answered with yes."""
        return _share(self.hits + self.alarms, self.count)


def confusion(pairs: Sequence[tuple[str, str | None]]) -> Confusion:
    """Count (gold, said) pairs; what could not be read (None) is wrong and no yes.

    >>> confusion([("yes", "yes"), ("yes", None), ("no", "yes"), ("no", "no")]).recall
    0.5
    """
    tally = {"hits": 0, "misses": 0, "alarms": 0, "passes": 0, "silences": 0}
    for gold, answer in pairs:
        if gold == "yes":
            tally["hits" if answer == "yes" else "misses"] += 1
        else:
            tally[{"yes": "alarms", "no": "passes"}.get(answer or "", "silences")] += 1
    return Confusion(**tally)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
