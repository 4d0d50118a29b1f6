"""Which visual tokens say which words: the formula, a run's sheet, and the refusals."""

import json
import math

import PIL.Image
import pytest
import torch

from varifocal.analysis import words as analysis_words
from varifocal.analysis.words import Spoken, words_sheet
from varifocal.assemble import assemble
from varifocal.models.words import token_log_probabilities
from varifocal.recipe import load_recipe
from varifocal.training.train import run_training

STILL = {"training.learning_rate": 1e-12, "training.connector_learning_rate": 1e-12}
ALIGNED = {
    "alignment.type": "words",
    "alignment.steps": 150,
    "alignment.batch_size": 6,
    "alignment.learning_rate": 1e-2,
    "alignment.scale": 12.0,
    "training.max_steps": 1,
    **STILL,
}


def test_each_token_has_a_distribution_over_the_words():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    words = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    words /= words.norm(dim=1, keepdim=True)
    found = token_log_probabilities(tokens, words, 7.0).exp()
    for pil_image in range(2):
        for place in range(3):
            token = tokens[pil_image, place]
            sizes = [math.exp(7 * float(token @ word) / float(token.norm())) for word in words]
            expected = torch.tensor([size / sum(sizes) for size in sizes], dtype=torch.float64)
            torch.testing.assert_close(found[pil_image, place], expected, rtol=1e-10, atol=1e-12)


@pytest.fixture
def aligned(recipe, tmp_path):
    """A run whose connector was aligned and then left alone."""
    run_training(recipe(ALIGNED), tmp_path / "aligned")
    return tmp_path / "aligned"


def test_the_words_of_a_run_before_and_after_its_alignment(run, aligned, book):
    images = [book / "images" / "train" / str(number) / "image.png" for number in range(3)]
    named = [part for image in images for part in ("--images", image)]
    code, out, err = run("analyze", "words", aligned, *named)
    assert code == 0, err
    page = json.loads((aligned / "analysis" / "words.json").read_text())
    assert out.replace("\n", "").endswith(str(aligned / "analysis" / "words.png"))
    assert (page["grid"], page["scale"]) == ([2, 2], 12.0)
    assert {"red", "green", "blue", "0", "1", "2"} == set(page["vocabulary"])
    assert [one["picture"] for one in page["pictures"]] == list(map(str, images))
    before, after = (
        [[token[0][0] for token in one[side]] for one in page["pictures"]]
        for side in ("before", "after")
    )
    assert before == start_words(aligned, page["vocabulary"], images)
    for words, colour in zip(after, ("red", "green", "blue"), strict=True):
        assert len(words) == 5  # four places and one token of the whole
        assert colour in words
        assert not {"red", "green", "blue"} - {colour} & set(words)
    assert before != after
    for one in page["pictures"]:
        for token in (*one["before"], *one["after"]):
            shares = [share for _, share in token]
            assert shares == sorted(shares, reverse=True)
            assert 0 < sum(shares) <= 1.001
    with PIL.Image.open(aligned / "analysis" / "words.png") as pil_image:
        assert pil_image.width > 1000


def start_words(root, vocabulary, images):
    """The likeliest word of each token, by the connector that the seed draws."""
    parts = assemble(load_recipe(root / "recipe.yaml", check_paths=False))
    table = parts.base.get_input_embeddings().weight.detach()
    words = torch.stack(
        [table[parts.encoder.tokenizer(f" {word}")["input_ids"]].mean(0) for word in vocabulary]
    )
    found = []
    for image in images:
        pixels = parts.processor.image_processor(images=[PIL.Image.open(image)])["pixel_values"][0]
        with torch.no_grad():
            tokens = parts.base.encode_images(torch.as_tensor(pixels)[None])[0]
        cosine = torch.nn.functional.cosine_similarity(tokens[:, None], words[None], dim=-1)
        found.append([vocabulary[best] for best in cosine.argmax(1)])
    return found


def test_words_and_images_may_be_chosen(run, aligned, tmp_path):
    out = tmp_path / "elsewhere"
    options = ["--words", "red, mauve", "--num-images", 2, "--out", out]
    assert run("analyze", "words", aligned, *options)[0] == 0
    page = json.loads((out / "words.json").read_text())
    assert page["vocabulary"] == ["red", "mauve"]
    places = [one["picture"].split("/")[-2] for one in page["pictures"]]
    assert places == ["0", "4"]  # spread over the nine described images
    assert not (aligned / "analysis").exists()


def test_before_the_training_are_the_words_of_the_connector_it_began_with(
    run, aligned, recipe, tmp_path
):
    run_training(
        recipe({"model.connector.weights": str(aligned), "training.max_steps": 0}),
        tmp_path / "second",
    )
    pages = []
    for name in (aligned, tmp_path / "second"):
        out = tmp_path / name.name
        assert run("analyze", "words", name, "--words", "red,blue", "--out", out)[0] == 0
        pages.append(json.loads((out / "words.json").read_text())["pictures"][0])
    first, second = pages
    assert first["before"] != second["before"] == second["after"]


def test_no_word_is_refused(run, aligned):
    code, _, err = run("analyze", "words", aligned, "--words", "")
    assert code != 0
    assert "--words names no word" in err


def test_a_run_without_a_connector_is_refused(run, recipe, tmp_path):
    blind = {"model.vision_tower": None, "model.connector": None, "training.max_steps": 1}
    blind["data.train"] = [{**source, "skills": ["letters"]} for source in sources(recipe)]
    run_training(recipe(blind), tmp_path / "blind")
    code, _, err = run("analyze", "words", tmp_path / "blind")
    assert code != 0
    assert "has no connector: model.vision_tower is null" in err.replace("\n", " ")


def sources(recipe):
    return [source.model_dump(exclude_none=True) for source in recipe().data.train]


def test_a_sheet_has_room_for_so_many_tokens(run, aligned, monkeypatch):
    monkeypatch.setattr(analysis_words, "MOST_LOCAL_TOKENS", 3)
    code, _, err = run("analyze", "words", aligned)
    assert code != 0
    assert "has 2 x 2 local tokens, and a sheet can show 3; model.connector.num_tokens" in (
        err.replace("\n", " ")
    )


def test_a_sheet_is_drawn_for_any_number_of_tokens(tmp_path):
    token = [("a-word-of-many-letters", 0.9), ("$x", 0.1)]
    pil_image = PIL.Image.new("RGB", (40, 20), (200, 30, 30))
    for rows, columns, others in ((1, 6, 0), (2, 2, 1), (8, 8, 3)):
        tokens = [token] * (rows * columns + others)
        words_sheet(
            [Spoken(pil_image, (rows, columns), tokens, tokens)] * 2, tmp_path / "sheet.png"
        )
        with PIL.Image.open(tmp_path / "sheet.png") as drawn:
            assert drawn.height < drawn.width
    with pytest.raises(ValueError, match="at least one image"):
        words_sheet([], tmp_path / "none.png")


def test_one_word_alone_is_a_vocabulary_too(run, aligned):
    assert run("analyze", "words", aligned, "--words", "red", "--num-images", 1)[0] == 0
    page = json.loads((aligned / "analysis" / "words.json").read_text())
    assert page["pictures"][0]["after"] == [[["red", 1.0]]] * 5
