"""From a name in a recipe to a checkpoint: packaged weights, a local directory, or a hub id."""

import contextlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoConfig, PreTrainedConfig

from varifocal.errors import ModelError, nearest
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
        ModelError: there is none, or it cannot be had from here.
    """
    place = locate(name)
    with clear_loading_errors(name):
        return AutoConfig.from_pretrained(place, trust_remote_code=False)


@contextlib.contextmanager
def clear_loading_errors(name: str) -> Iterator[None]:
    """Say in one sentence why a checkpoint could not be loaded."""
    refuse_pickles(name)
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
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
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return [path / shard for shard in sorted(set(shards))]
    return sorted(path.glob("*.safetensors"))
