"""Read sources of any data format whole: examples in a list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from varifocal.data.example import Example, Image
from varifocal.data.json_files import Examples, OnBadRecord, gather
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import DataSection, SourceSection
from varifocal.recipe.prompt_formats import CAPTION


def load_source(
    source: SourceSection,
    *,
    root: str | Path | None = None,
    on_bad_record: OnBadRecord = "fail",
) -> Examples:
    """Load what one `data.train` or `data.evaluate` entry of a recipe names.

    Args:
        source: path, format and how to ask.
        root: folder at which a relative path starts; by default the working directory.
        on_bad_record: "fail" raises at the first broken record, "skip" notes it in `skipped`.

    Returns:
        The examples, `max_examples` usable ones at most, and the reasons of the skipped records.

    Raises:
        DataError: there is nothing at the path, its format is not known, or a record is broken.
    """
    whole = open_source(source.model_copy(update={"max_examples": None}), root=root)
    return gather(whole, _or_raise, on_bad_record, source.max_examples)


def _or_raise(result: Example | DataError) -> Example:
    if isinstance(result, DataError):
        raise result
    return result


def check_images(examples: Examples, on_bad_record: OnBadRecord = "fail") -> Examples:
    """Decode every image once, so that damaged ones are found before the training starts.

    Returns:
        The examples whose images can be decoded; `skipped` grows by the others.

    Raises:
        DataError: with "fail", at the first damaged image; the text names record and file.
    """

    def check(example: Example) -> Example:
        for image in example.images:
            try:
                image.open()
            except DataError as error:
                raise DataError(f"{example.name}: {error}") from error
        return example

    checked = gather(examples, check, on_bad_record)
    return Examples(checked, [*examples.skipped, *checked.skipped])


def load_captions(data: DataSection) -> list[tuple[Image, str]]:
    """Collect described images: those of `data.captions`, or the captions of `data.train`.

    Raises:
        DataError: there are none.
    """
    pairs = _pairs(load_examples(_sections(data), data.on_bad_record))
    if not pairs:
        raise no_captions(data)
    return pairs


def find_captions(data: DataSection) -> list[tuple[Image, str]]:
    """Collect what `load_captions` would, without decoding an image; what is broken is left out.

    Raises:
        DataError: a source of `data.captions` cannot be opened, or nothing is left of it.
    """
    captions: list[tuple[Image, str]] = []
    for section in _sections(data):
        try:
            captions += _pairs(load_source(section, on_bad_record="skip"))
        except DataError:  # a source to train on need not describe its images
            if data.captions:
                raise
    return captions


def no_captions(data: DataSection) -> DataError:
    """Return the error of a recipe that aligns its connector and describes no image."""
    if data.captions:
        what, fix = "data.captions has none that can be read", "name others there"
    else:
        what, fix = "data.train has none", "name some in data.captions"
    return DataError(
        f"alignment needs described images, and {what}; {fix}, or set alignment to null"
    )


def _sections(data: DataSection) -> list[SourceSection]:
    sources = data.captions or [source for source in data.train if _may_have_captions(source)]
    return [source.model_copy(update={"prompt_format": CAPTION}) for source in sources]


def _pairs(examples: Iterable[Example]) -> list[tuple[Image, str]]:
    return [
        (example.images[0], example.messages[-1].text) for example in examples if example.images
    ]


def load_examples(sources: Sequence[SourceSection], on_bad_record: OnBadRecord) -> list[Example]:
    """Read sources whole and decode every image once."""
    return [
        example
        for source in sources
        for example in check_images(load_source(source, on_bad_record=on_bad_record), on_bad_record)
    ]


def _may_have_captions(source: SourceSection) -> bool:
    """Only a ScienceQA folder keeps descriptions next to its questions."""
    return (Path(source.place) / "problems.json").is_file()
