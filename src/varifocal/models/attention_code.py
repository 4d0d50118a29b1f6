"""Whether the attention code that a recipe names can be had, said before weights are loaded."""

from importlib.util import find_spec

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from varifocal.errors import ModelError, nearest

# Module and package of those that transformers takes from elsewhere; it can also take them from
# the hub with the package `kernels`.
_PACKAGES = {
    "flash_attention_2": ("flash_attn", "flash-attn"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3"),
}


def check_attention(name: str) -> None:
    """Refuse a `model.attn_implementation` that transformers does not know or cannot import.

    A name with a slash or a bar (a kernel on the hub, paged attention) is left to transformers.

    Raises:
        ModelError: names what there is, or the package to install.
    """
    if "/" in name or "|" in name:
        return
    known = sorted({"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    known = [one for one in known if "|" not in one]
    if name not in known:
        raise ModelError(
            f"model.attn_implementation: {name!r} is no attention code of transformers "
            f"({', '.join(known)}){nearest(name, known)}"
        )
    module, package = _PACKAGES.get(name, ("torch", "torch"))
    if not any(map(find_spec, (module, "kernels"))):
        raise ModelError(
            f"model.attn_implementation: {name} needs the package {package}, which is not "
            f"installed; run: pip install {package} --no-build-isolation (CUDA), or set sdpa"
        )
