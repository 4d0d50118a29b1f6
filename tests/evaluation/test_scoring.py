"""Option likelihood: tree rows against a plain loop over options."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from varifocal.models.likelihood import (
    EncodedQuestion,
    batch_by_length,
    best_option,
    plant,
    rate_options,
    reads_tree_rows,
    score_options,
)


def plain_loop(model: torch.nn.Module, question: EncodedQuestion) -> list[float]:
    """Score every option on its own row, one token after the other."""
    scores = []
    for option in question.option_ids:
        ids = torch.tensor([*question.prompt_ids.tolist(), *option.tolist()])[None]
        with torch.no_grad():
            log_probs = model(input_ids=ids).logits[0].double().log_softmax(-1)
        start = len(question.prompt_ids)
        scores.append(sum(float(log_probs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])))
    return scores


@pytest.mark.parametrize("token_budget", [1, 100, 100_000])
@pytest.mark.parametrize("tree", [True, False])
def test_scores_equal_a_plain_loop(llama, random_questions, token_budget: int, tree: bool) -> None:
    questions = random_questions(9)
    scores = score_options(llama, questions, token_budget=token_budget, tree=tree)
    for got, question in zip(scores, questions, strict=True):
        assert got == pytest.approx(plain_loop(llama, question), abs=1e-9)


def test_eager_attention_obeys_the_mask(llama, random_questions) -> None:
    llama.set_attn_implementation("eager")  # its softmax runs in float32, whatever the weights are
    questions = random_questions(5)
    scores = score_options(llama, questions)
    for got, question in zip(scores, questions, strict=True):
        assert got == pytest.approx(plain_loop(llama, question), abs=1e-4)


def test_mean_divides_by_the_options_tokens(llama, random_questions) -> None:
    questions = random_questions(4)
    total = score_options(llama, questions)
    mean = score_options(llama, questions, normalisation="mean")
    for question, a, b in zip(questions, total, mean, strict=True):
        assert b == pytest.approx([s / len(o) for s, o in zip(a, question.option_ids, strict=True)])


def test_bfloat16_agrees_with_itself_for_any_batch(llama, random_questions) -> None:
    model, questions = llama.bfloat16(), random_questions(6)
    alone = score_options(model, questions, token_budget=1)
    together = score_options(model, questions, token_budget=10_000)
    for a, b in zip(alone, together, strict=True):
        assert a == pytest.approx(b, rel=0.05, abs=0.5)


def test_a_tree_row_on_paper() -> None:
    question = EncodedQuestion(
        np.array([7, 8], np.int32), (np.array([1, 2], np.int32), np.array([3], np.int32))
    )
    longer = EncodedQuestion(np.array([5, 5, 5], np.int32), (np.array([1, 2, 3], np.int32),))
    rows = plant([question, longer])
    assert rows.input_ids[0].tolist() == [7, 8, 1, 2, 3, 0]
    assert rows.position_ids[0].tolist() == [0, 1, 2, 3, 2, 0]
    assert rows.segment_ids[0].tolist() == [0, 0, 0, 0, 0, 1]
    assert rows.prompt_mask[0].tolist() == [True, True, False, False, False, False]
    assert rows.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert rows.columns.tolist() == [1, 2, 1, 2, 3, 4]
    assert rows.targets.tolist() == [1, 2, 3, 1, 2, 3]
    assert rows.num_tokens.tolist() == [2, 1, 3]


def test_batches_hold_every_index_once_within_the_budget() -> None:
    lengths = [3, 50, 7, 7, 1, 20]
    batches = list(batch_by_length(lengths, 21))
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert batches[0] == [1]
    assert all(len(b) * max(lengths[i] for i in b) <= 21 for b in batches[1:])


def test_ties_go_to_the_first() -> None:
    assert best_option([-2.0, -1.0, -1.0]) == 1


def test_windowed_attention_is_scored_row_by_row(random_questions) -> None:
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=4, initializer_range=0.4,
    )  # fmt: skip
    model, questions = MistralForCausalLM(config).double().eval(), random_questions(4)
    assert not reads_tree_rows(model)
    for got, question in zip(score_options(model, questions), questions, strict=True):
        assert got == pytest.approx(plain_loop(model, question), abs=1e-9)


def test_progress_counts_to_the_total(llama, random_questions) -> None:
    seen: list[tuple[int, int]] = []
    rate_options(llama, random_questions(5), token_budget=60, progress=lambda *p: seen.append(p))
    assert seen[-1] == (5, 5)
    assert seen == sorted(seen)
    assert len(seen) > 1


def test_images_without_a_loader_are_refused(llama) -> None:
    question = EncodedQuestion(np.array([1], np.int32), (np.array([2], np.int32),), 1, ("picture",))
    with pytest.raises(ValueError, match="load_images is None"):
        score_options(llama, [question])


@pytest.mark.parametrize(("prompt", "options"), [([], [[1]]), ([1], []), ([1], [[]])])
def test_what_has_no_likelihood_is_refused(prompt: list[int], options: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="empty"):
        EncodedQuestion(np.array(prompt, np.int32), tuple(np.array(o, np.int32) for o in options))
