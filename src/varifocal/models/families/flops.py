"""Operations of an image, and of the matrix products in any module, by a formula over shapes.

`varifocal.training.flops` holds the formula of a whole step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

# PEFT's frozen copy of a module that it trains whole, and what runs once a prompt.
_APART = (".original_module.", ".mixlora_router.")


@dataclass(frozen=True)
class ImageFlops:
    """Operations of one image.

    Attributes:
        tower: the vision tower's forward pass.
        connector: the connector's forward pass.
        backward_from_pixels: the backward pass through both, when the tower ran in the step.
        backward_from_features: the connector's backward pass, when the features were looked up.
        trains: whether an image's tokens need a gradient.
    """

    tower: int = 0
    connector: int = 0
    backward_from_pixels: int = 0
    backward_from_features: int = 0
    trains: bool = False


@runtime_checkable
class CountsItself(Protocol):
    """A layer whose products are not those its weights show (MMA's, a router of experts)."""

    def matrix_products(self) -> Iterator[tuple[int, bool]]:
        """Yield the multiply-adds a token of each product, and whether its weight is trained."""
        ...


def matrix_products(root: nn.Module) -> Iterator[tuple[int, bool]]:
    """Yield the multiply-adds a token of each matrix product, and whether its weight is trained."""
    inside: list[str] = []
    for name, module in root.named_modules():
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if isinstance(module, CountsItself):
            inside.append(f"{name}.")
            yield from module.matrix_products()
        elif any(part in f".{name}." for part in _APART):
            continue
        elif isinstance(module, nn.Linear):
            yield module.in_features * module.out_features, is_trained(module)
        elif not isinstance(module, nn.Embedding):
            own = module.parameters(recurse=False)
            yield from ((each.numel(), each.requires_grad) for each in own if each.dim() > 1)


def is_trained(module: nn.Module) -> bool:
    """Tell whether any weight of a module is trained."""
    return any(parameter.requires_grad for parameter in module.parameters())


def sum_products(*modules: nn.Module) -> tuple[int, int]:
    """Sum the multiply-adds a token of all products in modules, and of the trained ones."""
    products = [product for module in modules for product in matrix_products(module)]
    return (
        sum(count for count, _ in products),
        sum(count for count, trained in products if trained),
    )
