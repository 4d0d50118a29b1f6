"""Reading PyTorch's pickles without running what they name."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch

from varifocal.errors import ModelError

ALLOWED = (argparse.Namespace,)
"""Classes that a checkpoint may hold next to tensors, numbers, texts and containers of them."""


def read_pickle(file: Path) -> Any:
    """Read a file of `torch.save` through `weights_only`, with `ALLOWED` alone next to tensors.

    Raises:
        ModelError: there is no such file, it is damaged, or it names other classes or functions,
            which unpickling would run.
    """
    if not file.is_file():
        raise ModelError(f"there is no file '{file}'")
    try:
        with torch.serialization.safe_globals(list(ALLOWED)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{file} was not read, since opening it could run code or it is damaged: it holds more "
            f"than tensors and settings ({_reason(error)})"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise ModelError(
            f"{file} is damaged, or no file of torch.save: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """Return what torch says, without the advice after it."""
    text = " ".join(str(error).split())
    start = text.find("WeightsUnpickler error: ")
    text = text[start + len("WeightsUnpickler error: ") :] if start >= 0 else text
    return text[:160].split(". ")[0]


class _Unread:
    """Stands for an object of a library in pickled settings: it holds values and runs nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


_OF_LIBRARIES = ("llava.", "transformers.", "accelerate.", "deepspeed.")


def read_settings(file: Path) -> dict[str, Any]:
    """Read the plain values of pickled `TrainingArguments`, whose class is not imported.

    What the pickle names of `_OF_LIBRARIES` is replaced by an object that runs nothing; anything
    else is refused.

    Raises:
        ModelError: it is damaged, or names something else.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{file} is damaged, or no file of torch.save: {_reason(error)}"
        ) from error
    stands: list[Any] = [(_Unread, name) for name in named if name.startswith(_OF_LIBRARIES)]
    with torch.serialization.safe_globals(stands):
        page = read_pickle(file)
    values = vars(page) if isinstance(page, _Unread | argparse.Namespace) else {}
    return {k: v for k, v in values.items() if isinstance(v, str | int | float | bool)}
