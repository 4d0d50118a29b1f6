"""The loss of rows with a reference: plain sums, chunks, micro-batches and wrappers agree."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from varifocal.models import loss as loss_file
from varifocal.models.divergence import top_k_log_probs
from varifocal.models.loss import supervised_loss

SIZES = {
    "vocab_size": 41,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
ROWS, TOKENS, TOP_K, WEIGHT = 4, 12, 5, 0.5


def llama(seed):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SIZES)).double()


@pytest.fixture
def batch():
    """Four rows; two answers have a reference, in the middle of others."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 41, (ROWS, TOKENS), generator=generator)
    labels = ids.clone()
    labels[:, :3] = labels[2, 6:] = -100
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[0, 5:9] = mask[3, 7:] = True
    with torch.no_grad():
        theirs = llama(7)(ids).logits[:, :-1][mask[:, 1:]]
    known, log_probs = top_k_log_probs(theirs, TOP_K)
    references = {"reference_mask": mask, "reference_ids": known}
    return {"input_ids": ids, "labels": labels, **references, "reference_log_probs": log_probs}


def plain(model, batch):
    """Token by token: minus the log probability, or the divergence over known tokens and rest."""
    said = model(batch["input_ids"]).logits.log_softmax(-1)
    total, count, place = torch.zeros((), dtype=torch.float64), 0, 0
    for row in range(ROWS):
        for token in range(1, TOKENS):
            ours = said[row, token - 1]
            if batch["reference_mask"][row, token]:
                known = batch["reference_ids"][place]
                theirs = batch["reference_log_probs"][place].double()
                rest = torch.log(1 - ours[known].exp().sum())
                both = torch.cat([ours[known], rest[None]])
                total = total + WEIGHT * (theirs.exp() * (theirs - both)).sum()
                place += 1
            elif batch["labels"][row, token] != -100:
                total = total - ours[batch["labels"][row, token]]
            else:
                continue
            count += 1
    return total / count


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same(found, expected):
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("chunk", [None, 1, 3, 1024])
def test_the_loss_and_its_gradients_are_the_plain_sums(batch, chunk):
    model = llama(0)
    expected = plain(model, batch)
    found = supervised_loss(model, batch, chunk=chunk, reference_weight=WEIGHT)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    assert_same(gradients(model, found), gradients(model, plain(model, batch)))


@pytest.mark.parametrize("chunk", [None, 3])
def test_micro_batches_add_up_to_the_batch(batch, chunk):
    """As accumulation, and as several processes, have them: each divides by all tokens."""
    model, options = llama(0), {"chunk": chunk, "reference_weight": WEIGHT}
    count = int((batch["labels"][:, 1:] != -100).sum())
    whole = gradients(model, supervised_loss(model, batch, count, **options))
    model.zero_grad()
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        before = int(batch["reference_mask"][: rows.start].sum())
        here = int(batch["reference_mask"][rows].sum())
        own = {name: batch[name][rows] for name in ("input_ids", "labels")}
        if here:  # the middle rows have none, as a batch that the collator gives no reference
            places = slice(before, before + here)
            own["reference_mask"] = batch["reference_mask"][rows]
            own["reference_ids"] = batch["reference_ids"][places]
            own["reference_log_probs"] = batch["reference_log_probs"][places]
        supervised_loss(model, own, count, **options).backward()
    assert_same({name: p.grad for name, p in model.named_parameters()}, whole)


def test_a_batch_of_references_alone_needs_no_other_loss(batch, monkeypatch):
    """A kernel that cannot take an empty batch is not called with one."""

    def refuse(head):
        return lambda states, targets: pytest.fail("the kernel was called")

    monkeypatch.setattr(loss_file, "_liger_total", refuse)
    alone = batch | {"labels": batch["labels"].masked_fill(~batch["reference_mask"], -100)}
    model = llama(0)
    expected = supervised_loss(model, alone)
    found = supervised_loss(model, alone, kernel="liger")
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_the_weight_scales_the_divergence_alone(batch):
    model = llama(0)
    zero, one, two = (
        supervised_loss(model, batch, 1, reference_weight=weight).item() for weight in (0, 1, 2)
    )
    torch.testing.assert_close(two - one, one - zero, rtol=1e-9, atol=0)
    targets = batch["labels"].masked_fill(batch["reference_mask"], -100)
    others = supervised_loss(model, {"input_ids": batch["input_ids"], "labels": targets}, 1)
    torch.testing.assert_close(zero, others.item(), rtol=1e-9, atol=0)
