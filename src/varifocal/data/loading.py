"""Read sources of any data format whole: examples in a list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from varifocal.data.example import Example, Image
from varifocal.data.json_files import Examples, OnBadRecord, gather
from varifocal.data.source import open_source
from varifocal.errors import DataError
from varifocal.recipe import DataSection, SourceSection
from varifocal.recipe.data import AlignmentText
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


def load_captions(data: DataSection, text: AlignmentText = "auto") -> list[tuple[Image, str]]:
    """Collect images with the words that describe them; see `describes_by_answers`.

    Raises:
        DataError: there are none.
    """
    if describes_by_answers(data, text):
        pairs = answer_words(load_examples(_counted(data), data.on_bad_record))
    else:
        pairs = _pairs(load_examples(_sections(data), data.on_bad_record))
    if not pairs:
        raise no_captions(data, text)
    return pairs


def find_captions(data: DataSection, text: AlignmentText = "auto") -> list[tuple[Image, str]]:
    """Collect what `load_captions` would, without decoding an image; what is broken is left out.

    Raises:
        DataError: a source of `data.captions` cannot be opened, or nothing is left of it.
    """
    if describes_by_answers(data, text):
        return answer_words(
            example
            for section in _counted(data)
            for example in load_source(section, on_bad_record="skip")
        )
    return _described(data)


def describes_by_answers(data: DataSection, text: AlignmentText) -> bool:
    """Tell whether answers stand in for captions: where that is asked, or there is no caption."""
    if text != "auto" or data.captions:
        return text == "answers"
    return not _described(data)


def _described(data: DataSection) -> list[tuple[Image, str]]:
    captions: list[tuple[Image, str]] = []
    for section in _sections(data):
        try:
            captions += _pairs(load_source(section, on_bad_record="skip"))
        except DataError:  # a source to train on need not describe its images
            if data.captions:
                raise
    return captions


def no_captions(data: DataSection, text: AlignmentText = "auto") -> DataError:
    """Return the error of a recipe that aligns its connector and describes no image."""
    if data.captions:
        what, fix = "data.captions has none that can be read", "name others there"
    elif text == "captions":
        what, fix = "data.train has none", "name some in data.captions"
    else:
        what = "data.train has no caption and no answer about an image that tells what is in it"
        fix = "name some in data.captions"
    return DataError(
        f"alignment needs described images, and {what}; {fix}, or set alignment to null"
    )


_YES, _NO = ("yes", "true"), ("no", "false")
_FUNCTION_WORDS = (
    "a about an and are as at be been being but by can could did do does done for from had has "
    "have he her his how if image in into is it its many more most much of on or photo picture "
    "question she shown should some than that the their them there these they this those to was "
    "were what when where which who whom whose why will with would you your"
)
_TELLS_NOTHING = frozenset(_FUNCTION_WORDS.split())


def answer_words(examples: Iterable[Example]) -> list[tuple[Image, str]]:
    """Collect, for each first image of examples, the words of its answers and questions.

    A question that is answered with no says nothing of its image, one answered with yes says it
    itself; of the others the answer counts, too. Words that any question may have are left out.
    """
    words: dict[Image, dict[str, None]] = {}
    for example in examples:
        if not example.images:
            continue
        answer = example.messages[-1].text.strip().lower().rstrip(".")
        if answer in _NO:
            continue
        asked = example.question.text if example.question else example.messages[-2].text
        said = asked if answer in _YES else f"{answer} {asked}"
        telling = [word for word in re.findall(r"\w+", said.lower()) if word not in _TELLS_NOTHING]
        words.setdefault(example.images[0], {}).update(dict.fromkeys(telling))
    return [(image, " ".join(bag)) for image, bag in words.items() if bag]


def _counted(data: DataSection) -> list[SourceSection]:
    return [section for section in data.train if not section.streaming]


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
