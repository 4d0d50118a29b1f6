"""COCO captions of Karpathy's split: BLEU-4 and CIDEr."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from varifocal.data.example import Image
from varifocal.data.formats.base import short
from varifocal.data.formats.questions import CAPTION_PROMPT
from varifocal.data.json_files import read_json_object
from varifocal.data.readers.base import Record
from varifocal.data.readers.images import locate_image
from varifocal.errors import DataError
from varifocal.evaluation.benchmark import Answer, Answered, Benchmark, Item, Measure
from varifocal.evaluation.benchmarks.loading import (
    find_image,
    first_file,
    make_item,
    needed_text,
    read_table,
    value_of,
)
from varifocal.evaluation.metrics.captions import (
    NGRAMS,
    BleuCounts,
    bleu,
    bleu_counts,
    cider,
    tokenise,
)
from varifocal.evaluation.statistics import Interval, bootstrap, bootstrap_mean

_FILES = "Karpathy's dataset_coco.json and COCO's val2014/"
_CAPTIONS = ("sentences", "captions", "caption", "answer")
_NAMES = ("cocoid", "imgid", "question_id", "id")


def load_coco_captions(folder: Path, split: str | None) -> Iterator[Item]:
    """Yield the images of a split with their captions, five or more each.

    Raises:
        DataError: a file is missing or malformed.
    """
    split = split or "test"
    file = first_file(folder, "dataset_coco.json", "*/dataset_coco.json")
    if file is None:
        names = ("val", "validation") if split in ("val", "validation") else (split,)
        yield from _from_table(read_table(folder, names, _FILES), folder)
        return
    rows = value_of(read_json_object(file), "images", str(file))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"'{file}': 'images' must be a list of objects, not {short(rows)}")
    for number, row in enumerate(rows):
        if row.get("split") == split:
            yield _item(row, f"{file}: image {number}", folder, f"image {number}")


def _from_table(records: Iterable[Record], folder: Path) -> Iterator[Item]:
    """Yield the images of a table; some tables have a row a caption, five rows an image."""
    items: dict[str, Item] = {}
    for record in records:
        name = _name_of(record.row, record.place)
        if name in items:
            more = _captions_of(record.row, record.where)
            items[name] = replace(items[name], references=(*items[name].references, *more))
        else:
            items[name] = _item(record.row, record.where, folder, record.place)
    yield from items.values()


def _item(row: Mapping[str, Any], where: str, folder: Path, place: str) -> Item:
    references, image = _captions_of(row, where), _image(row, where, folder)
    return make_item(_name_of(row, place), where, CAPTION_PROMPT, image, references=references)


def _name_of(row: Mapping[str, Any], place: str) -> str:
    return next((str(row[key]) for key in _NAMES if row.get(key) is not None), place)


def _image(row: Mapping[str, Any], where: str, folder: Path) -> Image:
    """Return the image inside a row, or the file that it names."""
    if row.get("image") is not None:
        return locate_image(row["image"], folder, where)
    name, inside = needed_text(row, "filename", where), str(row.get("filepath") or "val2014")
    folders = [folder / inside, folder / "images" / inside, folder / "images", folder]
    return find_image(folders, name, where)


def _captions_of(row: Mapping[str, Any], where: str) -> list[str]:
    """Return a row's captions: one or more, each a text or an object with the text as `raw`."""
    key = next((key for key in _CAPTIONS if row.get(key)), None)
    captions = row[key] if key else None
    captions = [captions] if isinstance(captions, str | dict) else captions
    texts = [
        caption.get("raw") if isinstance(caption, dict) else caption for caption in captions or ()
    ]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{where}: captions ({', '.join(_CAPTIONS)}) are {short(captions)}")
    return [str(text).strip() for text in texts]


def _read_caption(text: str, item: Item) -> str | None:
    """Return the first line that is written."""
    return next((line.strip() for line in text.splitlines() if line.strip()), None)


def _no_credit(item: Item, answer: Answer) -> float | None:
    return None


def measure_captions(answered: Sequence[Answered]) -> list[Measure]:
    """Score the corpus; an empty caption counts as one without words."""
    captions = [tokenise(answer.parsed or "") for _, answer in answered]
    references = [[tokenise(text) for text in item.references] for item, _ in answered]
    counts = [bleu_counts(*pair) for pair in zip(captions, references, strict=True)]
    table = np.array([[c.length, c.reference_length, *c.matches, *c.guesses] for c in counts])
    by_bleu = bootstrap(len(table), lambda picked: _bleu_of(table[picked]))
    # CIDEr weighs words by all images; a resample keeps these weights.
    by_cider = bootstrap_mean(cider(captions, references))
    unparsed = sum(answer.parsed is None for _, answer in answered)
    return [
        _measure_of("CIDEr (x100)", by_cider, len(table), unparsed),
        _measure_of("BLEU-4", by_bleu, len(table), unparsed),
    ]


def _bleu_of(table: np.ndarray) -> float:
    """Score the sum of the counts of [images, (words, reference's, matches x 4, guesses x 4)]."""
    sums = table.sum(axis=0).tolist()
    first = 2 + NGRAMS
    return bleu(BleuCounts(sums[0], sums[1], tuple(sums[2:first]), tuple(sums[first:])))


def _measure_of(name: str, interval: Interval, count: int, unparsed: int) -> Measure:
    return Measure(
        name, 100 * interval.value, 100 * interval.low, 100 * interval.high, count, unparsed
    )


ROWS = (
    Benchmark(
        name="coco_captions",
        load=load_coco_captions,
        measure=measure_captions,
        method="generate",
        parse=_read_caption,
        credit=_no_credit,
        max_new_tokens=40,
        files=f"{_FILES}; or yerevann/coco-karpathy: data/test-*.parquet and the images, "
        "or any test-*.parquet with captions and images",
        protocol=(
            "'Describe the picture.'; greedy answer's first line; BLEU-4 and CIDEr-D as COCO's "
            "caption script defines them, on words parted much as its PTB tokeniser does, against "
            "all captions of Karpathy's test pictures (Karpathy and Fei-Fei 2015)"
        ),
        source="https://cs.stanford.edu/people/karpathy/deepimagesent (captions: COCO, CC BY 4.0)",
        main="CIDEr (x100)",
    ),
)
