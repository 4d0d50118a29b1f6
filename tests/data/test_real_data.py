"""Real questions and images, where the folder of them is at hand."""

import json
from pathlib import Path

import pytest

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.loading import check_images, load_source
from varifocal.data.source import open_source
from varifocal.recipe import FileSection

SHARED = Path(__file__).parents[3] / "shared" / "data"
NLVR = {
    "question": "True or false of the image? {sentence}",
    "answer": "label",
    "choices": "true|false",
    "image": "image",
}


def folder(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"../shared/data/{name} is not there")
    return SHARED / name


@pytest.mark.parametrize("answer_as", ["text", "letter"])
@pytest.mark.parametrize("prompt_format", ["QCM-A", "QCM-ALE"])
def test_scienceqa_loads_and_trains_its_answers(tokenizers, prompt_format, answer_as):
    how = {"format": "scienceqa", "prompt_format": prompt_format, "answer_as": answer_as}
    examples = load_source(FileSection(path=str(folder("scienceqa-text")), split="val", **how))
    assert len(examples) == 180
    encoded = Encoder(tokenizers["smollm2"]).encode_all(examples)
    for example, sample in zip(examples, encoded.samples, strict=True):
        written = tokenizers["smollm2"].decode(sample.trained_ids)
        assert written == f"{example.messages[-1].text}<|im_end|>"


def test_nlvr_loads_with_its_images(tokenizers):
    file = folder("nlvr") / "dev.jsonl"
    examples = load_source(FileSection(path=str(file), format="table", columns=NLVR))
    assert len(examples) == 989
    assert sum(example.answer_index == 0 for example in examples) == 547
    assert len(check_images(examples[:20])) == 20
    encoder = Encoder(tokenizers["smollm2"], "<|image|>", tokens_per_image=4)
    prompt, options = encoder.encode_options(examples[0])
    assert (prompt.input_ids == encoder.image_token_id).sum() == 4
    assert [tokenizers["smollm2"].decode(ids) for ids in options] == [
        "true<|im_end|>",
        "false<|im_end|>",
    ]


def test_alpaca_loads_as_it_is():
    source = open_source(FileSection(path=str(folder("alpaca") / "alpaca_999.json")))
    rows = json.loads((folder("alpaca") / "alpaca_999.json").read_text())
    assert source.format_name == "alpaca"
    assert len(source) == len(rows) == 999
    for row, example in zip(rows, source, strict=True):
        asked = "\n".join(filter(None, [row["instruction"], row["input"]]))
        assert [message.role for message in example.messages] == ["user", "assistant"]
        assert [message.text for message in example.messages] == [asked, row["output"]]


def test_folders_of_real_data_load_by_split():
    dev = FileSection(path=str(folder("nlvr")), split="dev", columns=NLVR)
    assert len(open_source(dev)) == 989
    assert open_source(dev).scan().modalities.tolist() == [1] * 989
    questions = FileSection(path=str(folder("scienceqa-text")), split="val")
    assert open_source(questions).format_name == "scienceqa"
    assert open_source(questions).scan().modalities.tolist() == [0] * 180
