"""Shapes of results on the meta device, computed once.

torch computes what an operation on meta tensors returns in Python, at a quarter of a millisecond an
operation; a model repeats the same few hundred operations in every layer.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_PLAIN = (
    *(bool, int, float, str, type(None)),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)


_Form = tuple[torch.Size, tuple[int, ...], torch.dtype]


class ShapeCache(TorchDispatchMode):
    """Run each operation on meta tensors once for its arguments' shapes.

    An operation that was run with such arguments returns new tensors of the shapes, strides and
    number formats that it returned then. What writes into an argument, returns a view of one, or
    has a real tensor among its arguments runs every time.
    """

    def __init__(self) -> None:
        super().__init__()
        self._results: dict[Hashable, _Results | None] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operation; see `run`."""
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation, or repeat the shapes that it returned.

        Args:
            func: an overload of an operator of torch.
            args: its positional arguments.
            kwargs: its named ones.
        """
        tensors: list[Tensor] = []
        key = None if func._schema.is_mutable or func.is_view else _key((args, kwargs), tensors)
        if key is None or not tensors:
            return func(*args, **kwargs)
        key = (func, key)
        if (results := self._results.get(key)) is not None:
            return results.again()
        result = func(*args, **kwargs)
        if key not in self._results:
            self._results[key] = _Results.of(result, tensors)
        return result


class _Results:
    """What an operation returned, as shapes.

    Attributes:
        kind: tuple or list; None for a tensor.
        forms: shape, strides and number format of each tensor, or None where there was none.
    """

    def __init__(self, kind: type | None, forms: list[_Form | None]) -> None:
        self.kind = kind
        self.forms = forms

    @classmethod
    def of(cls, result: Any, tensors: list[Tensor]) -> _Results | None:
        """Note a result; None for one that cannot be repeated from its shapes.

        Args:
            result: of an operation.
            tensors: the operation's arguments.
        """
        kind = type(result) if type(result) in (tuple, list) else None
        storages = {tensor.untyped_storage()._cdata for tensor in tensors}
        forms: list[_Form | None] = []
        for each in (result,) if kind is None else result:
            if each is None:
                forms.append(None)
                continue
            if type(each) is not Tensor or not each.is_meta:
                return None
            storage, form = each.untyped_storage(), (each.shape, each.stride(), each.dtype)
            if _new(form).untyped_storage().nbytes() != storage.nbytes():
                return None
            if storage._cdata in storages:  # a view that its operator does not declare
                return None
            storages.add(storage._cdata)
            forms.append(form)
        return cls(kind, forms)

    def again(self) -> Any:
        """Return new tensors of these shapes."""
        tensors = [None if form is None else _new(form) for form in self.forms]
        return tensors[0] if self.kind is None else self.kind(tensors)


def _new(form: _Form) -> Tensor:
    shape, strides, dtype = form
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def _key(value: Any, tensors: list[Tensor]) -> Hashable | None:
    """Return what arguments' results depend on; None for arguments that are not only shapes.

    Args:
        value: arguments.
        tensors: the tensors among them are added to it.
    """
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        if not value.is_meta or value.dtype.is_complex:
            return None
        tensors.append(value)
        return (value.shape, value.stride(), value.dtype, value.storage_offset())
    if kind in _PLAIN:
        return (kind, value)  # for 1, 1.0 and True are the same key, and have not the same results
    if kind is dict:
        value = tuple(value.items())
    elif kind is not tuple and kind is not list:
        return None
    keys = tuple(_key(each, tensors) for each in value)
    return None if None in keys else (kind, keys)
