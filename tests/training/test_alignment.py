"""Word alignment: the loss in plain loops, the words it uses, and that no language model runs."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from varifocal.assemble import open_run
from varifocal.data.example import Example, Image, Message
from varifocal.data.loading import answer_words, describes_by_answers, find_captions
from varifocal.errors import DataError, RecipeError
from varifocal.models.connector import embedding_scale
from varifocal.models.words import build_vocabulary, word_log_probabilities
from varifocal.training import train as train_module
from varifocal.training.alignment import align_connector, alignment_loss
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer


def loss_in_loops(tokens, embeddings, descriptions, scale):
    """The loss as section 7 of the issue says it, number by number."""
    losses = []
    for image, words in zip(tokens, descriptions, strict=True):
        by_word = [0.0] * len(embeddings)
        for token in image:
            length = math.sqrt(sum(float(x) ** 2 for x in token))
            scores = [
                scale * sum(float(x) * float(e) for x, e in zip(token, word, strict=True)) / length
                for word in embeddings
            ]
            total = sum(math.exp(score) for score in scores)
            for index, score in enumerate(scores):
                by_word[index] += math.exp(score) / total / len(image)
        losses.append(sum(-math.log(by_word[word]) for word in words) / len(words))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("scale", [20.0, 3.0])
def test_the_loss_is_the_formula(scale):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 4, 6, generator=generator, dtype=torch.float64)
    embeddings = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    embeddings /= embeddings.norm(dim=1, keepdim=True)
    descriptions = [[0, 3], [1], [2, 3, 4]]
    targets = torch.zeros(3, 5, dtype=torch.float64)
    for row, words in enumerate(descriptions):
        targets[row, words] = 1 / len(words)

    loss = alignment_loss(tokens, embeddings, targets, scale)
    assert loss.dtype == torch.float64
    assert abs(loss.item() - loss_in_loops(tokens, embeddings, descriptions, scale)) < 1e-10
    # A token's length says nothing, and every image speaks with probability one.
    stretched = tokens * torch.rand(3, 4, 1, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        word_log_probabilities(stretched, embeddings, scale),
        word_log_probabilities(tokens, embeddings, scale),
        rtol=1e-10,
        atol=1e-10,
    )
    sums = word_log_probabilities(tokens, embeddings, scale).exp().sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=1e-12, atol=1e-12)


# Which words

SYLLABLES = {" red": [0], " blue": [1], " square": [2, 3], " circle": [4, 3], " 12": [5, 6]}


@pytest.fixture
def embedding():
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1))


def vocabulary_of(descriptions, embedding, **options):
    return build_vocabulary(descriptions, SYLLABLES.__getitem__, embedding, **options)


def test_a_word_is_the_mean_of_its_tokens_behind_a_blank(embedding):
    vocabulary = vocabulary_of(
        ["Red SQUARE, square!", "blue circle", "red circle 12", "blue square 12"], embedding
    )
    assert vocabulary.words == ["red", "square", "blue", "circle", "12"]
    for word, vector in zip(vocabulary.words, vocabulary.embeddings, strict=True):
        mean = embedding[SYLLABLES[f" {word}"]].mean(0)
        torch.testing.assert_close(vector, mean / mean.norm())
    third = 1 / 3
    assert torch.equal(
        vocabulary.targets,
        torch.tensor(
            [
                [0.5, 0.5, 0, 0, 0],
                [0, 0, 0.5, 0.5, 0],
                [third, 0, 0, third, third],
                [0, third, third, 0, third],
            ]
        ),
    )


def test_a_word_of_every_description_and_a_rare_one_are_left_out(embedding):
    descriptions = ["the red square", "the blue square", "the red circle", "the blue thing"]
    assert vocabulary_of(descriptions, embedding).words == ["red", "square", "blue"]
    # With every word gone an image has no target, and adds no loss.
    lonely = vocabulary_of([*descriptions, "the only"], embedding)
    assert float(lonely.targets[-1].sum()) == 0


@pytest.mark.parametrize("descriptions", [["red square"], ["red square"] * 3, ["red", "blue"]])
def test_descriptions_without_a_telling_word_are_refused(descriptions, embedding):
    with pytest.raises(DataError) as caught:
        vocabulary_of(descriptions, embedding)
    assert str(caught.value) == (
        "alignment: no word is shared by some descriptions and absent from others; describe more "
        "images, or set alignment to null"
    )


# Training


def align_toy(seed, steps=60):
    """Three kinds of images in the features' first dimensions, one word each."""
    generator = torch.Generator().manual_seed(3)
    kinds = torch.arange(12) % 3
    table = torch.eye(3)[kinds][:, None].repeat(1, 2, 1)
    table = table + 0.1 * torch.randn(table.shape, generator=generator)
    names = ["red", "blue", "square"]
    vocabulary = vocabulary_of(
        [names[kind] for kind in kinds], torch.randn(8, 4, generator=generator)
    )
    torch.manual_seed(0)
    connector = nn.Linear(3, 4)
    losses = align_connector(
        connector,
        vocabulary,
        lambda chosen: table[chosen].double(),
        steps=steps,
        batch_size=6,
        learning_rate=0.05,
        scale=20.0,
        seed=seed,
    )
    spoken = word_log_probabilities(connector(table), vocabulary.embeddings, 20.0).argmax(1)
    return losses, [vocabulary.words[word] for word in spoken], [names[kind] for kind in kinds]


