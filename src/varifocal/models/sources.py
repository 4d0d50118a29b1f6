"""From a name in a recipe to a checkpoint: packaged weights, a local directory, or a hub id."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoConfig, PreTrainedConfig

from varifocal.errors import ModelError, nearest
from varifocal.models.packaged import PACKAGED, find_source, packaged_directory

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
        return name
    raise ModelError(
        f"{name!r} is no packaged model ({', '.join(PACKAGED)}), no local directory and no hub id"
        f" (OWNER/NAME, which needs a network){nearest(name, PACKAGED)}"
    )


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
    except (OSError, ValueError, KeyError, HfHubHTTPError) as error:
        reason = " ".join(str(error).split())
        if name in PACKAGED or Path(name).expanduser().is_dir():
            raise ModelError(f"{name!r} cannot be loaded: {reason}") from error
        raise ModelError(
            f"{name!r} is neither a packaged model nor a local directory, and could not be had from"
            f" the hub, which needs a network: {reason}{nearest(name, PACKAGED)}"
        ) from error


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
        path = _hub_snapshot(name)
    return sorted(path.glob("*.safetensors"))


def _hub_snapshot(name: str) -> Path:
    """Return the directory a hub id was downloaded into."""
    with contextlib.suppress(LocalEntryNotFoundError):
        config = try_to_load_from_cache(name, "config.json")
        if isinstance(config, str):
            return Path(config).parent
    raise ModelError(f"{name!r} is not in the hub's local cache")
