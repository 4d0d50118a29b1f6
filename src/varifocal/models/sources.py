"""Read what stands next to a checkpoint's weights: its config, shapes and files."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from varifocal.errors import ModelError, VarifocalError, nearest
from varifocal.models.checkpoint_files import (
    CONFIG,
    GENERATION,
    Shapes,
    check_config_file,
    check_is_readable,
    damaged_json,
    read_object,
    read_shapes,
    weight_paths,
)
from varifocal.models.config_checks import check_against_weights
from varifocal.models.names import PACKAGED, downloaded, find_source, locate
from varifocal.run import MODEL_TYPE

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
    known = [name for name in known if "|" not in name]
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


@dataclass(frozen=True)
class Checkpoint:
    """A recipe's name of a model, resolved once.

    Attributes:
        name: as the recipe has it, for error texts.
        path: what `from_pretrained` takes, a directory or a hub id; empty where only the config is
            known.
        config: read and checked.
    """

    name: str
    path: str
    config: PreTrainedConfig

    @property
    def directory(self) -> Path:
        """Where its files are; there is none for a hub id."""
        return Path(self.path)


def find_checkpoint(name: str) -> Checkpoint:
    """Resolve a name, and read its config.

    Raises:
        ModelError: there is none, it cannot be had from here, or it cannot be that of the weights
            next to it.
    """
    place = locate(name)
    if Path(place).is_dir():
        check_is_readable(Path(place))
    if (file := Path(place) / CONFIG).is_file():
        check_config_file(file)
    if (file := Path(place) / GENERATION).is_file():
        read_object(file)  # transformers passes a damaged one over, and with it where answers end
    with clear_loading_errors(name, place):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    if config.model_type == MODEL_TYPE:
        raise ModelError(
            f"{name!r} is a run and no model: its weights are an adapter and the bases it names; "
            f"write it as a model first, with: varifocal export {name} --to model"
        )
    check_against_weights(name, config, shapes_of(name, Path(place)))
    return Checkpoint(name, place, config)


def shapes_of(name: str, place: Path) -> Shapes:
    """Return the shapes of a checkpoint's tensors where its files are near, else none.

    Raises:
        ModelError: a file of the weights is damaged or missing.
    """
    if not place.is_dir():
        return {}
    try:
        return read_shapes(place)
    except ModelError as error:
        if name not in PACKAGED:
            raise
        raise ModelError(f"{error}: delete {place}, it is made anew from its package") from error


@contextlib.contextmanager
def clear_loading_errors(name: str, path: str) -> Iterator[None]:
    """Say in one sentence why the checkpoint of a name, at a path, could not be loaded.

    Whatever a library raises over a file is the file's fault here: tokenizers raises plain
    `Exception`, config classes raise errors of their own, and constructors `AssertionError`.
    """
    refuse_pickles(name)
    try:
        yield
    except (VarifocalError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        damage = damaged_json(Path(path))
        reason = damage or _unknown(Path(path) / CONFIG, error) or " ".join(str(error).split())
        reason = reason or type(error).__name__
        raise ModelError(f"{name!r} cannot be loaded: {reason}") from error


def _unknown(file: Path, error: Exception) -> str | None:
    """Say which value of a config a library looked up in vain; its error is the bare value."""
    if not isinstance(error, KeyError) or not error.args or not file.is_file():
        return None
    value = error.args[0]
    for key, leaf in _leaves(read_object(file)):
        if leaf == value:
            return f"{CONFIG}: {key} is {value!r}, which transformers does not know"
    return None


def _leaves(page: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a config's values by their dotted keys."""
    for key, value in page.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def refuse_pickles(name: str) -> None:
    """Raise `ModelError` for a local checkpoint that has pickled weights and no others."""
    path = Path(name).expanduser()
    if name in PACKAGED or not path.is_dir() or any(path.glob("*.safetensors")):
        return
    pickles = sorted(
        file.name for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in path.glob(kind)
    )
    if pickles:
        raise ModelError(
            f"{path}: {pickles[0]} is a pickle, which can run code when it is read; Varifocal reads"
            " only safetensors: load it in a place you trust and save it with save_pretrained"
        )


def weight_files(name: str) -> list[Path]:
    """Return the files that a name's weights come from, for their fingerprint.

    For packaged weights that is the file inside the package, so that the fingerprint does not
    depend on who converted it.
    """
    if name in PACKAGED:
        return [find_source(name)]
    path = Path(name).expanduser()
    if not path.is_dir():
        path = downloaded(name) or path
    return weight_paths(path) or sorted(path.glob("*.safetensors"))
