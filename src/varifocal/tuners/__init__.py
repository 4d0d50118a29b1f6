"""Parameter-efficient methods as PEFT plugins; imports nothing else of Varifocal.

Importing it registers `MMAConfig` with PEFT.
"""

from .mma import MMAConfig, MMALayer, MMAModel, routing_table

__all__ = ["MMAConfig", "MMALayer", "MMAModel", "routing_table"]
