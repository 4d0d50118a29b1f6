"""A GPU for machines without one: its tensors say they are elsewhere, and compute on the CPU.

What CUDA refuses is refused: a computation over tensors of both places, and a tensor of the GPU as
a numpy array. So a whole verb can be run "on a GPU", and has to give the CPU's very numbers.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_any, tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretend"
CROSSES = {"copy_", "_to_copy"}
"""Operations that go from one place to the other."""
INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Operations whose index may be on the CPU."""


class OnGPU(torch.Tensor):
    """A tensor that says it is on the GPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
            requires_grad=inner.requires_grad,
        )
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})

    def numpy(self, *args, **kwargs):
        raise TypeError("can't convert a tensor of the GPU to numpy")

    __array__ = numpy

    def tolist(self):
        return self.inner.tolist()

    def __repr__(self, **_):
        return f"OnGPU({self.inner!r})"


class _Factories(TorchDispatchMode):
    """Makes new tensors on the GPU where they are asked for there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class _FromLists(TorchFunctionMode):
    """Makes tensors of lists on the CPU first, and moves them: no dispatch mode sees that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        goal = kwargs.get("device")
        if func not in (torch.tensor, torch.as_tensor) or goal is None:
            return func(*args, **kwargs)
        return func(*args, **{**kwargs, "device": "cpu"}).to(goal)


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operation on the CPU, and put its result where it belongs."""
    name = func.overloadpacket.__name__
    given = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    here = any(isinstance(one, OnGPU) for one in given)
    elsewhere = [one for one in given if not isinstance(one, OnGPU) and one.dim()]
    if here and elsewhere and name not in CROSSES and not _is_index(name, args):
        raise RuntimeError(f"{func}: expected all tensors on one device, found both")
    goal = kwargs.get("device")
    if goal is not None:
        here = torch.device(goal).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu") if here else goal}
    if name == "copy_":
        here = isinstance(args[0], OnGPU)
    found = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if not here:
        return found
    if func._schema.is_mutable:  # it was done to the first argument
        return args[0]
    return tree_map(lambda one: OnGPU(one) if isinstance(one, torch.Tensor) else one, found)


def _is_index(name: str, args: Any) -> bool:
    return name in INDEXES and isinstance(args[0], OnGPU) and not tree_any(_is_float, args[1])


def _is_float(one: Any) -> bool:
    return isinstance(one, torch.Tensor) and one.is_floating_point()


def _inner(one: Any) -> Any:
    return one.inner if isinstance(one, OnGPU) else one


@contextmanager
def pretend_gpu() -> Iterator[None]:
    """Let every model that is opened go to the GPU; nothing in this process takes that back.

    Enter it before anything of varifocal's is imported.
    """
    _setup_privateuseone_for_python_backend(NAME)
    torch.pretend.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch.inference_mode = lambda: torch.no_grad()  # a wrapper has no views there
    run_thread = threading.Thread.run

    def run_with_modes(self: threading.Thread) -> None:
        with _Factories(), _FromLists():  # a mode is one thread's
            run_thread(self)

    threading.Thread.run = run_with_modes
    from varifocal.models import distributed

    distributed.own_device = lambda: torch.device(NAME, 0)
    with _Factories(), _FromLists():
        yield
