"""A loss by chunks is the whole one: its value, its gradients, and how many logits ever exist."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from varifocal.assemble import assemble
from varifocal.errors import ModelError
from varifocal.models import loss as loss_file
from varifocal.models.loss import supervised_loss
from varifocal.recipe import LoraSection, MixLoraSection, MMASection
from varifocal.run import RunDirectory
from varifocal.training.examples import load_training_data
from varifocal.training.train import build_trainer
from varifocal.training.tuner import attach_tuner

SIZES = {
    "vocab_size": 41,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
ROWS, TOKENS = 3, 12
NUM_SUPERVISED = 14  # of the 33 shifted places; in 9 columns
CHUNKS = [1, 4, 5, 13, 14, 26]


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=0.3)).double()


def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 41, (ROWS, TOKENS), generator=generator)
    labels = ids.clone()
    labels[0, :8] = labels[1, :6] = labels[2, 6:] = -100
    labels[2, 2] = -100
    labels[:, 0] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_step(model, inputs, chunk, tolerance, **options):
    torch.manual_seed(2)
    whole = supervised_loss(model, inputs, 7)
    expected = gradients(model, whole)
    torch.manual_seed(2)
    chunked = supervised_loss(model, inputs, 7, chunk=chunk, **options)
    torch.testing.assert_close(chunked, whole, rtol=tolerance, atol=0)
    found = gradients(model, chunked)
    assert found.keys() == expected.keys()
    assert any(gradient.any() for gradient in found.values())
    for name, gradient in found.items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(
            gradient, expected[name], rtol=0, atol=tolerance * scale, msg=name
        )


class Widths:
    """The rows of every product of a head: of the forward pass and of the backward's repeats."""

    def __init__(self, head, monkeypatch):
        self.seen, plain = [], head.forward

        def forward(states):
            self.seen.append(states[..., 0].numel())
            return plain(states)

        monkeypatch.setattr(head, "forward", forward)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_loss_and_gradients_of_a_language_model_are_the_whole_ones(chunk):
    """The head trains here, too: its gradient is the sum over the chunks."""
    assert_same_step(llama(), batch(), chunk, 1e-12)


@pytest.mark.parametrize("chunk", CHUNKS)
def test_no_more_logits_than_a_chunk_exist_at_once(chunk, monkeypatch):
    model = llama()
    widths = Widths(model.lm_head, monkeypatch)
    loss = supervised_loss(model, batch(), chunk=chunk)
    full, rest = divmod(NUM_SUPERVISED, chunk)
    parts = [chunk] * full + [rest] * bool(rest)
    assert widths.seen == parts
    loss.backward()
    again = parts if len(parts) > 1 else []
    assert sorted(widths.seen) == sorted(parts + again)
    with torch.no_grad():
        supervised_loss(model, batch(), chunk=chunk)
    assert len(widths.seen) == 2 * len(parts) + len(again)


def test_few_logits_are_computed_as_ever(monkeypatch):
    """In one product for all rows: bit for bit what it was without chunks."""
    model, inputs = llama().float(), batch()
    widths = Widths(model.lm_head, monkeypatch)
    one, other = (supervised_loss(model, inputs, chunk=chunk) for chunk in (None, 1024))
    assert torch.equal(one, other)
    assert widths.seen[0] == widths.seen[1]


