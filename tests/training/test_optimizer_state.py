"""What `plan` counts of an optimiser's state is what the optimiser allocates in its first step."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from varifocal.planning.memory import state_bytes, sum_of_states
from varifocal.recipe import load_recipe
from varifocal.recipe.optimizers import OPTIMIZERS, missing_package

SHAPES = ((), (7,), (3, 256), (63, 65), (64, 64), (100, 100), (3, 4, 5, 128))
PAGED = [name for name in OPTIMIZERS if name.startswith("paged_")]  # need a GPU
HERE = [name for name in OPTIMIZERS if name not in PAGED and not missing_package(name)]
ARGUMENTS = {
    "sgd": ["momentum=0.9", "momentum=0"],
    "rmsprop": ["momentum=0.9", "centered=true", "momentum=0.5, centered=True", "centered=false"],
}


def held(state):
    """The bytes of a parameter's tensors, but for its count of steps and what all share."""
    return sum(
        each.numel() * each.element_size()
        for name, each in state.items()
        if isinstance(each, torch.Tensor) and name not in ("step", "RMS", "qmap1", "qmap2")
    )


def stepped(name, arguments, parameters, folder):
    args = TrainingArguments(folder, optim=name, optim_args=arguments or None, use_cpu=True)
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer = kind(parameters, **settings)
    for each in parameters:
        each.grad = torch.randn(each.shape).to(each.dtype)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [(name, arguments) for name in HERE for arguments in ["", *ARGUMENTS.get(name, [])]],
)
def test_an_optimiser_holds_what_is_counted(name, arguments, dtype, tmp_path):
    parameters = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    optimizer = stepped(name, arguments, parameters, tmp_path)
    for each in parameters:
        counted = state_bytes(each.shape, each.element_size(), name, arguments)
        assert counted == held(optimizer.state[each]), tuple(each.shape)


@pytest.mark.parametrize("name", PAGED)
def test_a_paged_state_is_as_large_as_another(name):
    plain = name.removeprefix("paged_")
    twin = plain if plain in OPTIMIZERS else {"adamw_32bit": "adamw_torch"}.get(plain, "ademamix")
    for shape in map(torch.Size, SHAPES):
        assert state_bytes(shape, 4, name) == state_bytes(shape, 4, twin)


# Bytes of the state's tensors after a first step, for each of SHAPES but the first. Measured with
# torchao 0.18.0 and torch-optimi 0.3.3, without steps' counts and optimi's `eps_sq`, one number.
MEASURED = {
    ("adamw_torch_4bit", 4): (56, 6_144, 32_760, 4_352, 80_000, 8_048),
    ("adamw_torch_4bit", 2): (28, 3_072, 16_380, 4_352, 40_000, 8_048),
    ("adamw_torch_8bit", 4): (56, 6_144, 32_760, 10_368, 80_000, 17_648),
    ("adamw_torch_8bit", 2): (28, 3_072, 16_380, 10_368, 40_000, 17_648),
    ("stable_adamw", 4): (56, 6_144, 32_760, 32_768, 80_000, 61_440),
    ("stable_adamw", 2): (42, 4_608, 24_570, 24_576, 60_000, 46_080),
}


@pytest.mark.parametrize(("name", "element_size"), MEASURED)
def test_optimisers_of_other_packages_hold_what_was_measured(name, element_size):
    """torchao's and torch-optimi's, which are not among the packages that tests need."""
    found = [state_bytes(torch.Size(shape), element_size, name) for shape in SHAPES[1:]]
    assert found == list(MEASURED[name, element_size])


def test_every_optimiser_is_compared_or_measured():
    packages = {OPTIMIZERS[name].package for name, _ in MEASURED}
    assert {OPTIMIZERS[name].package for name in OPTIMIZERS} - packages <= {"torch", "bitsandbytes"}


class _Table(nn.Module):
    """An embedding and a linear, both large enough for 8 bits; a small table, a frozen linear."""

    def __init__(self):
        super().__init__()
        self.embed, self.linear = nn.Embedding(128, 64), nn.Linear(64, 128, bias=False)
        self.small, self.frozen = nn.Embedding(4, 8), nn.Linear(64, 64)


@pytest.mark.parametrize("asked", ["adamw_8bit", "lion_8bit", "lion_32bit", "sgd momentum=0.9"])
def test_the_sum_is_of_trained_parameters_and_of_embeddings_in_float32(asked, tmp_path):
    name, _, arguments = asked.partition(" ")
    model = _Table()
    model.frozen.requires_grad_(False)
    args = TrainingArguments(tmp_path, optim=name, optim_args=arguments or None, use_cpu=True)
    optimizer = Trainer(model, args).create_optimizer()
    trained = [each for each in model.parameters() if each.requires_grad]
    for each in trained:
        each.grad = torch.randn(each.shape)
    optimizer.step()
    settings = [f"training.optim={name}", f"training.optim_args={arguments or 'null'}"]
    recipe = load_recipe("demo", settings, check_paths=False)
    assert sum_of_states(model, recipe.training) == sum(held(optimizer.state[p]) for p in trained)
    in_8_bits = held(optimizer.state[model.linear.weight])
    assert (held(optimizer.state[model.embed.weight]) > in_8_bits) == ("8bit" in name)
