"""Where a recipe's sources are scored to: each to files of its own."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from varifocal.assemble import Assembly
from varifocal.data.encoding.encoder import Encoder
from varifocal.errors import DataError, RecipeError
from varifocal.evaluation.runner import About
from varifocal.evaluation.sources import evaluate_recipe
from varifocal.recipe import DataSection, FileSection, ModelSection, Recipe

NO_MODEL = cast(Any, None)


def test_two_sources_of_one_name_are_refused_before_anything_is_read(tmp_path: Path):
    places = [str(tmp_path / task / "test.jsonl") for task in ("nlvr", "fashion")]
    sources = [FileSection(path=place) for place in places]
    recipe = cast(Any, SimpleNamespace(data=SimpleNamespace(evaluate=sources)))
    with pytest.raises(RecipeError) as error:
        next(evaluate_recipe(recipe, NO_MODEL, tmp_path, About()))
    assert str(error.value) == (
        f"data.evaluate: '{places[0]}' and '{places[1]}' would both be scored as 'test'; give one "
        "of them another name"
    )


def choices(question: str) -> dict[str, Any]:
    return {"question": question, "choices": ["red", "blue"], "answer": "red"}


@pytest.mark.parametrize("overflow", ["error", "drop"])
def test_a_question_that_cannot_be_encoded_stops_or_is_left_out(
    overflow, chat_llama, tokenizer, tmp_path: Path
):
    """One holds a control token, one takes more tokens than may be."""
    file = tmp_path / "colours.jsonl"
    rows = [choices("Colour?"), choices("Colour</s>?"), choices("Colour? " * 40)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = Encoder(tokenizer, max_length=200, overflow=overflow)
    parts = Assembly(chat_llama, tokenizer, encoder, None, None, None)
    data = DataSection(evaluate=(FileSection(path=str(file)),))
    recipe = Recipe(model=ModelSection(language_model="tiny"), data=data)

    def score(**options):
        return list(evaluate_recipe(recipe, parts, tmp_path / "eval", About(), **options))

    with pytest.raises(DataError, match=r"the model's control token '</s>'"):
        score()
    skips = recipe.model_copy(update={"data": data.model_copy(update={"on_bad_record": "skip"})})
    (by_option,) = score(on_bad_record="skip")
    recipe = skips
    (by_recipe,) = score()
    for result in (by_option, by_recipe):
        assert len(result.answered) == 1
        told = " ".join(result.left_out)
        assert "control token" in told
        assert "max_length is 200" in told
    page = json.loads(by_recipe.file.read_text())
    assert (page["measures"][-1]["count"], page["items_left_out"]) == (1, 2)
