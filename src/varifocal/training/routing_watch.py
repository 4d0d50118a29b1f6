"""How a MixLoRA's routers spread the load, logged beside the loss: a collapse is seen early."""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import fmean

from peft import PeftModel
from torch import nn

from varifocal.tuners import MixLoraConfig, factor_load, record_routing
from varifocal.tuners.mixlora import Load, RoutingRecord


class RoutingWatch:
    """Watches the steps that are logged; of a model without MixLoRA it sees nothing.

    Args:
        model: the model that is trained.
    """

    def __init__(self, model: nn.Module) -> None:
        config = model.active_peft_config if isinstance(model, PeftModel) else None
        self.num_factors = config.num_factors if isinstance(config, MixLoraConfig) else None
        self._records: list[RoutingRecord] = []

    @contextmanager
    def step(self, model: nn.Module, watched: bool) -> Iterator[None]:
        """Record what a forward pass chooses, if this step is watched."""
        if self.num_factors is None or not watched:
            yield
            return
        with record_routing(model) as records:
            yield
        self._records = records

    def figures(self) -> dict[str, float]:
        """What the last watched step chose, over all linears and both pools.

        Returns:
            `factor_entropy` (mean; 1: all factors are used alike), `factor_top_load` (the largest
            share of any factor) and `router_sharpness` (mean; 0: no preference); {} without any.
        """
        if not self._records or self.num_factors is None:
            return {}
        by_linear = factor_load(self._records, self.num_factors)
        loads: list[Load] = [load for pools in by_linear.values() for load in pools]
        sharpness = [load.sharpness for load in loads if load.sharpness is not None]
        return {
            "factor_entropy": fmean(load.entropy for load in loads),
            "factor_top_load": max(float(load.shares.max()) for load in loads),
            **({"router_sharpness": fmean(sharpness)} if sharpness else {}),
        }
