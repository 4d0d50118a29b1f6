"""A LLaVA of transformers through a recipe, from training to an answer."""

import pytest
import torch

from varifocal.assemble import assemble
from varifocal.data.example import Example, Image, Message
from varifocal.models.likelihood import EncodedQuestion, score_options
from varifocal.training.train import run_training


@pytest.fixture
def recipe_of(whole_recipe, llava):
    """A recipe of a LLaVA on the book: `recipe_of("mma")`."""
    return lambda tuner: whole_recipe(llava, {"type": tuner})


@pytest.mark.parametrize("tuner", ["mma", "lora"])
def test_it_is_trained_scored_and_asked(recipe_of, tmp_path, score_and_ask, tuner):
    run = tmp_path / "run"
    result = run_training(recipe_of(tuner), run)
    assert result.vision_passes == 9  # nine of the fifteen questions have an image
    assert result.trained_parameters["language_model"] > 0
    score_and_ask(run)


def test_options_in_one_row_score_as_on_rows_of_their_own(recipe_of, book):
    parts = assemble(recipe_of("lora"))
    image = Image(path=book / "images" / "train" / "0" / "image.png")
    asked = Example(
        (Message("user", (image, "Which colour?")),), choices=("red", "green", "very blue")
    )
    prompt, options = parts.encoder.encode_options(asked)
    question = EncodedQuestion(prompt.input_ids, tuple(options), prompt.modality, prompt.images)
    scores = [
        score_options(parts.model, [question], parts.load_images, tree=tree)[0]
        for tree in (True, False)
    ]
    torch.testing.assert_close(*map(torch.tensor, scores), rtol=0, atol=1e-4)
    assert len(set(scores[0])) == 3