def test_training_lowers_the_loss_until_every_image_speaks_its_word():
    losses, spoken, meant = align_toy(seed=1)
    assert len(losses) == 60
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
    assert spoken == meant


def test_a_seed_decides_the_order_of_images():
    assert align_toy(seed=1, steps=5)[0] == align_toy(seed=1, steps=5)[0]
    assert align_toy(seed=1, steps=5)[0] != align_toy(seed=2, steps=5)[0]


# In a run

ALIGNED = {"alignment.type": "words", "alignment.batch_size": 6}


@pytest.fixture
def aligned_recipe(recipe, parts):
    def make(connector, tower, steps):
        return recipe(
            {
                "model.vision_tower": str(parts / tower),
                "model.connector": {"type": connector, "hidden_dim": 16},
                "alignment": {"steps": steps},
                "training.max_steps": 1,
            }
        )

    return make


class LanguageModelRanError(Exception):
    """The alignment ran the language model."""


def forbid_language_model(monkeypatch):
    """Let any forward pass of the language model, or of a layer of it, raise while aligning."""
    original = train_module.align

    def run(*_):
        raise LanguageModelRanError

    def align(recipe, parts, *rest):
        watched = list(parts.base.language_model.modules())
        for module in parts.base.language_model.model.embed_tokens.modules():
            watched.remove(module)
        hooks = [module.register_forward_pre_hook(run) for module in watched]
        try:
            return original(recipe, parts, *rest)
        finally:
            for hook in hooks:
                hook.remove()

    monkeypatch.setattr(train_module, "align", align)


@pytest.mark.parametrize(
    ("connector", "tower"),
    [
        ("patch_mlp", "clip"),
        ("patch_mlp", "efficientnet"),
        ("cls_pyramid", "clip"),
        ("cls_pyramid", "dinov2"),
    ],
)
def test_alignment_never_runs_the_language_model(
    aligned_recipe, tmp_path, monkeypatch, connector, tower
):
    forbid_language_model(monkeypatch)
    told = []
    result = run_training(
        aligned_recipe(connector, tower, steps=120),
        tmp_path / "run",
        progress=lambda stage, done, total, note="": told.append((stage, done, note)),
    )
    losses = [float(note.removeprefix("loss ")) for stage, _, note in told if stage == "align"]
    assert len(losses) == 120
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    assert result.alignment_loss == pytest.approx(sum(losses[-100:]) / 100, abs=1e-3)


def test_the_watch_for_the_language_model_sees_it(aligned_recipe, tmp_path, monkeypatch):
    forbid_language_model(monkeypatch)

    def run_it(_, parts, *rest):
        parts.base(torch.tensor([[1, 2]]))

    monkeypatch.setattr(train_module, "align", run_it)
    forbid_language_model(monkeypatch)
    with pytest.raises(LanguageModelRanError):
        run_training(aligned_recipe("patch_mlp", "clip", steps=1), tmp_path / "run")


def test_the_aligned_connector_is_what_training_starts_from(recipe, tmp_path):
    """With a learning rate of nearly nothing, the adapter holds the aligned connector."""
    still = {"training.learning_rate": 1e-12, "training.connector_learning_rate": 1e-12}
    saved = {}
    for name, overrides in (("plain", {}), ("aligned", {**ALIGNED, **steps_of(10)})):
        run_training(recipe({**still, **overrides, "training.max_steps": 1}), tmp_path / name)
        tensors = load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        saved[name] = next(t for key, t in tensors.items() if key.endswith("local.2.weight"))
    assert (saved["aligned"] - saved["plain"]).abs().max() > 1e-3


def test_llavas_projector_is_aligned_enters_as_large_as_words_and_trains(recipe, tmp_path):
    """Its tokens have no set size: it is given once, after the alignment."""
    llava = {"model.connector": {"type": "mlp2x_gelu"}, "alignment": {"steps": 60}}
    still = {"training.learning_rate": 1e-12, "training.connector_learning_rate": 1e-12}
    loud = []
    run_training(
        recipe({**llava, **still, "training.max_steps": 1}),
        tmp_path / "start",
        progress=lambda stage, _, __, note="": loud.append(note) if stage == "align" else None,
    )
    losses = [float(note.removeprefix("loss ")) for note in loud]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    run_training(recipe({**llava, "training.max_steps": 4}), tmp_path / "run")
    (start, parts), (_, trained) = (sized(tmp_path / name) for name in ("start", "run"))
    words = embedding_scale(parts.base.get_input_embeddings())
    assert start == pytest.approx(words, rel=0.05)
    weights = [dict(each.base.connector.named_parameters()) for each in (parts, trained)]
    own = [name for name in weights[0] if "original_module" not in name]  # PEFT's untouched copy
    assert len(own) == 4
    assert not any(torch.equal(weights[0][name], weights[1][name]) for name in own)


