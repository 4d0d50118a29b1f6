"""Where a recipe's sources are scored to: each to files of its own."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from varifocal.errors import RecipeError
from varifocal.evaluation.runner import About
from varifocal.evaluation.sources import evaluate_recipe
from varifocal.recipe import SourceSection

NO_MODEL = cast(Any, None)


def test_two_sources_of_one_name_are_refused_before_anything_is_read(tmp_path: Path):
    places = [str(tmp_path / task / "test.jsonl") for task in ("nlvr", "fashion")]
    sources = [SourceSection(path=place) for place in places]
    recipe = cast(Any, SimpleNamespace(data=SimpleNamespace(evaluate=sources)))
    with pytest.raises(RecipeError) as error:
        next(evaluate_recipe(recipe, NO_MODEL, tmp_path, About()))
    assert str(error.value) == (
        f"data.evaluate: '{places[0]}' and '{places[1]}' would both be scored as 'test'; give one "
        "of them another name"
    )
