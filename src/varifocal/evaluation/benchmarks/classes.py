"""Images of one of a few classes: CIFAR-10, CIFAR-100, MNIST, Fashion-MNIST, digits."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL.Image

from varifocal.data.example import Image
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answered, Benchmark, Item, Measure, accuracy
from varifocal.evaluation.benchmarks.loading import (
    first_file,
    image_of,
    index_of,
    make_item,
    read_table,
    value_of,
)

DIGITS = tuple("0123456789")
_CIFAR_10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR_10 = tuple(_CIFAR_10_NAMES.split())
FASHION = ("T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker",
           "bag", "ankle boot")  # fmt: skip
_CIFAR_100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR_100 = tuple(name.replace("_", " ") for name in _CIFAR_100_NAMES.split())

_MNIST_FILES = "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (.gz or not)"
_CIFAR_10_FILES = "CIFAR-10's binary version (test_batch.bin)"
_CIFAR_100_FILES = "CIFAR-100's binary version (test.bin)"
_DIGITS_FILES = "scikit-learn's digits.csv.gz"

_CIFAR_PIXELS = 3 * 32 * 32
_IDX_PREFIX = {"test": "t10k", "train": "train"}

Pixels = npt.NDArray[np.uint8]
Labelled = Iterator[tuple[str, Image, int]]


def read_idx(file: Path) -> npt.NDArray[np.uint8]:
    """Read a file of the IDX format (LeCun), compressed or not.

    The header is two zero bytes, 8 for unsigned bytes, the number of axes, and each axis' length
    as four bytes, the highest first.

    Raises:
        DataError: it is no such file, or cut off.
    """
    content = _content(file)
    axes = content[3] if len(content) >= 4 else 0
    if content[:3] != b"\0\0\x08" or not 1 <= axes <= 4:
        raise DataError(f"'{file}' is no IDX file of unsigned bytes")
    start = 4 + 4 * axes
    shape = tuple(np.frombuffer(content[4:start].ljust(4 * axes, b"\0"), ">u4").tolist())
    if len(content) - start != int(np.prod(shape, dtype=object)):
        raise DataError(f"'{file}' is cut off or too long: its header says {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _content(file: Path) -> bytes:
    """Read a file, unpacked if it is compressed."""
    try:
        content = file.read_bytes()
        return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"'{file}' cannot be read: {error}") from error


def _as_image(pixels: Pixels) -> Image:
    """Make a PNG of [height, width] or [height, width, 3] bytes."""
    out = io.BytesIO()
    PIL.Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG")
    return Image(data=out.getvalue())


def _from_idx(folder: Path, split: str) -> Labelled | None:
    prefix = _IDX_PREFIX.get(split, split)
    places = ("", "*/", "*/*/")
    images, labels = (
        first_file(folder, *(f"{place}{prefix}-{kind}*" for place in places))
        for kind in ("images", "labels")
    )
    if images is None or labels is None:
        return None
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes):
        raise DataError(
            f"'{images}' of shape {pixels.shape} and '{labels}' of shape {classes.shape} do not "
            "belong together"
        )
    names = (f"{split}-{number}" for number in range(len(classes)))
    return zip(names, map(_as_image, pixels), classes.tolist(), strict=True)


def _from_cifar(folder: Path, split: str, pattern: str, label_bytes: int) -> Labelled | None:
    """Read CIFAR's binary files: label bytes, the last the one that counts, then 3 x 32 x 32."""
    files = sorted(path for place in ("", "*/") for path in folder.glob(place + pattern))
    if not files:
        return None
    return _cifar_rows(files, split, label_bytes)


def _cifar_rows(files: Sequence[Path], split: str, label_bytes: int) -> Labelled:
    width, number = label_bytes + _CIFAR_PIXELS, 0
    for file in files:
        content = _content(file)
        if not content or len(content) % width:
            raise DataError(f"'{file}' has {len(content):,} bytes, no multiple of {width:,}")
        for row in np.frombuffer(content, np.uint8).reshape(-1, width):
            pixels = row[label_bytes:].reshape(3, 32, 32).transpose(1, 2, 0)
            yield f"{split}-{number}", _as_image(pixels), int(row[label_bytes - 1])
            number += 1


def _from_cifar_10(folder: Path, split: str) -> Labelled | None:
    return _from_cifar(
        folder, split, f"{'data_batch_*' if split == 'train' else 'test_batch'}.bin", 1
    )


def _from_cifar_100(folder: Path, split: str) -> Labelled | None:
    return _from_cifar(folder, split, f"{split}.bin", 2)