def test_chunks_need_less_memory_than_whole_logits():
    """What the graph keeps between the passes: states instead of logits and their softmax."""
    model, inputs = llama(), batch()
    kept = []

    def count(tensor):
        kept[-1] += tensor.numel() if tensor.shape[-1:] == (41,) else 0
        return tensor

    for chunk in (None, 5):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            supervised_loss(model, inputs, chunk=chunk)
    assert kept[0] >= ROWS * 10 * 41
    assert kept[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precisions(dtype):
    assert_same_step(llama().to(dtype), batch(), 5, {torch.float32: 1e-6}.get(dtype, 2e-2))


def test_under_autocast():
    model, inputs = llama().float(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        whole, chunked = (supervised_loss(model, inputs, chunk=chunk) for chunk in (None, 5))
    torch.testing.assert_close(chunked, whole, rtol=1e-3, atol=0)
    chunked.backward()


def test_nothing_supervised(monkeypatch):
    inputs = batch()
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    loss = supervised_loss(llama(), inputs, chunk=5)
    loss.backward()
    assert loss.item() == 0


TUNERS = {
    "mma": MMASection(),
    "lora": LoraSection(),
    "lora-on-the-head": LoraSection(target_modules=("q_proj", "lm_head")),
    "mixlora": MixLoraSection(num_factors=4, rank=2),
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("tuner", TUNERS)
def test_a_graft_with_every_tuner(recipe, book, tuner, checkpointing):
    model, inputs = tuned_batch(recipe(), TUNERS[tuner])
    if checkpointing:
        model.get_base_model().activation_checkpointing_enable({"use_reentrant": False})
    assert_same_step(model, inputs, 7, 1e-5)


def test_transformers_own_llava(recipe, llava):
    changes = {"model.vision_tower": None, "model.connector": None, "data.max_length": 200}
    page = recipe({**changes, "model.language_model": str(llava)})
    model, inputs = tuned_batch(page, LoraSection())
    assert_same_step(model, inputs, 7, 1e-5)


def tuned_batch(page, tuner):
    """A tuned model in training mode and the first row of its data, by the Trainer's own way."""
    parts = assemble(page)
    model = attach_tuner(parts.base, tuner).train()
    parts = parts.with_model(model)
    data = load_training_data(page.data, parts.encoder, seed=0)
    run = RunDirectory(Path(str(page.data.train[0].path) + "-run"))
    trainer = build_trainer(page, run, parts, data, lambda *_: None)
    assert trainer.loss_options == {"chunk": 1024, "kernel": None, "reference_weight": 1.0}
    inputs = next(iter(trainer.get_train_dataloader()))
    assert (inputs["labels"] != -100).sum() > 14
    return model, inputs


def test_a_model_that_changes_its_heads_product_is_refused():
    sizes = {**SIZES, "head_dim": 8, "pad_token_id": 0, "final_logit_softcapping": 30.0}
    model = Gemma2ForCausalLM(Gemma2Config(**sizes))
    supervised_loss(model, batch())
    with pytest.raises(ModelError, match=r"soft cap, a scale.*training\.loss_chunk and"):
        supervised_loss(model, batch(), chunk=5)
    assert "forward" not in model.lm_head.__dict__


# Liger's kernel itself needs CUDA; what is ours is which tensors it gets, and when it is refused


class Fused:
    """Liger's interface over torch's own operations."""

    def __init__(self, ignore_index, reduction):
        self.options = {"ignore_index": ignore_index, "reduction": reduction}

    def __call__(self, weight, states, targets, bias=None):
        logits = torch.nn.functional.linear(states, weight, bias)
        return torch.nn.functional.cross_entropy(logits, targets, **self.options)


def test_liger_gets_the_supervised_states_the_heads_weight_and_the_targets(monkeypatch):
    monkeypatch.setattr(loss_file, "load_liger", lambda: Fused)
    model = llama().float()
    assert_same_step(model, batch(), None, 1e-5, kernel="liger")


def test_liger_is_refused_without_cuda():
    with pytest.raises(ModelError, match=r"liger runs on CUDA devices only.*loss_kernel to null"):
        supervised_loss(llama(), batch(), kernel="liger")


def test_liger_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(ModelError, match="pip install liger-kernel"):
        supervised_loss(llama(), batch(), kernel="liger")


def test_liger_is_refused_on_an_adapted_head(recipe, monkeypatch):
    monkeypatch.setattr(loss_file, "load_liger", lambda: Fused)
    model = attach_tuner(llama(), LoraSection(target_modules=("q_proj", "lm_head")))
    with pytest.raises(ModelError, match=r"head is a Linear.*tuner\.target_modules"):
        supervised_loss(model, batch(), kernel="liger")
