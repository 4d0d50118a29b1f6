"""The chatbot's recipes: the paper's settings at 7B and 13B, and the demo's one of its own."""

import json

import PIL.Image
import pytest

from varifocal.data.loading import load_source
from varifocal.recipe import load_recipe
from varifocal.training.tuner import count_parameters


def read(name, overrides=()):
    return load_recipe(name, overrides, check_paths=False)


@pytest.mark.parametrize(
    ("name", "count", "temperature"), [("chat-7b", 3_781_296, 10.0), ("chat-13b", 5_390_080, 5.0)]
)
def test_the_papers_parameters_and_steps(name, count, temperature):
    recipe = read(name)
    assert count_parameters(recipe)["trained_parameters"] == count
    assert recipe.tuner.router_temperature == temperature
    training = recipe.training
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 32
    assert training.learning_rate == pytest.approx(9e-3 * 32 / 256)
    assert training.num_train_epochs * training.warmup_steps == pytest.approx(0.2, rel=0.01)
    assert f"{count:,}" in read_text(name)


def read_text(name):
    from varifocal.recipe.reading import SHIPPED

    return (SHIPPED / f"{name}.yaml").read_text()


def test_the_papers_files_are_read_in_their_own_layout(tmp_path):
    """Stanford Alpaca's rows, and LLaVA-Instruct's with COCO's image names."""
    alpaca = [{"instruction": "Say hi.", "input": "", "output": "Hi."}]
    (tmp_path / "alpaca_data.json").write_text(json.dumps(alpaca))
    turns = [
        {"from": "human", "value": "What is in the photo?\n<image>"},
        {"from": "gpt", "value": "A cat."},
        {"from": "human", "value": "Which colour?"},
        {"from": "gpt", "value": "Black."},
    ]
    row = {"id": "000000033471", "image": "000000033471.jpg", "conversations": turns}
    (tmp_path / "llava_instruct_150k.json").write_text(json.dumps([row]))
    (tmp_path / "train2017").mkdir()
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "train2017" / "000000033471.jpg")
    recipe = load_recipe("chat-7b", {"data.root": str(tmp_path)})
    texts, images = (list(load_source(source)) for source in recipe.data.train)
    assert texts[0].messages[-1].content == ("Hi.",)
    assert len(images[0].messages) == 4
    assert images[0].messages[0].content[-1].path.name == "000000033471.jpg"


def test_the_demo_learns_text_and_images_together():
    recipe = read("chat-demo")
    assert recipe.data.mixture.language_fraction == 0.5
    formats = [(source.format, source.prompt_format) for source in recipe.data.train]
    assert formats == [("alpaca", "QCM-A"), ("scienceqa", "QCM-A"), ("scienceqa", "caption")]
    assert 3_000_000 < count_parameters(recipe)["trained_parameters"] < 3_200_000
