"""How a model's language is preserved while its text is tuned, too."""

import random
from itertools import product
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from varifocal.recipe.base_section import Count, Rate, Section
from varifocal.recipe.data import SourceSections
from varifocal.recipe.strict_yaml import WrongKeyError

Portion = Annotated[float, Field(gt=0, lt=1)]


class _AnswersSection(Section):
    """What the base answers before training, and how much of an epoch the answers are."""

    instructions: SourceSections = ()
    """Sources of plain instructions, like those of `data.train`; examples with an image are passed
    over. By default instructions that come with Varifocal."""
    answers: Literal["base", "data"] = "base"
    """`base`: the base writes the answers; `data`: the sources' own answers are read."""
    num_examples: Count = 256
    """At most so many instructions, the first ones of the sources."""
    max_new_tokens: Count = 64
    """Longest answer that the base writes, in tokens."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Of the base's answers: 1 draws from its own distribution, 0 takes the likeliest token."""
    share: Portion = 0.1
    """Share of an epoch's tokens that these rows are; a step of the same size costs no more, and an
    epoch has that many more steps."""

    @model_validator(mode="after")
    def _everything_is_used(self) -> "_AnswersSection":
        """Refuse values that would do nothing, and more instructions than there are."""
        if self.answers == "data" and not self.instructions:
            raise WrongKeyError("answers", "data needs training.keep.instructions, with answers")
        if not self.instructions and self.num_examples > len(PLAIN_INSTRUCTIONS):
            text = f"{len(PLAIN_INSTRUCTIONS)} instructions come with Varifocal; ask for fewer, or "
            raise WrongKeyError("num_examples", text + "give sources in training.keep.instructions")
        for number, source in enumerate(self.instructions):
            for key in ("metric", "epochs", "weight"):
                if getattr(source, key) is not None:
                    text = "does nothing here; training.keep.share says how much is taken"
                    raise WrongKeyError(f"instructions[{number}].{key}", text)
        for key in ("max_new_tokens", "temperature") if self.answers == "data" else ():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise WrongKeyError(key, "does nothing with answers: data; leave it out")
        return self


class DistillSection(_AnswersSection):
    """Rows of plain text on which the model is held to the base's distribution.

    Before training, the base answers plain instructions once, and its distribution over the next
    token is stored at every token of these answers. The rows are packed with the others; their loss
    is the KL divergence from that distribution.
    """

    type: Literal["distill"] = "distill"
    weight: Rate = 1.0
    """Factor on the loss of each of these tokens."""
    top_k: Count = 32
    """Likeliest next tokens whose probabilities are stored; the rest is one bucket."""


class ReplaySection(_AnswersSection):
    """Rows of plain text whose answers the base has written, learned with the ordinary loss."""

    type: Literal["replay"] = "replay"


KeepSection = Annotated[
    DistillSection | ReplaySection,
    Field(discriminator="type"),
    BeforeValidator(lambda page: {"type": "distill", **page} if isinstance(page, dict) else page),
]


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


def _in_random_order(texts: list[str]) -> tuple[str, ...]:
    """Shuffle texts, always alike, so that the first ones are of every kind."""
    random.Random(0).shuffle(texts)
    return tuple(texts)


PLAIN_INSTRUCTIONS = _in_random_order(
    [task.format(subject) for subject, task in product(_SUBJECTS, _TASKS)]
)
"""The instructions that come with Varifocal, none of them one that `retention` measures with."""
