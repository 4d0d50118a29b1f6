"""The parts of `training.keep` on stand-ins: what decides its cache, its batches, its costs."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from varifocal.data.encoding.encoded import Encoded
from varifocal.errors import DataError
from varifocal.recipe import load_recipe
from varifocal.recipe.keep import DistillSection, ReplaySection
from varifocal.training import keep


def sample(prompt, answer=0):
    mask = np.arange(prompt + answer) < prompt
    return Encoded(np.arange(prompt + answer, dtype=np.int32), mask, example_id="one")


def key(page=(), prompts=None, fingerprint="base", encoder="words"):
    parts = SimpleNamespace(fingerprint=fingerprint, encoder=SimpleNamespace(fingerprint=encoder))
    changes = {"training.keep": {"num_examples": 6}, **dict(page)}
    return keep._key(load_recipe("demo", changes, check_paths=False), parts, prompts or [sample(3)])


@pytest.mark.parametrize(
    "changed",
    [
        {"page": {"seed": 7}},
        {"page": {"model.dtype": "float16"}},
        {"page": {"data.max_length": 99}},
        {"page": {"data.row_length": 999}},
        {"page": {"training.keep": {"num_examples": 6, "top_k": 4}}},
        {"page": {"training.keep": {"num_examples": 6, "temperature": 0.5}}},
        {"page": {"training.keep": {"num_examples": 6, "type": "replay"}}},
        {"prompts": (sample(2, 1),)},
        {"prompts": (sample(4),)},
        {"fingerprint": "another"},
        {"encoder": "another"},
    ],
    ids=str,
)
def test_whatever_decides_the_answers_is_in_the_key(changed):
    assert key(**changed) != key()


@pytest.mark.parametrize("same", [{"share": 0.5}, {"weight": 2.0}])
def test_how_they_are_used_is_not_in_the_key(same):
    assert key({"training.keep": {"num_examples": 6, **same}}) == key()


class Shape:
    """Notes what is asked of a decoder's shape."""

    def __init__(self):
        self.asked = []

    def forward(self, tokens, pairs, positions):
        self.asked.append((tokens, pairs, positions))
        return tokens + pairs + positions


def test_writing_and_reading_are_counted_pair_by_pair():
    """A prompt of 3 and an answer of 2: the fourth token sees 4, the fifth 5."""
    shape = Shape()
    total = keep.pass_flops([sample(3, 2)], DistillSection(), shape)
    assert shape.asked == [(5, 25, 2), (5, 9 + 4 + 5, 2)]
    assert total == 32 + 25
    assert keep.pass_flops([sample(3, 2)] * 2, ReplaySection(), Shape()) == 2 * 25
    own = DistillSection.model_construct(answers="data")
    assert keep.pass_flops([sample(3, 2)], own, Shape()) == 32


def test_a_batch_has_a_bound_and_like_lengths(monkeypatch):
    monkeypatch.setattr(keep, "_TOKEN_BUDGET", 60)
    monkeypatch.setattr(keep, "_MOST_ROWS", 3)
    lengths = [30, 2, 10, 1, 90, 3, 11, 2]
    batches = list(keep._batches(lengths, 5))
    assert batches == [[3, 1, 7], [5, 2, 6], [0], [4]]


def test_a_row_ends_with_the_end_of_turn_that_is_trained_and_takes_no_more():
    steps = (np.array(ids) for ids in ([5, 9], [8, 6], [7, 7], [4, 4]))
    answers = keep._until_end(SimpleGenerator(steps), 2, frozenset({8, 7}), end_of_turn=0)
    assert answers == [[5, 0], [9, 6, 0]]


class SimpleGenerator:
    """Steps that can be closed, as `decode` gives them; the last is never asked for."""

    def __init__(self, steps):
        self.steps = steps

    def __iter__(self):
        for number, ids in enumerate(self.steps):
            assert number < 3
            yield ids

    def close(self):
        pass


def test_an_answer_is_cut_to_the_longest_example():
    whole = keep._with_answer(sample(3), [7, 8], None)
    assert whole.input_ids.tolist() == [0, 1, 2, 7, 8]
    cut = keep._with_answer(sample(3), [7, 8], 4)
    assert cut.input_ids.tolist() == [0, 1, 2, 7]
    assert cut.prompt_mask.tolist() == [True] * 3 + [False]
    assert cut.example_id == "one"


class Words:
    """An encoder with a token a letter."""

    max_length = 9

    def encode(self, example, with_answer):
        return sample(len(example.messages[0].text), int(with_answer))


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Encode instructions of a file: `asked(["a", "b"])`."""

    def ask(texts, rule="fail", **more):
        rows = [json.dumps({"question": text, "answer": "so"}) for text in texts if text]
        rows += ["{"] * texts.count("")
        (tmp_path / "rows.jsonl").write_text("\n".join(rows))
        section = {"instructions": [{"path": str(tmp_path / "rows.jsonl"), "format": "table"}]}
        page = {"training.keep": {**section, "num_examples": 2, **more}}
        page |= {"data.on_bad_record": rule}
        return keep.prompts_of(load_recipe("demo", page, check_paths=False), Words())

    return ask


def test_a_prompt_without_room_for_an_answer_is_passed_over(asked):
    found = asked(["123456789", "12345678", "1", "2"])
    assert [len(one) for one in found] == [8, 1]
    assert found[0].example_id
    with pytest.raises(DataError, match="no instruction without an image is short enough"):
        asked(["123456789"])


def test_with_its_own_answer_it_may_be_as_long_as_the_longest(asked):
    assert [len(one) for one in asked(["12345678"], answers="data")] == [9]


def test_a_bad_instruction_ends_it_or_is_passed_over_as_the_recipe_says(asked):
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        asked(["1", ""])
    assert len(asked(["1", ""], rule="skip")) == 1
