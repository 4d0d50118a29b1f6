"""Operations on meta tensors that are run once a shape return what they return every time."""

from contextlib import ExitStack

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from varifocal.models.shape_cache import ShapeCache


class Log(TorchDispatchMode):
    """Notes the operations that come through, and what they return."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.results = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func))
        self.results.append([form(each) for each in torch.utils._pytree.tree_leaves(result)])
        return result


def form(value):
    if not isinstance(value, Tensor):
        return value
    storage = value.untyped_storage().nbytes()
    return value.shape, value.stride(), value.dtype, value.device, value.storage_offset(), storage


def step(dtype, *modes):
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=6,
        num_attention_heads=2,
        dtype=dtype,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    ids = torch.zeros(2, 8, dtype=torch.long, device="meta")
    with ExitStack() as stack:
        for mode in modes:
            stack.enter_context(mode)
        model(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_has_the_same_results_and_runs_a_layer_once(dtype):
    plain, cached, run = Log(), Log(), Log()
    step(dtype, plain)
    step(dtype, run, ShapeCache(), cached)
    assert cached.names == plain.names
    assert cached.results == plain.results
    computed = [name for name in run.names if "mm" in name]
    assert 0 < len(computed) < sum("mm" in name for name in plain.names) / 3


def test_numbers_of_other_kinds_are_other_arguments():
    whole = torch.ones(3, dtype=torch.long, device="meta")
    with ShapeCache():
        assert [(whole * number).dtype for number in (1, 1.0, 1)] == [
            torch.long,
            torch.float32,
            torch.long,
        ]


def test_results_are_new_tensors_and_views_are_views():
    given = torch.ones(4, 6, device="meta")
    with ShapeCache():
        first, second = given.exp(), given.exp()
        assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
        for _ in range(2):
            for view in (given.t(), given[1:], torch.ops.aten._unsafe_view(given, [24])):
                assert view.untyped_storage()._cdata == given.untyped_storage()._cdata
            assert given.add_(1) is given


def test_real_tensors_are_computed():
    with ShapeCache():
        sums = [float(torch.full((2,), number).sum()) for number in (1.0, 2.0)]
    assert sums == [2.0, 4.0]


def test_several_results_come_as_they_came():
    given = torch.ones(2, 8, device="meta")
    with ShapeCache():
        for _ in range(2):
            values, places = given.topk(3)
            assert (values.dtype, places.dtype, values.shape) == (torch.float32, torch.long, (2, 3))
