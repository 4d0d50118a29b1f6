"""Yes-or-no answers: how they are read, and POPE's scores (Li et al. 2023)."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass

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
    said = text.lower().strip().replace(".", "")
    if said in ("y", "n"):
        return "yes" if said == "y" else "no"
    return next((word for word in ("yes", "no") if word in said[:4]), None)


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
    for gold, said in pairs:
        if gold == "yes":
            tally["hits" if said == "yes" else "misses"] += 1
        else:
            tally[{"yes": "alarms", "no": "passes"}.get(said or "", "silences")] += 1
    return Confusion(**tally)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
