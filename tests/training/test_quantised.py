"""A base in 4 or 8 bits: the model that its own rounding gives, trained as any other.

The tiny model's weights are random with a deviation of 0.3, much harsher than a trained model's:
what its rounding costs says little of a real model (docs/speed.md has that). So what is exact is
held exactly, against a model in float32 whose weights are the rounded ones.
"""

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from varifocal.assemble import assemble, open_run
from varifocal.errors import Stopped
from varifocal.models.loss import supervised_loss
from varifocal.planning.memory import count_weights
from varifocal.planning.shapes import build_shapes
from varifocal.recipe import LoraSection, MixLoraSection, MMASection
from varifocal.run import RunDirectory
from varifocal.training.examples import load_training_data
from varifocal.training.train import build_trainer, run_training
from varifocal.training.tuner import attach_tuner

bnb = pytest.importorskip("bitsandbytes")

TUNERS = [MMASection(router_temperature=1.0), MixLoraSection(rank=2), LoraSection(rank=2)]
BITS = ["nf4", "int8"]

# Relative: nf4 rounds weights alone, so that only the order of sums differs; int8 rounds to one
# 127th of the largest what goes into every layer, too.
LOSS = {"nf4": 1e-5, "int8": 2e-2}
GRADIENT = {"nf4": 1e-4, "int8": 0.25}


@pytest.fixture(scope="module")
def language(tmp_path_factory, new_language):
    """A Llama of whole blocks of 64 weights a row."""
    directory = tmp_path_factory.mktemp("blocks")
    new_language(directory, hidden_size=64, intermediate_size=128)
    return str(directory)


@pytest.fixture
def tuned(recipe, language):
    """Tune and give a batch: `tuned("nf4", LoraSection())`; both of the first two rows."""

    def make(bits, tuner, rounded=False):
        page = recipe(
            {
                "model.language_model": language,
                "model.quantization": bits,
                "training.per_device_train_batch_size": 2,
            }
        )
        parts = assemble(page)
        if rounded:
            put_rounded(parts.base)
        torch.manual_seed(3)
        model = attach_tuner(parts.base, tuner).train()
        awaken(model)
        data = load_training_data(page.data, parts.encoder, seed=0)
        run = RunDirectory(Path(str(page.data.train[0].path) + "-run"))
        trainer = build_trainer(page, run, parts.with_model(model), data, lambda *_: None)
        return model, next(iter(trainer.get_train_dataloader()))

    return make


def put_rounded(base):
    """Put in the place of quantised layers plain ones that hold their rounded weights."""
    for name, module in list(base.named_modules()):
        weight = getattr(module, "weight", None)
        if isinstance(module, bnb.nn.Linear4bit):
            whole = bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif isinstance(module, bnb.nn.Linear8bitLt):
            whole = weight.data.float() * weight.SCB[:, None] / 127
        else:
            continue
        plain = nn.Linear(module.in_features, module.out_features, bias=False)
        plain.weight = nn.Parameter(whole.float(), requires_grad=False)
        base.set_submodule(name, plain)


def awaken(model):
    """Move every adapter off its start, where it adds nothing."""
    generator = torch.Generator().manual_seed(4)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "connector" not in name:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def step(model, inputs):
    model.zero_grad()
    torch.manual_seed(5)  # dropout
    loss = supervised_loss(model, inputs)
    loss.backward()
    return loss.item(), {
        n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
    }


def is_read(name):
    """The connector reads the tower's states before its last block."""
    return ".vision_tower.model.encoder.layers.3." not in name


def quantised_layers(model):
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: tuner.type)
def test_a_step_is_that_of_the_rounded_weights(bits, tuner, tuned):
    model, inputs = tuned(bits, tuner)
    assert len(quantised_layers(model)) == 14  # of two layers: all seven linears, and no head
    assert len(inputs["pixel_values"] if "pixel_values" in inputs else inputs["image_features"])
    loss, found = step(model, inputs)
    plain, _ = tuned(bits, tuner, rounded=True)
    assert not quantised_layers(plain)
    expected_loss, expected = step(plain, inputs)
    assert loss == pytest.approx(expected_loss, rel=LOSS[bits])
    assert found.keys() == expected.keys()
    assert found.keys() == {
        n for n, p in model.named_parameters() if p.requires_grad and is_read(n)
    }
    for name, gradient in found.items():
        assert gradient.any(), name
        away = (gradient - expected[name]).norm() / expected[name].norm()
        assert away < GRADIENT[bits], (name, away)


