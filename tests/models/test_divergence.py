"""The divergence from a reference whose likeliest tokens are known, held against plain sums."""

import math

import pytest
import torch

from varifocal.models.divergence import (
    bucketed_log_probs,
    reference_divergence,
    top_k_log_probs,
)


def softmax(row):
    top = max(row)
    shares = [math.exp(value - top) for value in row]
    return [share / sum(shares) for share in shares]


def oracle(reference, model, top_k):
    """Join what is not among the reference's top k into one event, then sum p log(p / q)."""
    total = 0.0
    for their_row, our_row in zip(reference, model, strict=True):
        p, q = softmax(their_row), softmax(our_row)
        known = sorted(range(len(p)), key=lambda token: -p[token])[:top_k]
        others = [token for token in range(len(p)) if token not in known]
        pairs = [(p[token], q[token]) for token in known]
        pairs.append((sum(p[token] for token in others), sum(q[token] for token in others)))
        total += sum(theirs * math.log(theirs / ours) for theirs, ours in pairs)
    return total


def rows(seed, count=5, vocabulary=13, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, vocabulary, generator=generator, dtype=torch.float64) * scale


@pytest.mark.parametrize("top_k", [1, 4, 12])
def test_it_is_the_sum_over_known_tokens_and_one_bucket(top_k):
    reference, model = rows(0), rows(1)
    ids, _ = top_k_log_probs(reference, top_k)
    found = reference_divergence(model, ids, bucketed_log_probs(reference, ids))
    expected = oracle(reference.tolist(), model.tolist(), top_k)
    torch.testing.assert_close(found.item(), expected, rtol=1e-10, atol=0)


def test_with_all_tokens_but_one_it_is_the_whole_divergence_and_with_fewer_at_most_that():
    reference, model = rows(0), rows(1)
    p, q = reference.log_softmax(-1), model.log_softmax(-1)
    whole = (p.exp() * (p - q)).sum()
    sums = []
    for top_k in (1, 6, 12, 13, 99):
        ids, _ = top_k_log_probs(reference, top_k)
        sums.append(reference_divergence(model, ids, bucketed_log_probs(reference, ids)).item())
    assert sums == sorted(sums)
    torch.testing.assert_close(sums[2:], [whole.item()] * 3, rtol=1e-10, atol=0)


def test_a_model_has_no_divergence_from_itself_and_no_gradient_there():
    model = rows(0).float().requires_grad_()
    ids, log_probs = top_k_log_probs(model.detach(), 4)
    found = reference_divergence(model, ids, log_probs)
    found.backward()
    assert abs(found.item()) < 1e-6
    assert model.grad.abs().max() < 1e-6


def test_a_sure_model_keeps_the_digits_of_what_it_thinks_unlikely():
    """One minus the known tokens' probabilities would be 0 in float32, its logarithm none."""
    logits = torch.zeros(1, 50)
    logits[0, 7] = 40.0
    ids, log_probs = top_k_log_probs(logits, 1)
    assert ids.tolist() == [[7]]
    torch.testing.assert_close(log_probs[0, 1].item(), math.log(49) - 40, rtol=1e-6, atol=0)


def test_the_gradient_moves_a_model_to_the_reference():
    reference = rows(0)
    model = rows(1).requires_grad_()
    ids, _ = top_k_log_probs(reference, 12)
    log_probs = bucketed_log_probs(reference, ids)
    optimizer = torch.optim.SGD([model], lr=1.0)
    for _ in range(2000):
        optimizer.zero_grad()
        reference_divergence(model, ids, log_probs).backward()
        optimizer.step()
    torch.testing.assert_close(model.softmax(-1), reference.softmax(-1), rtol=0, atol=1e-3)
