"""Interference: against steps really taken, against plain loops, and worked by hand."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from varifocal.analysis.gradients import AdapterGradient
from varifocal.analysis.interference import ALL, measure_interference
from varifocal.data.encoding.encoder import Encoded

NO_BLOCKS: dict[str, slice] = {}


def sample(ids, prompt):
    mask = np.arange(len(ids)) < prompt
    return Encoded(np.array(ids, np.int32), mask)


def three_tasks():
    random = np.random.default_rng(3)
    return {
        name: [sample(random.integers(3, 40, 9), prompt=4 + size % 2) for size in range(count)]
        for name, count in (("a", 3), ("b", 2), ("c", 4))
    }


def plain_loss(model, one):
    logits = model(input_ids=torch.tensor([one.input_ids.tolist()])).logits[0, :-1]
    targets = torch.tensor(one.labels[1:].tolist())
    return F.cross_entropy(logits, targets, ignore_index=-100)


def stepped_losses(model, parameters, step_on, tasks, length=1e-4):
    """How fast the mean loss of each task falls along the unit gradient of one example."""
    gradient = torch.autograd.grad(plain_loss(model, step_on), parameters)
    norm = sum(float((g**2).sum()) for g in gradient) ** 0.5
    losses = []
    for sign in (1, -2, 1):  # forth, back past the start, home
        with torch.no_grad():
            for parameter, g in zip(parameters, gradient, strict=True):
                parameter += sign * length * g / norm
            losses.append(
                {
                    name: sum(float(plain_loss(model, x)) for x in own) / len(own)
                    for name, own in tasks.items()
                }
            )
    forth, back, _ = losses
    return {name: (forth[name] - back[name]) / (2 * length) for name in tasks}


@pytest.mark.parametrize("block", [ALL, "layer 1"])
def test_interference_is_what_a_tiny_step_does(gpt2, block):
    tasks = three_tasks()
    gradient = AdapterGradient(gpt2)
    found = measure_interference(tasks, gradient, gradient.blocks).matrices[block]
    trained = [
        parameter
        for name, parameter in gpt2.named_parameters()
        if "lora_" in name and (block == ALL or ".h.1." in name)
    ]
    effect = {}
    for step, own in tasks.items():
        each = [stepped_losses(gpt2, trained, x, tasks) for x in own]
        for loss in tasks:
            effect[loss, step] = sum(one[loss] for one in each) / len(each)
    expected = [[effect[i, j] / effect[i, i] for j in tasks] for i in tasks]
    assert torch.allclose(found.interference, torch.tensor(expected).double(), rtol=1e-5, atol=1e-7)
    effects = torch.tensor([[effect[i, j] for j in tasks] for i in tasks])
    assert torch.allclose(found.effects.total, effects.double(), rtol=1e-5, atol=1e-8)


def vectors():
    """Gradients [12] of three tasks, the last four numbers of one all zero."""
    random = torch.Generator().manual_seed(0)
    drawn = {
        name: [torch.randn(12, generator=random, dtype=torch.float64) for _ in range(count)]
        for name, count in (("a", 5), ("b", 3), ("c", 4))
    }
    for vector in drawn["c"]:
        vector[8:] = 0
    return drawn


BLOCKS = {"one": slice(0, 8), "two": slice(8, 12)}


@pytest.mark.parametrize("estimator", ["ratio_of_means", "mean_of_ratios"])
def test_running_sums_equal_all_at_once(estimator):
    drawn = vectors()
    found = measure_interference(drawn, lambda vector: vector, BLOCKS, estimator=estimator)
    for name, place in {ALL: slice(0, 12), "one": BLOCKS["one"]}.items():
        for i, losses in enumerate(drawn.values()):
            for j, steps in enumerate(drawn.values()):

                def effect(x, others, place=place):
                    own = [float(y[place] @ x[place] / y[place].norm()) for y in others]
                    return sum(own) / len(own)

                each = [(effect(x, steps), effect(x, losses)) for x in losses]
                if estimator == "ratio_of_means":
                    expected = sum(top for top, _ in each) / sum(below for _, below in each)
                else:
                    expected = sum(top / below for top, below in each) / len(each)
                cell = float(found.matrices[name].interference[i, j])
                assert cell == pytest.approx(expected, rel=1e-10), (name, i, j)


@pytest.mark.parametrize("estimator", ["ratio_of_means", "mean_of_ratios"])
def test_the_diagonal_is_one(gpt2, estimator):
    gradient = AdapterGradient(gpt2)
    found = measure_interference(three_tasks(), gradient, gradient.blocks, estimator=estimator)
    assert set(found.matrices) == {ALL, "layer 0", "layer 1"}
    for matrix in found.matrices.values():
        assert matrix.interference.diagonal().tolist() == pytest.approx([1, 1, 1], abs=1e-12)


def test_two_names_of_one_task_help_each_other_like_themselves(gpt2):
    tasks = three_tasks()
    gradient = AdapterGradient(gpt2)
    found = measure_interference({"a": tasks["c"], "b": tasks["c"]}, gradient, gradient.blocks)
    for matrix in found.matrices.values():
        assert matrix.interference.flatten().tolist() == pytest.approx([1] * 4, abs=1e-12)
        assert matrix.num_negative == 0


def test_opposite_answers_to_the_same_questions_conflict(gpt2):
    questions = [[5, 6, 7], [5, 8, 7], [5, 9, 7], [5, 11, 7]]
    tasks = {
        str(answer): [sample([*ids, answer], prompt=3) for ids in questions] for answer in (20, 30)
    }
    gradient = AdapterGradient(gpt2)
    # A model that knows no other answer: what one task wins, the other must lose.
    trained = [parameter for parameter in gpt2.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=0.03)
    for _ in range(40):
        optimiser.zero_grad()
        sum(plain_loss(gpt2, one) for own in tasks.values() for one in own).backward()
        optimiser.step()
    matrix = measure_interference(tasks, gradient, gradient.blocks).matrices[ALL]
    assert matrix.interference[0, 1] < 0
    assert matrix.interference[1, 0] < 0
    assert matrix.num_surely_negative == matrix.num_negative == matrix.num_pairs == 2
    assert matrix.negative_share == 1


def test_worked_by_hand():
    def vector(x, y):
        return torch.tensor([x, y], dtype=torch.float64)

    tasks = {
        "right": [vector(2, 0), vector(2, 0)],
        "left": [vector(-1, 0), vector(-1, 0)],
        "slope": [vector(3, 4), vector(3, 4)],
        "corner": [vector(1, 0), vector(0, 1)],
    }
    found = measure_interference(tasks, lambda one: one, NO_BLOCKS).matrices[ALL]
    # u: (1, 0), (-1, 0), (.6, .8), (.5, .5); m: (2, 0), (-1, 0), (3, 4), (.5, .5)
    expected = [
        [1, -1, 0.6, 0.5],
        [-1, 1, -0.6, -0.5],
        [0.6, -0.6, 1, 0.7],
        [1, -1, 1.4, 1],
    ]
    assert torch.allclose(found.interference, torch.tensor(expected).double())
    # Of corner's own effect .5, all is each example's on itself.
    assert found.effects.carried_over.tolist() == pytest.approx([1, 1, 1, 0])
    # Half of corner says (1, 0), half (0, 1): only the first half knows right.
    assert found.sure[3].tolist() == [False, False, True, True]
    assert (found.num_pairs, found.num_negative, found.num_surely_negative) == (12, 6, 4)


def test_carried_over_is_the_mean_over_pairs_of_different_examples():
    drawn = vectors()
    found = measure_interference(drawn, lambda vector: vector, NO_BLOCKS).matrices[ALL]
    for i, own in enumerate(drawn.values()):
        pairs = [
            float(x @ y / y.norm()) for m, x in enumerate(own) for n, y in enumerate(own) if m != n
        ]
        expected = sum(pairs) / len(pairs) / float(found.effects.total[i, i])
        assert float(found.effects.carried_over[i]) == pytest.approx(expected, rel=1e-10)


def test_vague_tasks_are_named():
    around = [torch.tensor(v) for v in ([1.0, 0], [0, 1.0], [-1.0, 0], [0, -1.0], [1.0, 0])]
    tasks = {"vague": around, "clear": [torch.tensor([1.0, 1.0])] * 4}
    assert measure_interference(tasks, lambda vector: vector, NO_BLOCKS).vague == ["vague"]


def test_a_task_that_a_step_on_itself_harms_has_no_numbers():
    tasks = {
        "split": [torch.tensor([x, 0.1]) for x in (1.0, 1.0, 1.0, -9.0)],
        "clear": [torch.tensor([1.0, 1.0])] * 4,
    }
    found = measure_interference(tasks, lambda vector: vector, NO_BLOCKS)
    assert float(found.matrices[ALL].effects.total[0, 0]) < 0
    assert found.matrices[ALL].interference[0].isnan().all()
    assert (found.undefined, found.vague) == (["split"], [])
    assert found.pairs() == [(pytest.approx(0.4057, abs=1e-4), "clear", "split", True)]


def test_a_block_without_gradient_is_undefined_and_null_in_json():
    found = measure_interference(vectors(), lambda vector: vector, BLOCKS)
    page = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert page["layers"]["two"]["interference"][2] == [None] * 3
    assert page["layers"]["two"]["carried_over"][2] is None
    assert page["layers"]["two"]["pairs"] == 4
    assert page["layers"]["two"]["trained_parameters"] == 4
    assert set(page["layers"]["one"]) == set(page["all"])


def test_every_gradient_is_told_of():
    told = []
    drawn = vectors()
    measure_interference(drawn, lambda v: v, NO_BLOCKS, progress=lambda *at: told.append(at))
    assert told == [(done, 12) for done in range(1, 13)]


def test_a_task_needs_two_examples():
    with pytest.raises(ValueError, match="task 'a' has 1 samples"):
        measure_interference({"a": [torch.ones(2)]}, lambda v: v, NO_BLOCKS)
