"""Keys that a recipe had in an earlier version: refused with the new one, or read from old runs."""

from __future__ import annotations

from typing import Any

from varifocal.errors import RecipeError

_ALIGNMENT = ("steps", "batch_size", "learning_rate", "scale")
_SECTION = "alignment, a section of its own, such as alignment: {type: words, steps: 2500}"
_FORMER = {
    "model.picture_side": "model.image_side",
    "model.connector.plain": "model.connector.type, mlp2x_gelu for LLaVA's projector",
    "model.connector.alignment": _SECTION,
    **{f"model.connector.alignment_{key}": f"alignment.{key}" for key in _ALIGNMENT},
}
_PLACES = ("path", "hub", "subset", "field")
_OF_PATCH_MLP = ("num_tokens", "num_global_tokens")


def refuse_former_keys(page: dict[str, Any]) -> None:
    """Refuse keys that have another name now.

    Raises:
        RecipeError: one sentence a line, each with the new key.
    """
    found = [f"{old}: the key is now {new}" for old, new in _FORMER.items() if _holds(page, old)]
    if found:
        raise RecipeError("\n".join(found))


def _holds(page: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(page, dict) or part not in page:
            return False
        page = page[part]
    return True


def read_former_keys(page: dict[str, Any]) -> None:
    """Bring the recipe that a run of an earlier version wrote into today's keys, in place."""
    for side in ("train", "captions", "evaluate"):
        for source in page.get("data", {}).get(side, ()):
            for key in _PLACES:
                if source.get(key, key) is None:
                    del source[key]
    model = page["model"]
    if "picture_side" in model:
        model["image_side"] = model.pop("picture_side")
    connector = model.get("connector")
    if not connector or "alignment" not in connector:
        return
    kind = connector.pop("alignment")
    options = {key: connector.pop(f"alignment_{key}") for key in _ALIGNMENT}
    page["alignment"] = None if kind is None else {"type": kind, **options}
    if connector.pop("plain", False):
        connector["type"] = "mlp2x_gelu"
        del connector["hidden_dim"]
    if connector["type"] != "patch_mlp":
        for key in _OF_PATCH_MLP:
            del connector[key]