def _from_digits(folder: Path, split: str) -> Labelled | None:
    """Read scikit-learn's digits: 8 x 8 pixels of 0 to 16 and the class, a line each."""
    file = first_file(folder, "digits.csv.gz", "digits.csv")
    if file is None:
        return None
    try:
        lines = _content(file).decode("ascii").split()
        rows = np.array([line.split(",") for line in lines], np.float64)
    except ValueError as error:
        raise DataError(f"'{file}' is no table of numbers: {error}") from error
    if rows.ndim != 2 or rows.shape[1] != 65 or rows.min() < 0 or rows[:, :64].max() > 16:
        raise DataError(f"'{file}' must have 64 pixels of 0 to 16 and a class in each line")
    pixels = (rows[:, :64] * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8)
    names = (f"{split}-{number}" for number in range(len(rows)))
    return zip(names, map(_as_image, pixels), rows[:, 64].astype(int).tolist(), strict=True)


def _from_table(folder: Path, split: str, needed: str, columns: Sequence[str]) -> Labelled:
    """Read a Hugging Face directory with a column for the image and one for the class."""
    for record in read_table(folder, (split,), needed):
        row, where = record.row, record.where
        keys = [next((key for key in names.split("|") if key in row), names) for names in columns]
        image = image_of(row, keys[0], folder, where)
        yield record.place, image, index_of(value_of(row, keys[1], where), 10**6, where, keys[1])


def _load(
    folder: Path,
    split: str | None,
    *,
    official: Callable[[Path, str], Labelled | None],
    needed: str,
    names: tuple[str, ...],
    prompt: str,
    columns: tuple[str, str] = ("image|img", "label"),
) -> Iterator[Item]:
    split = split or "test"
    rows = official(folder, split) or _from_table(folder, split, needed, columns)
    for name, image, gold in rows:
        where = f"{folder}: {name}"
        if not 0 <= gold < len(names):
            raise DataError(f"{where}: the class is {gold}; there are {len(names)}")
        yield make_item(name, where, prompt, image, choices=names, gold=gold)


def _measure(answered: Sequence[Answered]) -> list[Measure]:
    return [accuracy(answered)]


def _row(
    name: str,
    official: Callable[[Path, str], Labelled | None],
    files: tuple[str, str],
    names: tuple[str, ...],
    prompt: str,
    source: str,
    columns: tuple[str, str] = ("image|img", "label"),
) -> Benchmark:
    needed, table = files
    load = partial(
        _load, official=official, needed=needed, names=names, prompt=prompt, columns=columns
    )
    return Benchmark(
        name=name,
        load=load,
        measure=_measure,
        files=f"{needed}{table}",
        protocol=(
            f"'{prompt}' and the picture; the likeliest of the {len(names)} classes' names, by the "
            "sum over its tokens; accuracy on the test pictures"
        ),
        source=source,
        main="accuracy",
    )


_WHICH_DIGIT = "Which digit is in the picture? Answer with one digit."
_CIFAR_SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html (Krizhevsky 2009), no licence stated"

ROWS = (
    _row(
        "cifar10",
        _from_cifar_10,
        (_CIFAR_10_FILES, "; or uoft-cs/cifar10: plain_text/test-*.parquet"),
        CIFAR_10,
        f"What is in the picture? Answer with one of: {', '.join(CIFAR_10)}.",
        _CIFAR_SOURCE,
    ),
    _row(
        "cifar100",
        _from_cifar_100,
        (_CIFAR_100_FILES, "; or uoft-cs/cifar100: cifar100/test-*.parquet"),
        CIFAR_100,
        "What is in the picture? Answer with its name alone.",
        _CIFAR_SOURCE,
        ("image|img", "fine_label"),
    ),
    _row(
        "mnist",
        _from_idx,
        (_MNIST_FILES, "; or ylecun/mnist: mnist/test-*.parquet"),
        DIGITS,
        _WHICH_DIGIT,
        "http://yann.lecun.com/exdb/mnist (LeCun et al. 1998), CC BY-SA 3.0",
    ),
    _row(
        "fashion_mnist",
        _from_idx,
        (_MNIST_FILES, "; or zalando-datasets/fashion_mnist: fashion_mnist/test-*.parquet"),
        FASHION,
        f"Which piece of clothing is this? Answer with one of: {', '.join(FASHION)}.",
        "https://github.com/zalandoresearch/fashion-mnist (Xiao et al. 2017), MIT",
    ),
    _row(
        "digits",
        _from_digits,
        (_DIGITS_FILES, " (in its wheel: sklearn/datasets/data)"),
        DIGITS,
        _WHICH_DIGIT,
        "https://archive.ics.uci.edu/dataset/80 (Alpaydin and Kaynak 1998), CC BY 4.0",
    ),
)
