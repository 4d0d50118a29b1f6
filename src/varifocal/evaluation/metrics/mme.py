"""MME's scores (Fu et al. 2023): two questions an image, one with the answer yes and one with no.

A subtask's score is accuracy + accuracy+, each in percent; accuracy+ counts images with both
questions right. Ten subtasks sum to perception (at most 2000), four to cognition (800).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = (
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)
SUBTASKS = (*PERCEPTION, *COGNITION)


@dataclass(frozen=True)
class Pairs:
    """A subtask's answers.

    Attributes:
        questions: of them all.
        right: of them.
        images: those with two questions answered.
        both_right: of them, both.
    """

    questions: int
    right: int
    images: int
    both_right: int

    @property
    def accuracy(self) -> float:
        """Percent of questions."""
        return 100 * self.right / self.questions

    @property
    def accuracy_plus(self) -> float | None:
        """Percent of images with both right; None without a complete pair."""
        return 100 * self.both_right / self.images if self.images else None

    @property
    def score(self) -> float | None:
        """Their sum, at most 200; None without a complete pair."""
        plus = self.accuracy_plus
        return None if plus is None else self.accuracy + plus


def pair_up(answers: Iterable[tuple[str, bool]]) -> Pairs:
    """Count a subtask's (image, right) answers.

    >>> pair_up([("a.jpg", True), ("a.jpg", True), ("b.jpg", True), ("b.jpg", False)]).score
    125.0
    """
    by_image: dict[str, list[bool]] = defaultdict(list)
    for image, right in answers:
        by_image[image].append(right)
    pairs = [found for found in by_image.values() if len(found) == 2]
    return Pairs(
        questions=sum(map(len, by_image.values())),
        right=sum(map(sum, by_image.values())),
        images=len(pairs),
        both_right=sum(map(all, pairs)),
    )
