"""Conditional Mixture-of-LoRA (arXiv 2402.15896) as a PEFT method.

Importing it registers `MixLoraConfig` with PEFT.
"""

from ..plugin import register
from .config import MixLoraConfig
from .layer import MixLoraLayer
from .model import MixLoraModel, balance_loss
from .record import Load, RoutingRecord, factor_load, record_routing
from .routed import RoutedLora, route, save_routed

register("mixlora", MixLoraConfig, MixLoraModel)

__all__ = [
    "Load",
    "MixLoraConfig",
    "MixLoraLayer",
    "MixLoraModel",
    "RoutedLora",
    "RoutingRecord",
    "balance_loss",
    "factor_load",
    "record_routing",
    "route",
    "save_routed",
]