def sized(run):
    """The root mean square of a run's visual tokens, and its parts."""
    _, parts = open_run(run)
    images = [Image(path=path) for path in sorted((run.parent / "book").rglob("image.png"))]
    with torch.no_grad():
        tokens = parts.base.encode_images(**parts.load_images(images))
    return float(tokens.pow(2).mean(-1).sqrt().mean()), parts


def steps_of(number):
    return {"alignment.steps": number}


def test_a_run_without_a_step_is_its_alignment(recipe, recipe_file, run, tmp_path, monkeypatch):
    """The same connector as next to a step of no length, and every verb takes it."""
    few = {**ALIGNED, **steps_of(4), "tuner": {"type": "none"}}
    still = {"training.learning_rate": 1e-12, "training.connector_learning_rate": 1e-12}
    run_training(recipe({**few, **still, "training.max_steps": 1}), tmp_path / "still")
    out = tmp_path / "run"
    page = recipe({**few, "training.max_steps": 0})
    recipe_file.write_text(page.dump_yaml())
    monkeypatch.setattr(SupervisedTrainer, "compute_loss", None)
    code, told, err = run("train", recipe_file, "--out", out)
    assert code == 0, err
    assert "0 steps" in told
    assert "loss" not in told
    paths = (tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("run", "still"))
    aligned, still = map(load_file, paths)
    for name, tensor in aligned.items():
        torch.testing.assert_close(tensor, still[name], rtol=0, atol=1e-9, msg=name)
    saved = json.loads((out / "training.json").read_text())
    assert (saved["steps"], saved["loss"], saved["tokens"]) == (0, None, 0)
    assert saved["alignment_loss"] > 0
    foreseen = json.loads((out / "plan.json").read_text())["predicted"]
    assert (foreseen["steps"], foreseen["tokens"], foreseen["vision_lookups"]) == (0, 0, 0)
    assert run("report", out)[0] == 0
    assert run("eval", out, "--data", tmp_path / "book", "--split", "train")[0] == 0
    assert run("train", recipe_file, "--out", out, "--resume")[0] == 0
    assert load_file(out / "adapter" / "adapter_model.safetensors").keys() == aligned.keys()


@pytest.mark.parametrize("key", ["alignment", "model.connector.weights"])
def test_a_connector_that_would_not_be_saved_is_not_fitted(recipe, tmp_path, key):
    value = {"type": "words"} if key == "alignment" else str(tmp_path)
    page = recipe({key: value, "tuner.train_connector": False})
    with pytest.raises(RecipeError) as caught:
        run_training(page, tmp_path / "run")
    assert str(caught.value) == (
        f"{key} changes the connector, and tuner.train_connector: false would not save it; "
        "set tuner.train_connector to true"
    )
    assert not (tmp_path / "run").exists()


def test_alignment_without_described_images_names_the_key(recipe, tmp_path, rewrite):
    rewrite(lambda problems, _: [problem.pop("caption", None) for problem in problems.values()])
    with pytest.raises(DataError, match="caption"):
        run_training(recipe({**ALIGNED, "alignment.text": "captions"}), tmp_path / "run")


def asked(image, question, answer):
    images = () if image is None else (Image(path=Path(image)),)
    return Example((Message("user", (*images, question)), Message("assistant", (answer,))))


def test_answers_and_questions_say_what_an_image_shows():
    examples = [
        asked("a.png", "What is the colour of the ball?", "Red."),
        asked("a.png", "Is there a table?", "Yes."),
        asked("a.png", "Is there a dog in the photo?", "no"),
        asked("b.png", "Is a cat shown?", "No"),
        asked(None, "What is the capital of France?", "Paris"),
    ]
    words = [(image.path.name, text) for image, text in answer_words(examples)]
    assert words == [("a.png", "red colour ball table")]


def test_without_captions_the_words_of_answers_are_spoken(recipe, tmp_path, rewrite):
    described = recipe({**ALIGNED, **steps_of(2)})
    assert not describes_by_answers(described.data, "auto")
    rewrite(lambda problems, _: [problem.pop("caption", None) for problem in problems.values()])
    page, notes = recipe({**ALIGNED, **steps_of(2), "training.max_steps": 0}), []
    pairs = find_captions(page.data)
    assert {text for _, text in pairs} == {f"{name} colour" for name in ("red", "green", "blue")}
    run_training(page, tmp_path / "run", progress=lambda *at: notes.append(at[3:]))
    assert ("alignment: by the words of answers and questions, not of captions",) in notes
