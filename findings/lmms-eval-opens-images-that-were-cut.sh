#!/usr/bin/env bash
# lmms-eval 0.7.3 sets PIL.ImageFile.LOAD_TRUNCATED_IMAGES = True where lmms_eval.api.task is
# imported, for the whole process. After that Pillow opens a PNG of which the second half is missing
# without an error, and fills the rest with black: a data pipeline that counts on the OSError for
# damaged files trains on, or scores, half images. The order of imports decides it.
#
# Seen, a PNG of 64 x 64 random pixels of which the last half of the bytes is cut off:
#   before the import   OSError
#   after the import    opened, and its last row is [0, 0, 0]
#
# Whoever needs the error sets the switch to False again around Image.load. The module is imported
# with stand-ins for what else it imports (torch, datasets, ...), which have no part in it.
# Exits with 1 when the library behaves differently.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --no-deps lmms-eval==0.7.3 pillow==12.0.0
venv/bin/python - <<'END'
import importlib.machinery
import io
import os
import sys
import types
from unittest.mock import MagicMock

from PIL import Image, ImageFile


class StandIn(types.ModuleType):
    """A module that is not installed: it has whatever is asked of it."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock()


class StandIns:
    """Finds every module that nobody else finds; comes last."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


def last_row(content):
    try:
        image = Image.open(io.BytesIO(content)).convert("RGB")
    except OSError:
        return "OSError"
    return list(image.getpixel((0, image.height - 1)))


buffer = io.BytesIO()
noise = Image.frombytes("RGB", (64, 64), os.urandom(64 * 64 * 3))
noise.save(buffer, "PNG")
half = buffer.getvalue()[: buffer.tell() // 2]

before = last_row(half), ImageFile.LOAD_TRUNCATED_IMAGES
sys.meta_path.append(StandIns())
import lmms_eval.api.task

after = last_row(half), ImageFile.LOAD_TRUNCATED_IMAGES
assert lmms_eval.api.task.__file__.startswith(sys.prefix)
print("before the import", *before)
print("after the import ", *after)
sys.exit(not (before == ("OSError", False) and after == ([0, 0, 0], True)))
END
