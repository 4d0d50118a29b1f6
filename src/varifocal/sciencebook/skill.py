"""What a skill is: a small function that throws dice and returns a question, and a table row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from varifocal.sciencebook.dice import Dice
from varifocal.sciencebook.drawing import Canvas

NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six"),
    *("seven", "eight", "nine", "ten", "eleven", "twelve"),
)
"""Number words; `NUMBERS[3]` is "three"."""


@dataclass(frozen=True)
class SkillQuestion:
    """What a skill's function returns.

    Attributes:
        question: what is asked. It never tells the answer.
        choices: two to four short answers in any order; the writer shuffles them.
        answer: the right one of `choices`.
        solution: the steps that lead to the answer; its last sentence states the answer.
        hint: the text context, or "".
        caption: for an image skill a true description in plain words, naming what decides.
        draw: for an image skill the function that draws the image.
    """

    question: str
    choices: tuple[str, ...]
    answer: str
    solution: str
    hint: str = ""
    caption: str = ""
    draw: Callable[[Canvas], None] | None = None


@dataclass(frozen=True)
class Skill:
    """A row of the skill table.

    Attributes:
        name: short and unique, as given on the command line.
        title: what a record's `skill` says.
        subject: "natural science", "social science" or "language science".
        topic: as ScienceQA names them, for example "earth-science".
        category: the heading within the topic.
        grades: first and last school year, 1 to 12.
        needs: what the answer cannot be found without: an image, a text, or neither.
        num_choices: how many answers each question offers.
        lecture: what a pupil learns first; the same for every question of the skill.
        make: throws the dice and returns a question.
    """

    name: str
    title: str
    subject: Literal["natural science", "social science", "language science"]
    topic: str
    category: str
    grades: tuple[int, int]
    needs: Literal["image", "text", "none"]
    num_choices: int
    lecture: str
    make: Callable[[Dice], SkillQuestion]

    @property
    def chance(self) -> float:
        """The accuracy of a blind guess, 0 to 1."""
        return 1 / self.num_choices


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun.

    >>> with_article("orange star"), with_article("red star")
    ('an orange star', 'a red star')
    """
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def joined(parts: Sequence[str]) -> str:
    """Join phrases as a sentence does.

    >>> joined(["a cat", "a dog", "a bird"])
    'a cat, a dog and a bird'
    """
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def capitalised(phrase: str) -> str:
    """Give a phrase its capital letter.

    >>> capitalised("a red ball.")
    'A red ball.'
    """
    return phrase[0].upper() + phrase[1:]
