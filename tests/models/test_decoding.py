"""The decoding loop and its choices, on models that count positions absolutely too."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from varifocal.models.decoding import decode, greedy, pad_left, sampler, stop_ids


@pytest.fixture
def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=31, n_positions=40, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).double().eval()


def test_padding_does_not_move_positions(gpt2) -> None:
    """Learned positions, unlike rotary ones, show a shift of a whole row."""
    prompts = [[5, 6, 7, 8, 9, 10, 11], [3], [12, 13, 14]]
    batch = pad_left(prompts, [0, 0, 0])
    written = torch.stack(list(decode(gpt2, batch, {}, max_new_tokens=6)), dim=1)
    for prompt, row in zip(prompts, written.tolist(), strict=True):
        ids = list(prompt)
        for _ in range(6):
            with torch.no_grad():
                ids.append(int(gpt2(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        assert row == ids[len(prompt) :]


def test_left_padding_on_paper() -> None:
    batch = pad_left([[7, 8], [9]], [0, 1])
    assert batch["input_ids"].tolist() == [[7, 8], [0, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1], [0, 1]]
    assert batch["modality_ids"].tolist() == [[0, 0], [1, 1]]


def test_greedy_takes_the_first_of_equals() -> None:
    assert greedy(torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 2.0]])).tolist() == [1, 0]


def shares(temperature: float, top_p: float) -> list[float]:
    """How often each of four tokens is drawn from logits log(0.1, 0.4, 0.2, 0.3)."""
    logits = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log().expand(20_000, 4)
    chosen = sampler(temperature, top_p, torch.Generator().manual_seed(0))(logits)
    return (torch.bincount(chosen, minlength=4) / len(chosen)).tolist()


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.1, 0.4, 0.2, 0.3]),
        (0.5, 1.0, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares, normed
        (1.0, 0.69, [0.0, 4 / 7, 0.0, 3 / 7]),  # 0.4 alone does not reach it
        (1.0, 0.71, [0.0, 4 / 9, 2 / 9, 3 / 9]),
        (1.0, 0.01, [0.0, 1.0, 0.0, 0.0]),
    ],
)
def test_sampling_shares(temperature: float, top_p: float, expected: list[float]) -> None:
    assert shares(temperature, top_p) == pytest.approx(expected, abs=0.015)


@pytest.mark.parametrize(("temperature", "top_p"), [(0.0, 1.0), (1.0, 0.0), (1.0, 1.1)])
def test_what_cannot_be_sampled_is_refused(temperature: float, top_p: float) -> None:
    with pytest.raises(ValueError, match="must be"):
        sampler(temperature, top_p, torch.Generator())


@pytest.mark.parametrize(("own", "ids"), [(None, {9}), (4, {4, 9}), ([4, 5], {4, 5, 9})])
def test_stop_ids(gpt2, own, ids: set[int]) -> None:
    gpt2.generation_config.eos_token_id = own
    assert stop_ids(gpt2, 9) == ids
