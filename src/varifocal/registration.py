"""Makes `import varifocal` enough for PEFT and transformers, without importing either.

PEFT finds a method by the name in `adapter_config.json`, and transformers a model by its
`model_type`, in tables that Varifocal's tuners and models enter themselves into when they are
imported. That import costs seconds of torch, which `varifocal --help` and a recipe check do not
owe. So the modules that register are imported right after their library, whoever imports it, and at
once where it has been imported already. Where one of Varifocal's own modules imports the library,
they wait until it is complete: they import from it.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from packaging.version import Version

from varifocal.errors import ModelError

_BITSANDBYTES = {
    # At its import, PEFT's too: a kernel on the hub, for 4-bit weights that are packed anew, which
    # models/strict_loading.py never lets happen.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # At every look through every int8 layer: how LLM.int8 works.
    "bitsandbytes.autograd._functions": "MatMul8bitLt: inputs will be cast",
}


def hush() -> None:
    """Leave out the notices above; anything else those libraries say is still heard."""
    for name, start in _BITSANDBYTES.items():
        logger = logging.getLogger(name)
        if not any(isinstance(known, _Without) for known in logger.filters):
            logger.addFilter(_Without(start))


class _Without(logging.Filter):
    """Lets pass every message that does not start with some words."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self._start = start

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._start)


_REGISTERING = {
    "peft": ("varifocal.tuners",),
    "transformers": (
        *("varifocal.models.efficientnet", "varifocal.models.grafted"),
        *("varifocal.models.processor", "varifocal.models.segment_attention", "varifocal.auto"),
    ),
}

# What pyproject.toml asks for, checked again because other installs can move a library.
SUPPORTED = {"peft": ("0.21", "0.22"), "transformers": ("5.20", "6")}


_OWN = ("varifocal.models.", "varifocal.tuners", "varifocal.auto")
"""Beginnings of the names of modules that the registering ones import from."""


def register_on_import() -> None:
    """Register the tuners with PEFT and the models with transformers, now or when they come."""
    for library, modules in _REGISTERING.items():
        if library in sys.modules:
            _import_all(modules)
    if not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def check_versions() -> None:
    """Refuse a PEFT or transformers that Varifocal was not built for.

    Raises:
        ModelError: names the library, its version, the range, and the command that fixes it.
    """
    for library, (lowest, below) in SUPPORTED.items():
        wanted = f"{library}>={lowest},<{below}"
        fix = f"Varifocal needs {wanted}: pip install '{wanted}'"
        try:
            installed = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            raise ModelError(f"{library} is not installed; {fix}") from None
        if not Version(lowest) <= Version(installed) < Version(below):
            raise ModelError(f"{library} {installed} is installed; {fix}")


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds libraries and own modules through the finders that come after it; wraps their loaders.

    Attributes:
        loading: own modules that are being imported, the outermost first.
        waiting: registering modules that are imported as soon as none is.
    """

    def __init__(self) -> None:
        self.loading: list[str] = []
        self.waiting: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _REGISTERING and not fullname.startswith(_OWN):
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _RegisteringLoader(spec.loader, self)
                return spec
        return None

    def settle(self) -> None:
        """Import what waits, if no own module is half imported."""
        while self.waiting and not self.loading:
            importlib.import_module(self.waiting.pop(0))


class _RegisteringLoader(importlib.abc.Loader):
    """Loads as the wrapped loader does, then imports what registers with a library."""

    def __init__(self, loader: importlib.abc.Loader, finder: _AfterImport) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        """Have what the wrapped loader has: `runpy` asks for the code, for one."""
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader  # leave no trace of the detour
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        name = module.__name__
        if name in _REGISTERING:
            self._loader.exec_module(module)
            self._finder.waiting += _REGISTERING[name]
        else:
            self._finder.loading.append(name)
            try:
                self._loader.exec_module(module)
            finally:
                self._finder.loading.remove(name)
        self._finder.settle()


def _import_all(modules: Sequence[str]) -> None:
    for module in modules:
        importlib.import_module(module)