@pytest.mark.parametrize("bits", BITS)
def test_the_rounded_base_is_near_the_whole_one(bits, tuned):
    losses = []
    for kind in (None, bits):
        model, inputs = tuned(kind, TUNERS[2])
        losses.append(step(model, inputs)[0])
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel={"nf4": 0.1, "int8": 0.03}[bits])


@pytest.mark.parametrize("bits", BITS)
def test_looking_without_gradients_changes_no_later_step(bits, tuned):
    """bitsandbytes packs 4-bit weights then, rounds them again, and ends the gradient."""
    model, inputs = tuned(bits, TUNERS[2])
    loss, before = step(model, inputs)
    model.eval()
    expected = supervised_loss(model, inputs).item()
    with torch.no_grad():
        assert supervised_loss(model, inputs).item() == expected
    again, after = step(model.train(), inputs)
    assert again == loss
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    layers = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)  # on any machine


def held_bytes(model):
    """The bytes of all that a model holds, what bitsandbytes keeps next to its weights included."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, bnb.nn.Linear4bit):
            state = weight.quant_state
            inner = state.state2
            tensors += [state.absmax, state.code, state.offset, inner.absmax, inner.code]
        elif isinstance(module, bnb.nn.Linear8bitLt):
            tensors.append(weight.SCB)
    return sum(each.numel() * each.element_size() for each in tensors)


@pytest.mark.parametrize("bits", BITS)
def test_a_plan_counts_the_bytes_that_are_held(bits, recipe, language):
    page = recipe({"model.language_model": language, "model.quantization": bits})
    shapes = build_shapes(page)
    counted = count_weights(shapes.model, shapes.base, page)
    model = attach_tuner(assemble(page).base, page.tuner)
    assert len(quantised_layers(model)) == 14
    assert held_bytes(model) == counted.frozen + counted.trained


@pytest.mark.parametrize("bits", BITS)
def test_a_run_is_resumed_and_opened_again(bits, tmp_path, recipe, language):
    knobs = {"model.language_model": language, "model.quantization": bits}
    knobs |= {"training.max_steps": 4, "training.save_steps": 2}
    run_training(recipe(knobs), tmp_path / "whole")
    whole = [line["loss"] for line in RunDirectory(tmp_path / "whole").read_metrics()]

    def stop(stage, done, total, note=""):
        if stage == "train" and done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        run_training(recipe(knobs), tmp_path / "run", progress=stop)
    run_training(recipe(knobs), tmp_path / "run", resume=True)
    assert [line["loss"] for line in RunDirectory(tmp_path / "run").read_metrics()] == whole
    ids = torch.tensor([[5, 6, 7, 8]])
    outputs = []
    for name in ("whole", "run"):
        page, parts = open_run(tmp_path / name)
        assert page.model.quantization == bits
        assert len(quantised_layers(parts.model)) == 14
        outputs.append(parts.model.eval()(input_ids=ids).logits)
    assert outputs[0].equal(outputs[1])


@pytest.mark.parametrize("bits", BITS)
def test_a_llavas_tower_and_projector_stay_as_they_are(bits, recipe, llava):
    page = recipe(
        {
            "model": {"language_model": str(llava), "dtype": "float32", "quantization": bits},
            "data.max_length": 512,
            "data.row_length": 1024,
        }
    )
    parts = assemble(page)
    layers = quantised_layers(parts.base)
    assert len(layers) == 14
    assert all(".language_model." in name for name in layers)
    model = attach_tuner(parts.base, LoraSection(rank=2)).train()
    data = load_training_data(page.data, parts.encoder, seed=0)
    run = RunDirectory(Path(str(page.data.train[0].path) + "-run"))
    trainer = build_trainer(page, run, parts.with_model(model), data, lambda *_: None)
    _, found = step(model, next(iter(trainer.get_train_dataloader())))
    assert any("multi_modal_projector" in name and grad.any() for name, grad in found.items())


@pytest.mark.parametrize("bits", BITS)
def test_an_engine_leaves_a_quantised_model_as_it_was(recipe, language, bits):
    """bitsandbytes packs and moves weights at their first use: the copy must not empty them."""
    from varifocal.data.example import Example, Message
    from varifocal.serving.engine import Engine, Sampling

    page = recipe({"model.language_model": language, "model.quantization": bits})
    parts = assemble(page)
    model = attach_tuner(parts.base, LoraSection(rank=2)).eval()
    awaken(model)
    asked = (Message("user", ("Hm",)),)
    encoded = parts.encoder.encode(Example(asked), with_answer=False)
    ids = torch.from_numpy(encoded.input_ids).long()[None]
    engine = Engine(model, parts.encoder)
    first = engine.answer(asked, Sampling(6))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
    assert engine.answer(asked, Sampling(6)) == first
    engine.close()
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, wanted)
