"""What a run learns from: the recipe's sources as encoded samples and as described pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from varifocal.data.encode import Encoded, Encoder
from varifocal.data.example import Example, Image
from varifocal.data.formats import check_images, load_source
from varifocal.data.reading import OnBadRecord
from varifocal.errors import DataError
from varifocal.recipe import DataSection, SourceSection
from varifocal.run import fingerprint_files


@dataclass(frozen=True)
class TrainingData:
    """Encoded samples, and what was left out of them.

    Attributes:
        samples: in the order of the sources.
        skipped: one sentence for each broken record.
        dropped: one sentence for each sample over the length limit.
        num_cut: samples whose prompt was cut to the limit.
    """

    samples: list[Encoded]
    skipped: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    num_cut: int = 0


def load_examples(
    sources: Sequence[SourceSection], on_bad_record: OnBadRecord
) -> tuple[list[Example], list[str]]:
    """Read sources, each as often as it is repeated, and decode every picture once.

    Returns:
        the examples, and one sentence for each skipped record.
    """
    examples: list[Example] = []
    skipped: list[str] = []
    for source in sources:
        found = check_images(load_source(source, on_bad_record=on_bad_record), on_bad_record)
        examples += list(found) * int(source.epochs or 1)
        skipped += found.skipped
    return examples, skipped


def load_training_data(
    data: DataSection, encoder: Encoder, progress: Callable[[int, int], None] | None = None
) -> TrainingData:
    """Read and encode what is learned from.

    Raises:
        DataError: nothing is left to train on, or a record is bad and `on_bad_record` is `fail`.
    """
    if not data.train:
        raise DataError("data.train names no source; there is nothing to train on")
    examples, skipped = load_examples(data.train, data.on_bad_record)
    encoded = encoder.encode_all(examples, data.on_bad_record, progress)
    if not encoded.samples:
        raise DataError("there is no example to train on: all were skipped or dropped")
    return TrainingData(
        encoded.samples, [*skipped, *encoded.skipped], encoded.dropped, encoded.num_cut
    )


def load_captions(data: DataSection) -> list[tuple[Image, str]]:
    """Collect described pictures: those of `data.captions`, or the captions of `data.train`.

    Raises:
        DataError: there are none.
    """
    sources = data.captions or [source for source in data.train if _may_have_captions(source)]
    asked = [source.model_copy(update={"prompt_format": "caption"}) for source in sources]
    examples, _ = load_examples(asked, data.on_bad_record)
    pairs = [(one.images[0], one.messages[-1].text) for one in examples if one.images]
    if not pairs:
        raise DataError(
            "connector.alignment: words needs described pictures, and data.train has none; "
            "name some in data.captions, or set model.connector.alignment to null"
        )
    return pairs


def _may_have_captions(source: SourceSection) -> bool:
    """Only a ScienceQA folder keeps descriptions beside its questions."""
    return (Path(source.place) / "problems.json").is_file()


def fingerprint_sources(data: DataSection) -> dict[str, str]:
    """The sha256 of each source's table of records, by path (pictures are not read)."""
    found = {}
    for source in (*data.train, *data.captions, *data.evaluate):
        path = Path(source.place)
        names = ("problems.json", "pid_splits.json")
        files = [path / name for name in names] if path.is_dir() else [path]
        found[source.place] = fingerprint_files([file for file in files if file.is_file()])
    return found
