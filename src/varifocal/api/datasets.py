"""The data of a recipe, or of one source, as examples that are parsed when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from varifocal.api.jobs import Overrides
from varifocal.api.jobs import Source as RecipeSource
from varifocal.data.example import Example
from varifocal.data.json_files import OnBadRecord
from varifocal.data.source import Source, StreamedSource, open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection, Recipe, SourceSection, load_recipe
from varifocal.recipe.strict_yaml import validate
from varifocal.training.examples import open_epoch


class Dataset(Sequence[Example]):
    """Examples of one or several sources, each parsed when it is asked for.

    Letters: N examples.

    Args:
        sources: where the records come from.
        parts: int [N], the source of each example.
        records: int [N], its number in that source.
        on_bad_record: what iterating does with a broken record: `fail` or `skip`.

    Attributes:
        skipped: one sentence for each record that iterating has left out.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        parts: npt.NDArray[Any],
        records: npt.NDArray[Any],
        on_bad_record: OnBadRecord = "fail",
    ) -> None:
        self.sources = sources
        self.on_bad_record: OnBadRecord = on_bad_record
        self._parts, self._records = parts, records
        self.skipped: list[str] = []

    def __len__(self) -> int:
        """Count the examples, broken ones included."""
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Example | Dataset:
        """Return an example, or a part of the data.

        Raises:
            DataError: the record is broken.
        """
        if isinstance(index, slice):
            chosen = self._parts[index], self._records[index]
            return Dataset(self.sources, *chosen, self.on_bad_record)
        return self.sources[int(self._parts[index])].example(int(self._records[index]))

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples in their order.

        Raises:
            DataError: a record is broken, and `on_bad_record` is `fail`.
        """
        self.skipped = []
        for index in range(len(self)):
            try:
                yield self[index]
            except DataError as error:
                if self.on_bad_record == "fail":
                    raise
                self.skipped.append(str(error))

    def __repr__(self) -> str:
        names = ", ".join(source.name for source in self.sources)
        return f"Dataset({len(self):,} examples of {names})"


class Stream(Iterable[Example]):
    """Examples of sources that are read in their order and not counted.

    Args:
        sources: read one after the other.
        on_bad_record: what to do with a broken record: `fail` or `skip`.

    Attributes:
        skipped: one sentence for each record that iterating has left out.
    """

    def __init__(
        self, sources: Sequence[Source | StreamedSource], on_bad_record: OnBadRecord = "fail"
    ) -> None:
        self.sources = sources
        self.on_bad_record: OnBadRecord = on_bad_record
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples; see `Dataset.__iter__`."""
        self.skipped = []
        for source in self.sources:
            for result in source:
                if isinstance(result, Example):
                    yield result
                elif self.on_bad_record == "fail":
                    raise result
                else:
                    self.skipped.append(str(result))

    def __repr__(self) -> str:
        return f"Stream({', '.join(source.name for source in self.sources)})"


def dataset(
    path: str | os.PathLike[str],
    *,
    on_bad_record: OnBadRecord = "fail",
    **options: Any,
) -> Dataset | Stream:
    """Open one source of data: a file or a folder in any format that a recipe takes.

    Args:
        path: the file or folder.
        on_bad_record: what iterating does with a broken record: `fail` or `skip`.
        options: what an entry of a recipe's `data.train` may hold: `format`, `split`, `columns`,
            `image_folder`, `max_examples`, `streaming` and so on.

    Returns:
        Examples with `images` and `messages`; a `Stream` with `streaming=True`.

    Raises:
        RecipeError: an option is not known.
        DataError: there is nothing at the path, or its format is not known.
    """
    folder = options.get("image_folder")
    if folder is not None:
        options["image_folder"] = os.fspath(folder)
    place = str(Path(path).expanduser())
    section = validate(FileSection, {"path": place, **options})
    return _joined([open_source(section)], on_bad_record)


def datasets(recipe: RecipeSource, *, overrides: Overrides = ()) -> dict[str, Dataset | Stream]:
    """Open the data of a recipe.

    Args:
        recipe: as `train` takes it.
        overrides: dotted keys and values.

    Returns:
        `train` (the examples of an epoch, as the recipe's mixture draws them), `evaluate` and
        `captions`, as far as the recipe names any.

    Raises:
        RecipeError: the recipe has a mistake.
        DataError: a source cannot be read.
    """
    page = load_recipe(recipe, overrides)
    sides = {side: _side(page, side) for side in ("train", "evaluate", "captions")}
    return {side: data for side, data in sides.items() if data is not None}


def _side(recipe: Recipe, side: str) -> Dataset | Stream | None:
    data = recipe.data
    sections: Sequence[SourceSection] = getattr(data, side)
    if not sections:
        return None
    if side == "train" and not any(section.streaming for section in sections):
        sources, drawn = open_epoch(data, seed=recipe.seed)
        return Dataset(sources, drawn.parts, drawn.records, data.on_bad_record)
    return _joined([open_source(section, recipe.seed) for section in sections], data.on_bad_record)


def _joined(
    sources: Sequence[Source | StreamedSource], on_bad_record: OnBadRecord
) -> Dataset | Stream:
    """Put sources one after the other; a stream among them makes all of it one."""
    sized = [source for source in sources if isinstance(source, Source)]
    if len(sized) < len(sources):
        return Stream(sources, on_bad_record)
    counts = [len(source) for source in sized]
    parts = np.repeat(np.arange(len(sized)), counts)
    records = np.concatenate([np.arange(count) for count in counts])
    return Dataset(sized, parts, records, on_bad_record)
