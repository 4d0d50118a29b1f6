"""The services that a training reports to, by transformers' names."""

import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from varifocal.errors import nearest
from varifocal.recipe.strict_yaml import WrongKeyError

SERVICES: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Service -> the packages of which one has to be installed."""


_FOLDERS = {
    "tensorboard": ("TENSORBOARD_LOGGING_DIR", "tensorboard"),
    "trackio": ("TRACKIO_DIR", "trackio"),
    "wandb": ("WANDB_DIR", "."),
}
"""Service -> the variable that names its folder, and that folder in a run; wandb makes `wandb`."""


@contextmanager
def reports_in(root: Path, report_to: str | Iterable[str] | None) -> Iterator[None]:
    """Let services that write files write them into a folder, unless the environment names one.

    trackio reads its variable once in a process: further runs of it are in the first one's folder.
    """
    named = services(report_to)
    places = {
        variable: str(root / folder)
        for name, (variable, folder) in _FOLDERS.items()
        if (name in named or named == ["all"]) and variable not in os.environ
    }
    os.environ.update(places)
    try:
        yield
    finally:
        for variable in places:
            os.environ.pop(variable, None)


def services(report_to: str | Iterable[str] | None) -> list[str]:
    """List the services that `report_to` names; `none` names none, `all` is itself.

    >>> services("wandb"), services("none"), services(["wandb", "mlflow"])
    (['wandb'], [], ['wandb', 'mlflow'])
    """
    named = [report_to] if isinstance(report_to, str) else list(report_to or ())
    return [] if named == ["none"] else named


def check_services(report_to: str | Iterable[str] | None) -> None:
    """Refuse a service that transformers does not know.

    Raises:
        WrongKeyError: it names `report_to`.
    """
    named = services(report_to)
    for name in named if named != ["all"] else ():
        if name not in SERVICES:
            hint = nearest(name, SERVICES) or f"; known: none, all, {', '.join(SERVICES)}"
            raise WrongKeyError("report_to", f"{name!r} is no service of transformers{hint}")


def missing_services(report_to: str | Iterable[str] | None) -> str | None:
    """Name what has to be installed for the services, or None."""
    named = services(report_to)
    if named == ["all"]:
        is_installed = any(_is_there(packages) for packages in SERVICES.values() if packages)
        return None if is_installed else "one of " + ", ".join(sorted(SERVICES))
    known = [SERVICES[name] for name in named if name in SERVICES]
    lacking = [packages[0] for packages in known if not _is_there(packages)]
    return " ".join(lacking) or None


def _is_there(packages: tuple[str, ...]) -> bool:
    return not packages or any(importlib.util.find_spec(package) for package in packages)
