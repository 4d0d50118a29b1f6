"""Example questions for the page: a science question, a caption, a sum, a piece of code."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

from varifocal.data.sciencebook import compose, draw
from varifocal.serving.schema import Question

_SEED = 7


def example_questions(*, pictures: bool) -> list[Question]:
    """Compose the questions that the page offers.

    Args:
        pictures: whether the model can see.
    """
    texts = [
        Question(title="A sum", text="What is 17 plus 25?"),
        Question(
            title="A piece of code",
            text="Write a Python function that returns the larger of two numbers.",
        ),
        Question(title="A fact", text="Why does ice float on water?"),
    ]
    return [*(_pictured() if pictures else ()), *texts]


def _pictured() -> list[Question]:
    record, uri = _drawn("concentrations", 0)
    _, other = _drawn("shapes", 3)
    choices = ", ".join(record["choices"])
    asked = f"{record['question']} Choose one of: {choices}."
    return [
        Question(title="A science question", text=asked, image=uri),
        Question(title="A caption", text="Describe this picture.", image=other),
    ]


def _drawn(skill: str, index: int) -> tuple[dict[str, Any], str]:
    """Compose a question that the demo learns to answer, and its picture as a `data:` URI."""
    record, question = compose(skill, "test", index, _SEED)
    file = BytesIO()
    draw(skill, "test", index, _SEED, question).save(file, format="PNG")
    return record, f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
