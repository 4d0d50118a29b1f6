"""What makes a step cheaper changes no loss, and what is frozen costs no gradient."""

from pathlib import Path

import pytest
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaMLP

from varifocal.assemble import assemble
from varifocal.models.preprocessing import pixel_loader
from varifocal.run import RunDirectory
from varifocal.training.examples import load_training_data
from varifocal.training.train import build_trainer, run_training
from varifocal.training.tuner import attach_tuner

TUNERS = [
    {"type": "mma", "router_temperature": 1.0},
    {"type": "mixlora", "rank": 2},
    {"type": "lora", "rank": 2},
]


@pytest.fixture
def calls(monkeypatch):
    """Count calls: `calls(owner, name)` gives a list that grows by one with each."""

    def count(owner, name):
        seen, plain = [], getattr(owner, name)

        def counted(*args, **kwargs):
            seen.append(name)
            return plain(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
        return seen

    return count


@pytest.fixture
def losses(recipe, tmp_path):
    """The losses of a run with some knobs."""

    def run(name, knobs, steps=3):
        run_training(recipe({"training.max_steps": steps, **knobs}), tmp_path / name)
        return [line["loss"] for line in RunDirectory(tmp_path / name).read_metrics()]

    return run


def test_the_attention_code_changes_no_loss(losses, calls):
    fused = calls(F, "scaled_dot_product_attention")  # segments: in MMA's routing alone
    found = {}
    for name in ("eager", "sdpa", "segments"):
        found[name] = losses(name, {"model.attn_implementation": name})
        assert bool(fused) == (name != "eager")
        fused.clear()
    assert found["sdpa"] == pytest.approx(found["eager"], rel=1e-5)
    assert found["segments"] == pytest.approx(found["eager"], rel=1e-5)


@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: tuner["type"])
def test_gradient_checkpointing_changes_no_loss(tuner, losses, calls):
    through = calls(LlamaMLP, "forward")
    plain = losses("plain", {"tuner": tuner})
    once = len(through)
    again = losses("again", {"tuner": tuner, "training.gradient_checkpointing": True})
    assert len(through) - once > once  # MMA's two modality tokens are not run again
    assert again == pytest.approx(plain, rel=1e-6)


@pytest.mark.slow
# Both are of torch 2.13's own compiler: one when it is imported, one while it looks at a tensor.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: tuner["type"])
def test_compiled_layers_change_no_loss(losses, tuner):
    still = {"tuner": {**tuner, "dropout": 0.0}}  # a compiled layer draws other masks
    plain = losses("plain", still)
    compiled = losses("compiled", {**still, "training.compile_layers": True})
    assert compiled == pytest.approx(plain, rel=1e-4)


def trainer_of(page):
    parts = assemble(page)
    model = attach_tuner(parts.base, page.tuner)
    data = load_training_data(page.data, parts.encoder, seed=0)
    run = RunDirectory(Path(str(page.data.train[0].path) + "-run"))
    return build_trainer(page, run, parts.with_model(model), data, lambda *_: None)


@pytest.mark.parametrize("tuner", TUNERS, ids=lambda tuner: tuner["type"])
def test_a_step_leaves_no_gradient_on_what_is_frozen(tuner, recipe):
    trainer = trainer_of(recipe({"tuner": tuner}))
    model = trainer.model
    trainer.compute_loss(model.train(), next(iter(trainer.get_train_dataloader()))).backward()
    held = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert held
    assert held <= trained


LAST_LAYER = {
    "type": "lora",
    "rank": 2,
    "dropout": 0.0,
    "target_modules": ["layers.1.mlp.down_proj"],
    "train_connector": False,
}


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointed"])
def test_no_graph_is_built_below_the_first_trained_layer(checkpointing, recipe):
    knobs = {"tuner": LAST_LAYER, "training.gradient_checkpointing": checkpointing}
    outputs, saved = watched(recipe(knobs))
    layers = [name for name in outputs if name.endswith(("layers.0", "layers.1"))]
    graph = {name.rpartition(".")[2]: outputs[name] for name in layers if "language" in name}
    assert graph == {"0": False, "1": True}
    assert saved["language_model.model.layers.0"] == 0
    assert saved["language_model.model.layers.1"] > 0
    assert not any(outputs[name] for name in outputs if "vision_tower" in name)


def test_no_graph_is_built_through_a_frozen_tower(recipe, monkeypatch):
    """A LoRA on the language model, and a trained connector that reads the tower's states."""

    def pixels(base, processor, fingerprint):
        return None, pixel_loader(processor, base.vision_tower.model.dtype)

    # through the tower, not by its table
    monkeypatch.setattr("varifocal.assemble._image_loader", pixels)
    outputs, saved = watched(recipe({"tuner": {"type": "lora", "rank": 2}}))
    seen = [name for name in outputs if name.startswith("vision_tower")]
    assert len(seen) > 4
    assert not any(outputs[name] or saved[name] for name in seen)
    assert outputs["connector"]


def watched(page):
    """Whether each module's output has a graph, and how many tensors it kept for it, in a step."""
    trainer = trainer_of(page)
    model = trainer.model
    base = model.get_base_model()
    outputs, saved, inside = {}, {}, []

    def keep(tensor):
        for name in inside:
            saved[name] += 1
        return tensor

    def enter(name):
        def hook(module, args):
            inside.append(name)
            saved.setdefault(name, 0)

        return hook

    def leave(name):
        def hook(module, args, output):
            inside.remove(name)
            first = output[0] if isinstance(output, tuple) else output
            outputs[name] = bool(getattr(first, "requires_grad", False))

        return hook

    for name, module in base.named_modules():
        if name:
            module.register_forward_pre_hook(enter(name))
            module.register_forward_hook(leave(name))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        trainer.compute_loss(model.train(), next(iter(trainer.get_train_dataloader()))).backward()
    return outputs, saved
