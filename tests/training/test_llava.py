"""A LLaVA of transformers through a recipe, from training to an answer."""

import json

import pytest
import torch
from typer.testing import CliRunner

from varifocal.assemble import assemble
from varifocal.cli import app
from varifocal.data.example import Example, Image, Message
from varifocal.evaluation.scoring import Question, score_options
from varifocal.training.train import train


@pytest.fixture
def recipe_of(recipe, llava, book):
    """A recipe of a LLaVA on the book, one epoch: `recipe_of("mma")`."""
    return lambda tuner: recipe(
        {
            "tuner": {"type": tuner},
            "model.language_model": str(llava),
            "model.vision_tower": None,
            "model.connector": None,
            "data.max_length": 200,
            "data.evaluate": [{"path": str(book), "format": "scienceqa", "split": "train"}],
            "training.num_train_epochs": 1,
            "training.connector_learning_rate": None,
        }
    )


def run_verb(*words):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("tuner", ["mma", "lora"])
def test_it_is_trained_scored_and_asked(recipe_of, tmp_path, book, tuner):
    run = tmp_path / "run"
    result = train(recipe_of(tuner), run)
    assert result.vision_passes == 9  # nine of the fifteen questions have a picture
    assert result.trained_parameters["language_model"] > 0
    run_verb("eval", run, "--score", "both")
    columns = json.loads((run / "eval" / "book-train.json").read_text())["columns"]
    assert (columns["NAT"]["count"], columns["IMG"]["count"]) == (15, 9)
    picture = book / "images" / "train" / "0" / "image.png"
    with_picture = run_verb("ask", run, "Which colour?", "--image", picture)
    assert with_picture != run_verb("ask", run, "Which colour?")


def test_options_in_one_row_score_as_on_rows_of_their_own(recipe_of, book):
    parts = assemble(recipe_of("lora"))
    picture = Image(path=book / "images" / "train" / "0" / "image.png")
    asked = Example(
        (Message("user", (picture, "Which colour?")),), choices=("red", "green", "very blue")
    )
    prompt, options = parts.encoder.encode_options(asked)
    question = Question(prompt.input_ids, tuple(options), prompt.modality, prompt.images)
    scores = [
        score_options(parts.model, [question], parts.load_images, tree=tree)[0]
        for tree in (True, False)
    ]
    torch.testing.assert_close(*map(torch.tensor, scores), rtol=0, atol=1e-4)
    assert len(set(scores[0])) == 3
