"""Parameter-efficient methods as PEFT plugins; imports nothing else of Varifocal.

Importing it registers `MMAConfig` and `MixLoraConfig` with PEFT.
"""

from .mixlora import (
    Load,
    MixLoraConfig,
    MixLoraLayer,
    MixLoraModel,
    RoutedLora,
    RoutingRecord,
    balance_loss,
    factor_load,
    record_routing,
    route,
    save_routed,
)
from .mma import MMAConfig, MMALayer, MMAModel, routing_table

__all__ = [
    "Load",
    "MMAConfig",
    "MMALayer",
    "MMAModel",
    "MixLoraConfig",
    "MixLoraLayer",
    "MixLoraModel",
    "RoutedLora",
    "RoutingRecord",
    "balance_loss",
    "factor_load",
    "record_routing",
    "route",
    "routing_table",
    "save_routed",
]
