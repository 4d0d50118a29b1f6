"""Pictures with descriptions, from a recipe's data section."""

from collections.abc import Sequence
from pathlib import Path

from varifocal.data.example import Example, Image
from varifocal.data.formats import check_images, load_source
from varifocal.data.reading import OnBadRecord
from varifocal.errors import DataError
from varifocal.recipe import DataSection, SourceSection


def load_captions(data: DataSection) -> list[tuple[Image, str]]:
    """Collect described pictures: those of `data.captions`, or the captions of `data.train`.

    Raises:
        DataError: there are none.
    """
    sources = data.captions or [source for source in data.train if _may_have_captions(source)]
    asked = [source.model_copy(update={"prompt_format": "caption"}) for source in sources]
    examples = load_examples(asked, data.on_bad_record)
    pairs = [(one.images[0], one.messages[-1].text) for one in examples if one.images]
    if not pairs:
        raise DataError(
            "connector.alignment: words needs described pictures, and data.train has none; "
            "name some in data.captions, or set model.connector.alignment to null"
        )
    return pairs


def load_examples(sources: Sequence[SourceSection], on_bad_record: OnBadRecord) -> list[Example]:
    """Read sources whole and decode every picture once."""
    return [
        example
        for source in sources
        for example in check_images(load_source(source, on_bad_record=on_bad_record), on_bad_record)
    ]


def _may_have_captions(source: SourceSection) -> bool:
    """Only a ScienceQA folder keeps descriptions beside its questions."""
    return (Path(source.place) / "problems.json").is_file()
