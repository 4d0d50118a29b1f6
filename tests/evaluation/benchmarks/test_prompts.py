"""For every row of the table: prompts do not depend on the gold answers, and the row works."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from varifocal.assemble import Assembly
from varifocal.data.encoding.encoder import Encoder
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answer
from varifocal.evaluation.benchmarks.registry import BENCHMARKS, SUITES, find_folders, load_items
from varifocal.evaluation.evaluated_model import EncodedAsker, without_images

rows = pytest.mark.parametrize("row", BENCHMARKS.values(), ids=BENCHMARKS)


@pytest.fixture
def asker(tokenizer):
    """A model that sees: an image is two placeholders."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    encoder = Encoder(tokenizer, "<|image|>", tokens_per_image=2)
    model = LlamaForCausalLM(config).eval()
    return EncodedAsker(Assembly(model, None, encoder, None, None, lambda images: {}))


@pytest.fixture
def load(official_files, tmp_path):
    """Load a row's items with gold answers moved on by `turn`, from one and the same folder."""

    def load(row, turn):
        folder = tmp_path / row.name
        folder.mkdir(exist_ok=True)
        official_files[row.name](folder, turn)
        return load_items(row, find_folders([row], tmp_path)[row.name])

    return load


def test_every_row_has_files_to_be_tested_on(official_files):
    assert set(BENCHMARKS) <= set(official_files)


def test_every_suite_names_rows():
    assert {name for names in SUITES.values() for name in names} <= set(BENCHMARKS)


@rows
def test_moving_the_gold_answers_moves_no_byte_of_a_prompt(row, load, asker):
    first, second = load(row, 0), load(row, 1)
    assert [item.id for item in first] == [item.id for item in second]
    with_options = row.method == "likelihood"
    for one, other in zip(first, second, strict=True):
        assert one.references != other.references, "the fixture's gold answers did not move"
        keys = [asker.prepare(item.asked, with_options=with_options).key for item in (one, other)]
        assert keys[0] == keys[1]


@rows
def test_a_question_shows_no_answer(row, load):
    for item in load(row, 0):
        assert item.asked.answer_index is None
        assert item.asked.messages[-1].role == "user"


@rows
def test_ids_are_unique_and_the_order_is_that_of_the_files(row, load):
    names = [item.id for item in load(row, 0)]
    assert len(set(names)) == len(names) > 0
    assert names == [item.id for item in load(row, 0)]


@rows
def test_right_answers_earn_everything_and_unparsed_ones_nothing(row, load):
    items = load(row, 0)
    right = [_right(row, item) for item in items]
    for item, answer in zip(items, right, strict=True):
        assert row.credit(item, answer) in (None, 1.0)
    silent = [Answer("", parsed=None) for item in items]
    for item, answer in zip(items, silent, strict=True):
        assert not row.credit(item, answer)
    good, bad = (
        {one.name: one for one in row.measure(list(zip(items, answers, strict=True)))}
        for answers in (right, silent)
    )
    assert row.main in good
    assert row.main in bad
    assert good[row.main].value > bad[row.main].value
    assert bad[row.main].unparsed == bad[row.main].count


@rows
def test_nothing_is_parsed_from_nothing(row, load):
    for item in load(row, 0):
        assert row.parse("", item) is None


@rows
def test_a_row_says_what_it_needs(row, tmp_path):
    assert row.files
    assert row.protocol
    assert row.source
    with pytest.raises(DataError, match=f"no data for {row.name}: there is no folder") as error:
        find_folders([row], tmp_path)
    assert row.files in str(error.value)


@rows
def test_blind_takes_the_images_alone(row, load):
    for item in load(row, 0):
        blind = without_images(item.asked)
        assert not blind.images
        assert [message.text for message in blind.messages] == [
            message.text for message in item.asked.messages
        ]


def _right(row, item):
    if row.method == "likelihood":
        choice = item.example.answer_index
        return Answer(choice=choice, parsed=item.example.choices[choice])
    return Answer(item.references[0], parsed=row.parse(item.references[0], item))
