"""A tiny graft on disk, a tiny ScienceQA folder, and a recipe that joins them."""

import json
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from transformers import (
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaForCausalLM,
)

from tiny import byte_tokenizer, llama_config
from varifocal.assemble import assemble
from varifocal.models.efficientnet import EfficientNetLite, EfficientNetLiteConfig
from varifocal.recipe import load_recipe
from varifocal.run import RunDirectory
from varifocal.training.examples import load_training_data
from varifocal.training.train import build_trainer
from varifocal.training.tuner import attach_tuner

SIDE = 28
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 210)}


def save_language(directory, seed=0, **changes):
    tokenizer = byte_tokenizer()
    torch.manual_seed(seed)
    LlamaForCausalLM(llama_config(tokenizer, **changes)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def save_towers(directory):
    vit = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}
    vit |= {"image_size": SIDE, "patch_size": 7}
    torch.manual_seed(1)
    CLIPVisionModel(CLIPVisionConfig(**vit, intermediate_size=24)).save_pretrained(
        directory / "clip"
    )
    Dinov2Model(Dinov2Config(**vit, mlp_ratio=2)).save_pretrained(directory / "dinov2")
    crop = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    CLIPImageProcessorPil(**crop).save_pretrained(directory / "clip")
    BitImageProcessorPil(**crop).save_pretrained(directory / "dinov2")
    lite = EfficientNetLiteConfig(width_multiplier=0.1, depth_multiplier=0.1, image_size=64)
    EfficientNetLite(lite).save_pretrained(directory / "efficientnet")


def write_book(directory, num_pictures=9, num_texts=6):
    """Questions about the colour of a square, and about letters; a description of each image."""
    problems, splits = {}, {"train": [], "val": [], "test": []}
    names = list(COLOURS)
    for number in range(num_pictures + num_texts):
        pid, name = str(number), names[number % 3]
        pictured = number < num_pictures
        problems[pid] = {
            "question": "Which colour?" if pictured else f"What comes after {'ABC'[number % 3]}?",
            "choices": names if pictured else ["B", "C", "D"],
            "answer": number % 3,
            "hint": "",
            "image": "image.png" if pictured else None,
            "grade": f"grade{1 + number}",
            "subject": "natural science",
            "skill": "colours" if pictured else "letters",
            "lecture": "",
            "solution": "",
            "split": "train",
            **({"caption": f"A {name} square, number {number // 3}."} if pictured else {}),
        }
        splits["train"].append(pid)
        if pictured:
            folder = directory / "images" / "train" / pid
            folder.mkdir(parents=True)
            square = PIL.Image.new("RGB", (SIDE, SIDE), COLOURS[name])
            square.paste((255, 255, 255), (0, 0, 3 + 2 * number, 9))
            square.save(folder / "image.png")
    write_tables(directory, problems, splits)


def write_tables(directory, problems, splits):
    directory.mkdir(exist_ok=True)
    (directory / "problems.json").write_text(json.dumps(problems))
    (directory / "pid_splits.json").write_text(json.dumps(splits))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _one_thread():
    """Two threads may add up in another order than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """A directory with `language`, `clip`, `dinov2` and `efficientnet`; nobody changes it."""
    directory = tmp_path_factory.mktemp("parts")
    save_language(directory / "language")
    save_towers(directory)
    return directory


@pytest.fixture
def book(tmp_path):
    """Nine pictured and six plain questions, all in the split `train`."""
    write_book(tmp_path / "book")
    return tmp_path / "book"


@pytest.fixture
def recipe_file(tmp_path, parts, book):
    """The page; see `recipe`."""
    page = {
        "seed": 5,
        "model": {
            "language_model": str(parts / "language"),
            "vision_tower": str(parts / "clip"),
            "connector": {"hidden_dim": 16, "num_tokens": 4, "num_global_tokens": 1},
            "dtype": "float32",
        },
        "tuner": {"type": "mma", "router_temperature": 1.0},
        "data": {
            "train": [{"path": str(book), "format": "scienceqa", "split": "train"}],
            "max_length": 160,
            "row_length": 320,
        },
        "training": {
            "num_train_epochs": 2,
            "per_device_train_batch_size": 1,
            "learning_rate": 1e-2,
            "connector_learning_rate": 5e-3,
            "warmup_steps": 2,
            "logging_steps": 1,
            "save_steps": 100,
        },
    }
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(page))
    return path


@pytest.fixture
def recipe(recipe_file):
    """Read the page with overrides: `recipe({"training.max_steps": 1})`."""
    return lambda overrides=(), **options: load_recipe(recipe_file, overrides, **options)


@pytest.fixture
def trainer_of(tmp_path):
    """Build a recipe's Trainer, without a run: `trainer_of(recipe())`."""

    def build(page):
        parts = assemble(page)
        model = attach_tuner(parts.base, page.tuner)
        data = load_training_data(page.data, parts.encoder, seed=0)
        run = RunDirectory(tmp_path / "no-run")
        return build_trainer(page, run, parts.with_model(model), data, lambda *_: None)

    return build


@pytest.fixture
def whole_recipe(recipe, book):
    """A recipe of a model of transformers that sees already: `whole_recipe(directory, tuner)`."""

    def read(directory, tuner, epochs=1, **more):
        page = {
            "tuner": tuner,
            "model.language_model": str(directory),
            "model.vision_tower": None,
            "model.connector": None,
            "data.max_length": 200,
            "data.evaluate": [{"path": str(book), "format": "scienceqa", "split": "train"}],
            "training.num_train_epochs": epochs,
            "training.connector_learning_rate": None,
        }
        return recipe({**page, **more})

    return read


@pytest.fixture
def score_and_ask(run, book):
    """Score a run of the book both ways, and ask it a question with an image and without."""

    def score_and_ask(trained):
        assert run("eval", trained, "--score", "both")[0] == 0
        measures = json.loads((trained / "eval" / "book-train.json").read_text())["measures"]
        counts = {one["name"]: one["count"] for one in measures}
        assert (counts["NAT"], counts["IMG"]) == (15, 9)
        image = book / "images" / "train" / "0" / "image.png"
        code, with_image, _ = run("ask", trained, "Which colour?", "--image", image)
        assert code == 0
        assert with_image != run("ask", trained, "Which colour?")[1]

    return score_and_ask


@pytest.fixture
def rewrite(book):
    """Change the book's records and splits: `rewrite(lambda problems, splits: ...)`."""

    def change(edit):
        problems = json.loads((book / "problems.json").read_text())
        splits = json.loads((book / "pid_splits.json").read_text())
        edit(problems, splits)
        write_tables(book, problems, splits)

    return change


@pytest.fixture
def image_file(book):
    """Where a record's image lies."""
    return lambda pid: Path(book / "images" / "train" / pid / "image.png")


@pytest.fixture(scope="session")
def new_language():
    """Save another language model: `new_language(directory, seed=1)`."""
    return save_language
