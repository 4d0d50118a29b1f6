"""The questions that the chat page offers: a run's own held-out ones, or general ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import PIL.Image

from varifocal.data.example import Example, Image
from varifocal.data.loading import load_source
from varifocal.errors import DataError
from varifocal.recipe import Recipe
from varifocal.sciencebook import compose, draw_image
from varifocal.serving.schema import Question

_SEED = 7
_MOST = 4
_READ = 24  # rows of a source among which questions of different images are looked for
_LONGEST_SIDE = 1024  # pixels; the page sends no larger ones


def held_out_questions(recipe: Recipe) -> list[Question]:
    """Read a few questions of a run's `data.evaluate`, each of other images.

    Those without an image are left out where others have some.

    Args:
        recipe: the run's; sources whose files are not here any more give no questions.
    """
    questions: list[Question] = []
    for source in recipe.data.evaluate:
        count = min(_READ, source.max_examples or _READ)
        few = source.model_copy(update={"max_examples": count})
        try:
            examples = load_source(few, on_bad_record="skip")
        except DataError:
            continue
        questions.extend(_questions_of(examples))
    questions = [each for each in questions if each.images] or questions
    chosen = questions[:: max(1, len(questions) // _MOST)][:_MOST]
    return [
        each.model_copy(update={"title": f"Held-out question {number}"})
        for number, each in enumerate(chosen, 1)
    ]


def _questions_of(examples: Sequence[Example]) -> Iterator[Question]:
    seen: set[tuple[str, ...]] = set()
    for example in examples:
        asked = next(turn for turn in example.messages if turn.role == "user").content
        text = "\n".join(part for part in asked if isinstance(part, str)).strip()
        pictured = [part for part in asked if isinstance(part, Image)]
        try:
            images = [_data_uri(image.open()) for image in pictured]
        except DataError:
            continue
        key = tuple(images) or (text,)
        if key not in seen:
            seen.add(key)
            yield Question(title="", text=text, images=images)


def _data_uri(image: PIL.Image.Image) -> str:
    image = image.convert("RGB")
    image.thumbnail((_LONGEST_SIDE, _LONGEST_SIDE))
    kind = "PNG" if max(image.size) <= _LONGEST_SIDE // 4 else "JPEG"
    file = io.BytesIO()
    image.save(file, format=kind)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"


def example_questions(*, images: bool) -> list[Question]:
    """Compose the questions that the page offers.

    Args:
        images: whether the model can see.
    """
    texts = [
        Question(title="A sum", text="What is 17 plus 25?"),
        Question(
            title="A piece of code",
            text="Write a Python function that returns the larger of two numbers.",
        ),
        Question(title="A fact", text="Why does ice float on water?"),
    ]
    return [*(_image_questions() if images else ()), *texts]


def _image_questions() -> list[Question]:
    record, uri = _drawn("concentrations", 0)
    _, other = _drawn("shapes", 3)
    choices = ", ".join(record["choices"])
    asked = f"{record['question']} Choose one of: {choices}."
    return [
        Question(title="A science question", text=asked, images=[uri]),
        Question(title="A caption", text="Describe this image.", images=[other]),
    ]


def _drawn(skill: str, index: int) -> tuple[dict[str, Any], str]:
    """Compose a question that the demo learns to answer, and its image as a `data:` URI."""
    record, question = compose(skill, "test", index, _SEED)
    return record, _data_uri(draw_image(skill, "test", index, _SEED, question))
