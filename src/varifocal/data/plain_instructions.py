"""Plain instructions, of which a base's own answers show what its language is like.

They are written out of subjects and tasks, so that nothing has to be downloaded. None of them is
one of those that `evaluation.retention_data` measures with.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from varifocal.data.example import Example, Message

_SUBJECTS = (
    "the moon",
    "a thunderstorm",
    "the human heart",
    "honey bees",
    "the printing press",
    "volcanoes",
    "chess",
    "the ocean's tides",
    "a public library",
    "money",
    "sleep",
    "the Roman Empire",
    "electricity",
    "coffee",
    "elephants",
    "a railway station",
    "music",
    "vaccines",
    "the desert",
    "recycling",
    "a market town",
    "the stars",
    "mathematics",
    "football",
    "rivers",
    "clocks",
    "friendship",
    "the alphabet",
    "earthquakes",
    "gardens",
    "glass",
    "computers",
    "winter",
    "ships",
    "memory",
    "bridges",
)
_TASKS = (
    "Explain {} in a few sentences.",
    "What are the most important facts about {}?",
    "Write a short story that begins with {}.",
    "Describe {} to a visitor from another country.",
    "List four questions that somebody might ask about {}, and answer one of them.",
    "How has our idea of {} changed over the last hundred years?",
    "Write a letter to a newspaper about {}.",
    "What would the world be like without {}?",
    "Give three pieces of advice that have to do with {}.",
    "Write a dialogue between a teacher and a pupil about {}.",
    "Compare {} with something else that is like it in one respect.",
    "Write the first paragraph of an encyclopedia's article about {}.",
    "Why do people care about {}?",
    "Write a poem of four lines about {}.",
    "Plan a lesson of one hour about {}.",
    "Name a common mistake that people make about {}, and put it right.",
    "Continue: When I first thought about {}, I was",
    "What is the best way to learn more about {}?",
    "Tell a joke about {}.",
    "Summarise in two sentences what everyone should know about {}.",
)

COUNT = len(_SUBJECTS) * len(_TASKS)
"""How many there are."""

_ORDER = 20240207  # any number: the first ones are to be of every kind


def plain_instructions(count: int) -> list[Example]:
    """Return the first instructions, each a user's turn without an answer.

    Args:
        count: how many, at most `COUNT`.

    >>> [example.messages[0].text for example in plain_instructions(2)]
    ['What would the world be like without mathematics?', 'Describe winter to a visitor from \
another country.']
    """
    texts = [task.format(subject) for subject, task in product(_SUBJECTS, _TASKS)]
    order = np.random.default_rng(_ORDER).permutation(COUNT)[:count]
    return [Example((Message("user", (texts[number],)),), id=f"plain-{number}") for number in order]
