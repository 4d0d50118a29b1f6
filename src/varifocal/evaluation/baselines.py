"""What a score would be without looking at the question: the numbers that stand next to it."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from varifocal.evaluation.benchmark import Answer, Item

_CANDIDATES = 10
"""Most frequent right answers among which the best constant one is looked for."""


@dataclass(frozen=True)
class Baselines:
    """Scores of blind rules, in the unit of the score that they stand next to.

    Attributes:
        chance: every choice as likely as the others; None for open answers.
        majority: always the same answer, the one that is right most often, or always the choice at
            the same place, whichever is more; None where an item alone earns nothing.
        majority_answer: that answer, or the letter of that place.
        longest: the choice with the most characters, a tie split evenly; None for open answers.
    """

    chance: float | None = None
    majority: float | None = None
    majority_answer: str = ""
    longest: float | None = None

    def words(self) -> list[str]:
        """Say each rule that is known with its score.

        >>> Baselines(50.0, 66.7, "yes", None).words()
        ['guessing 50.0', "always 'yes' 66.7"]
        """
        named = textwrap.shorten(self.majority_answer, 30, placeholder="...")
        rules = {
            "guessing": self.chance,
            f"always '{named}'": self.majority,
            "the longest option": self.longest,
        }
        return [f"{rule} {value:.1f}" for rule, value in rules.items() if value is not None]


def sentences(pair: Sequence[Baselines], names: Sequence[str]) -> list[str]:
    """Say what blind rules score under two score files; once where both say the same.

    Args:
        pair: of each file; they are of all its items.
        names: of the two models.

    >>> sentences([Baselines(50.0), Baselines(50.0)], ["a", "b"])
    ['blind rules, over all items of the suite: guessing 50.0']
    >>> sentences([Baselines(50.0), Baselines(25.0)], ["a", "b"])[1]
    'blind rules, over all items of b: guessing 25.0'
    """
    words = ["; ".join(baselines.words()) for baselines in pair]
    if words[0] == words[1]:
        names, words = ["the suite"], words[:1]
    return [
        f"blind rules, over all items of {name}: {text}"
        for name, text in zip(names, words, strict=True)
        if text
    ]


def of_choices(questions: Sequence[tuple[Sequence[str], int]]) -> Baselines:
    """Score blind rules on multiple-choice questions, in percent.

    Args:
        questions: choices and the place of the right one; none gives no baselines.

    >>> found = of_choices([(["no", "yes"], 1), (["no", "yes"], 1), (["no", "yes"], 0)])
    >>> round(found.majority), found.majority_answer, found.chance, round(found.longest)
    (67, 'yes', 50.0, 67)
    """
    count = len(questions)
    if not count:
        return Baselines()
    texts = Counter(choices[gold].strip() for choices, gold in questions)
    places = Counter(gold for _, gold in questions)
    (text, by_text), (place, by_place) = texts.most_common(1)[0], places.most_common(1)[0]
    letter = f"choice {chr(ord('A') + place)}" if place < 26 else f"choice {place + 1}"
    return Baselines(
        chance=100 * sum(1 / len(choices) for choices, _ in questions) / count,
        majority=100 * max(by_text, by_place) / count,
        majority_answer=text if by_text >= by_place else letter,
        longest=100 * sum(_is_longest(*question) for question in questions) / count,
    )


def _is_longest(choices: Sequence[str], gold: int) -> float:
    """Return how often the right choice is drawn from those with the most characters."""
    longest = max(len(choice.strip()) for choice in choices)
    drawn = [place for place, choice in enumerate(choices) if len(choice.strip()) == longest]
    return (gold in drawn) / len(drawn)


def of_open(
    items: Sequence[Item],
    answer_of: Callable[[str, Item], Answer],
    credit: Callable[[Item, Answer], float | None],
    measure: Callable[[Sequence[tuple[Item, Answer]]], float | None],
) -> Baselines:
    """Score the best constant answer to items that are answered in words.

    Args:
        items: what is asked.
        answer_of: (text, item) -> the answer as it would be read.
        credit: what an answer earns.
        measure: items with answers -> the score that the baseline stands next to.
    """
    given = Counter(reference for item in items for reference in dict.fromkeys(item.references))
    best: tuple[float, str] | None = None
    for text, _ in given.most_common(_CANDIDATES):
        earned = [credit(item, answer_of(text, item)) for item in items]
        known = [earned_by for earned_by in earned if earned_by is not None]
        if len(known) < len(earned):
            return Baselines()  # an item alone earns nothing, as in CIDEr
        if best is None or sum(known) > best[0]:
            best = sum(known), text
    if best is None:
        return Baselines()
    answered = [(item, answer_of(best[1], item)) for item in items]
    return Baselines(majority=measure(answered), majority_answer=best[1])
