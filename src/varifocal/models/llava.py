"""transformers' own LLaVA models: where their parts are, and what a recipe needs to know of them.

A LLaVA is a language model, a vision tower and a projector, as a grafted model is, and takes as
many tokens for every picture. It is used as it is: no class of its own, no changed forward.
"""

from torch import nn

from varifocal.models.grafted import GraftedForConditionalGeneration

PROJECTOR = "multi_modal_projector"
"""What transformers calls the connector of the LLaVA family."""


def connector_name(model: nn.Module) -> str | None:
    """Return the dotted name of what stands between a model's tower and its language model.

    Args:
        model: a model of transformers without any PEFT wrapper.

    Returns:
        "connector" for a graft, the projector's name for a LLaVA
        ("model.multi_modal_projector"), None for a model that has neither.
    """
    if isinstance(model, GraftedForConditionalGeneration):
        return "connector"
    names = (name for name, _ in model.named_modules() if name.rpartition(".")[2] == PROJECTOR)
    return next(names, None)
