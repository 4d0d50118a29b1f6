"""From a name in a recipe to a checkpoint: packaged weights, a local directory, or a hub id."""

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from transformers import AutoConfig, PreTrainedConfig

from varifocal.errors import ModelError, VarifocalError, nearest
from varifocal.models.checkpoint_files import (
    CONFIG,
    Shapes,
    check_config_file,
    damaged_json,
    read_shapes,
    weight_paths,
)
from varifocal.models.config_checks import check_against_weights
from varifocal.models.packaged import PACKAGED, find_source, packaged_directory

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]*")


def locate(name: str) -> str:
    """Return what `from_pretrained` is to be given for a name.

    Raises:
        ModelError: the name is neither packaged, nor a directory, nor shaped like a hub id.
    """
    if name in PACKAGED:
        return str(packaged_directory(name))
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if _HUB_ID.fullmatch(name):
        return _from_hub(name)
    raise ModelError(
        f"{name!r} is no packaged model ({', '.join(PACKAGED)}), no local directory and no hub id"
        f" (OWNER/NAME, which needs a network){nearest(name, PACKAGED)}"
    )


def _from_hub(name: str) -> str:
    """Return the id, or offline the directory it was downloaded into before.

    transformers would retry for twenty seconds, at every file, before it says that it is offline.
    """
    if hub_is_reachable():
        return name
    if downloaded := _downloaded(name):
        return str(downloaded)
    raise ModelError(
        f"{name!r} is no packaged model ({', '.join(PACKAGED)}) and no local directory; the hub"
        " cannot be reached from here, and it was not downloaded before; download it elsewhere"
        f" (hf download {name} --local-dir DIR) and name its folder in its place"
    )


def _downloaded(name: str) -> Path | None:
    """Return the directory a hub id was downloaded into, None if it was not."""
    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def hub_is_reachable() -> bool:
    """Tell whether it is worth asking the hub: its name resolves, or a proxy stands between."""
    if HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def read_config(name: str) -> PreTrainedConfig:
    """Read the config of a name.

    Raises:
        ModelError: there is none, it cannot be had from here, or it cannot be that of the weights
            beside it.
    """
    place = locate(name)
    if (file := Path(place) / CONFIG).is_file():
        check_config_file(file)
    with clear_loading_errors(name):
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    check_against_weights(name, config, shapes_of(name))
    return config


def shapes_of(name: str) -> Shapes:
    """Return the shapes of a name's tensors where its files are near, else none.

    Raises:
        ModelError: a file of the weights is damaged or missing.
    """
    place = Path(locate(name))
    if not place.is_dir():
        return {}
    try:
        return read_shapes(place)
    except ModelError as error:
        if name not in PACKAGED:
            raise
        raise ModelError(f"{error}: delete {place}, it is made anew from its package") from error


@contextlib.contextmanager
def clear_loading_errors(name: str) -> Iterator[None]:
    """Say in one sentence why a checkpoint could not be loaded.

    Whatever a library raises over a file is the file's fault here: tokenizers raises plain
    `Exception`, config classes raise errors of their own, and constructors `AssertionError`.
    """
    refuse_pickles(name)
    try:
        yield
    except (VarifocalError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        damage = damaged_json(Path(locate(name)))
        reason = damage or " ".join(str(error).split()) or type(error).__name__
        raise ModelError(f"{name!r} cannot be loaded: {reason}") from error


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
        path = _downloaded(name) or path
    return weight_paths(path) or sorted(path.glob("*.safetensors"))
