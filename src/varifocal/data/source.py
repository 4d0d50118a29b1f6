"""A recipe's source as examples, each parsed when it is asked for."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import numpy as np
import numpy.typing as npt

from varifocal.cache import cache_root
from varifocal.data.example import Example
from varifocal.data.formats.base import Format, ParseOptions, unread_columns
from varifocal.data.formats.cells import cell_or_none
from varifocal.data.formats.questions import Integers
from varifocal.data.formats.registry import FORMATS, check_keys, detect
from varifocal.data.formats.scienceqa import ScienceQARecords
from varifocal.data.formats.table import check_columns, find_integers
from varifocal.data.holdout import choose_side
from varifocal.data.parallel import map_in_order
from varifocal.data.readers.base import Record, Records, StreamedRecords, read_in_order
from varifocal.data.readers.open import open_records
from varifocal.errors import DataError, RunError, nearest
from varifocal.progress import StepProgress
from varifocal.recipe.prompt_formats import CAPTION
from varifocal.writing import atomic_file, write_text

if TYPE_CHECKING:
    from varifocal.recipe import SourceSection


@dataclass(frozen=True)
class Scan:
    """What every record is, without its text.

    Attributes:
        modalities: int8 [N], 0 text, 1 with an image, -1 for a broken record.
        tasks: int32 [N], places in `task_names`; -1 for a broken record.
        task_names: in the order in which they are met.
    """

    modalities: npt.NDArray[np.int8]
    tasks: npt.NDArray[np.int32]
    task_names: tuple[str, ...]


class Source:
    """The records of a recipe's source, as examples.

    Letters: N records, after `split`, `skills` and `max_examples`.

    Args:
        section: of the recipe.
        records: the raw rows.
        format_name: a name of `register.FORMATS`.
        seed: of the wording of instructions.

    Raises:
        DataError: nothing is left of it.
    """

    def __init__(
        self, section: SourceSection, records: Records, format_name: str, seed: int = 0
    ) -> None:
        self.section, self.records, self.format_name = section, records, format_name
        self.name = name_of(section)
        self._parser = _Parser(section, records, format_name, seed)
        self._chosen = _choose(section, records, self._parser)
        if section.holdout is not None:
            self._chosen = choose_side(
                section.holdout, records, self._parser.plain, self._parser.identity, self._chosen
            )

    def __len__(self) -> int:
        """Count the records, broken ones included."""
        count = len(self.records) if self._chosen is None else len(self._chosen)
        return min(count, self.section.max_examples or count)

    def example(self, number: int) -> Example:
        """Read one record.

        Raises:
            DataError: it is broken; the text names file and record.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        row = number if self._chosen is None else int(self._chosen[number])
        return self._parser.parse(self.records[row])

    def __iter__(self) -> Iterator[Example | DataError]:
        """Yield every record in order, a broken one as its error."""
        for number in range(len(self)):
            yield self._example_or_error(number)

    def _example_or_error(self, number: int) -> Example | DataError:
        try:
            return self.example(number)
        except DataError as error:
            return error

    def notes(self) -> list[str]:
        """Say what of the records is not read, and what was found out about their file."""
        return [f"{self.name}: {note}" for note in self._parser.notes(self.records)]

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the records' content and of everything that decides what they become."""
        return hashlib.sha256(
            f"{self.records.fingerprint}\0{self._parser.identity}\0{len(self)}".encode()
        ).hexdigest()

    def scan(self, num_workers: int = 0, progress: StepProgress | None = None) -> Scan:
        """Find every record's modality and task; no image is opened.

        What is found of many records is kept in the cache by `fingerprint`.

        Args:
            num_workers: processes that read.
            progress: called with (done, all) after every record.
        """
        note = cache_root() / "scans" / f"{self.fingerprint}.npz"
        if len(self) >= _SCANS_SAVED_FROM:
            with contextlib.suppress(OSError, ValueError, KeyError):
                stored = np.load(note)
                return Scan(
                    stored["modalities"], stored["tasks"], tuple(map(str, stored["task_names"]))
                )
        scan = self._scan(num_workers, progress)
        # What is broken may be mended, an image put in its place: that is looked at anew.
        if len(self) >= _SCANS_SAVED_FROM and not (scan.modalities < 0).any():
            with (
                contextlib.suppress(OSError, RunError),  # costs time, nothing else
                atomic_file(note) as staging,
                staging.open("wb") as stream,
            ):
                np.savez(stream, **vars(scan))
        return scan

    def _scan(self, num_workers: int, progress: StepProgress | None) -> Scan:
        modalities = np.full(len(self), -1, np.int8)
        tasks = np.full(len(self), -1, np.int32)
        names: dict[str, int] = {}
        pairs = map_in_order(self._modality_and_task, range(len(self)), num_workers)
        for number, (modality, task) in enumerate(pairs):
            if modality >= 0:
                modalities[number] = modality
                tasks[number] = names.setdefault(task, len(names))
            if progress is not None:
                progress(number + 1, len(self))
        return Scan(modalities, tasks, tuple(names))

    def _modality_and_task(self, number: int) -> tuple[int, str]:
        result = self._example_or_error(number)
        return (result.modality, result.task) if isinstance(result, Example) else (-1, "")


_SCANS_SAVED_FROM = 10_000


class StreamedSource:
    """A source that is read in its order and not counted; see `Source`."""

    def __init__(
        self, section: SourceSection, records: StreamedRecords, format_name: str, seed: int = 0
    ) -> None:
        self.section, self.records, self.format_name = section, records, format_name
        self.name = name_of(section)
        self._parser = _Parser(section, records, format_name, seed)

    def notes(self) -> list[str]:
        """Say what of the first records is not read; see `Source`."""
        return [f"{self.name}: {note}" for note in self._parser.notes(self.records)]

    def __iter__(self) -> Iterator[Example | DataError]:
        """Yield the records that are asked for, a broken one as its error."""
        count = 0
        for record in self.records:
            if count == self.section.max_examples:
                return
            result = self._parse(record)
            if result is not None:
                count += 1
                yield result

    def _parse(self, record: Record | DataError) -> Example | DataError | None:
        if isinstance(record, DataError):
            return record
        try:
            return self._parser.parse(record) if self._parser.wants(record) else None
        except DataError as error:
            return error


class _Parser:
    """Makes examples of records as a recipe's source asks."""

    def __init__(
        self,
        section: SourceSection,
        records: Records | StreamedRecords,
        format_name: str,
        seed: int,
    ) -> None:
        self.format: Format = FORMATS[format_name]
        check_keys(section, format_name, records.place)
        columns = dict(section.columns or {})
        check_columns(columns, records.place)
        folder = section.image_folder
        self.asked = ParseOptions(
            source=records.place,
            format=format_name,
            image_folder=Path(folder).expanduser() if folder is not None else records.folder,
            columns=columns,
            answer_as=section.answer_as,
            prompt_format=section.prompt_format,
            answer_is=section.answer_is,
            prompt_text=section.prompt_text,
            use_captions=section.use_captions,
        )
        if format_name == "table" and section.answer_is == "auto":
            self.asked = replace(self.asked, integers=_integers_of(records, self.asked))
        self.is_split = records.is_split
        self.section, self.seed = section, seed

    def notes(self, records: Records | StreamedRecords) -> list[str]:
        """Say what of the first records is not read, and what was found out about their file."""
        rows = iter(records) if isinstance(records, StreamedRecords) else read_in_order(records)
        unread = unread_columns(islice(rows, _FEW), self.format, self.asked)
        what = f"as {self.asked.format}, these columns are not read: {', '.join(unread)}"
        return [*getattr(records, "notes", ()), *([what] if unread else [])]

    @property
    def identity(self) -> str:
        """What decides, next to the records' content, what they become."""
        section = self.section
        asked = {
            "format": self.asked.format,
            "seed": self.seed if section.instructions == "varied" else None,
            "field": None,
            **section.model_dump(
                mode="json",
                include={
                    *("split", "skills", "columns", "image_folder", "field"),
                    *("answer_as", "answer_is", "prompt_format", "instructions"),
                },
            ),
        }
        # keys that earlier versions did not have, where they say something
        keys = {"prompt_text", "use_captions", "record_path", "join", "column_names", "holdout"}
        later = section.model_dump(mode="json", include=keys)
        if section.join is not None:
            later["join"] = section.join.model_dump(mode="json", exclude={"path"})
        unsaid = ("plain", False, None)
        asked |= {key: value for key, value in later.items() if value not in unsaid}
        return json.dumps(asked, sort_keys=True)

    def wants(self, record: Record) -> bool:
        """Tell whether a record is asked for.

        Raises:
            DataError: it does not say which split or skill it is of.
        """
        section, row = self.section, record.row
        asks_split = section.split is not None and not self.is_split
        if asks_split and self._needed(record, "split") != section.split:
            return False
        if section.skills is not None and self._needed(record, "skill") not in section.skills:
            return False
        return self.format.wants is None or self.format.wants(row, self.asked)

    def _needed(self, record: Record, name: str) -> str:
        column = self.asked.columns.get(name, name)
        value = cell_or_none(record.row, column)
        if value is None or value == "":
            raise DataError(f"{record.where} has no {name}: column '{column}' is empty or missing")
        return str(value)

    def plain(self, record: Record) -> Example:
        """Make an example of a record, its question not worded anew."""
        return self.format.parse(record, self.asked)

    def parse(self, record: Record) -> Example:
        """Make an example of a record.

        Raises:
            DataError: it is broken.
        """
        self.wants(record)
        example = self.plain(record)
        if self.section.instructions == "varied":
            from varifocal.data.formats.instructions import vary

            return vary(example, self.seed)
        return example


_FEW = 8
_LOOKED_AT = 256


def _integers_of(records: Records | StreamedRecords, asked: ParseOptions) -> Integers | None:
    """Find out what the integer answers of a table are.

    The whole of it is read only where one of its first 256 records has such an answer; of a stream
    they are all that is looked at. What is found of many records is kept in the cache.

    Raises:
        DataError: the records contradict each other.
    """
    if isinstance(records, StreamedRecords):
        return find_integers(islice(records, _LOOKED_AT), asked)
    if find_integers(islice(read_in_order(records), _LOOKED_AT), asked) is None:
        return None
    if len(records) < _SCANS_SAVED_FROM:
        return find_integers(read_in_order(records), asked)
    identity = json.dumps([records.fingerprint, dict(asked.columns)], sort_keys=True)
    note = cache_root() / "scans" / f"{hashlib.sha256(identity.encode()).hexdigest()}.integers"
    with contextlib.suppress(OSError):
        known = note.read_text()
        if known in get_args(Integers):
            return cast(Integers, known)
    integers = find_integers(read_in_order(records), asked)
    with contextlib.suppress(OSError, RunError):  # costs time, nothing else
        write_text(note, str(integers))
    return integers


def _choose(
    section: SourceSection, records: Records, parser: _Parser
) -> npt.NDArray[np.int64] | None:
    """Return the numbers of the records that are asked for; None for all of them."""
    asks_split = section.split is not None and not records.is_split
    filters = parser.format.wants is not None and section.prompt_format == CAPTION
    if not asks_split and section.skills is None and not filters:
        return None
    chosen: list[int] = []
    skills: set[str] = set()
    for number, record in enumerate(read_in_order(records)):
        if isinstance(record, Record):
            skills.add(str(cell_or_none(record.row, parser.asked.columns.get("skill", "skill"))))
        try:
            if isinstance(record, DataError) or parser.wants(record):
                chosen.append(number)
        except DataError:  # it stays in: whoever asks for it gets the error
            chosen.append(number)
    known = records.skills if isinstance(records, ScienceQARecords) else skills
    for skill in section.skills or ():
        if skill not in known:
            raise DataError(f"'{records.place}' has no skill '{skill}'{nearest(skill, known)}")
    if not chosen:
        what = "record with image and caption" if filters else "record"
        where = "any split" if section.split is None else f"split '{section.split}'"
        raise DataError(f"'{records.place}' has no {what} in {where}")
    return np.array(chosen, np.int64)


def name_of(section: SourceSection) -> str:
    """Return what reports call a source."""
    return section.name or Path(section.place).name or section.place


def open_source(
    section: SourceSection, seed: int = 0, *, root: str | Path | None = None
) -> Source | StreamedSource:
    """Open a recipe's source; its index and first rows are read, and a table's integer answers.

    Args:
        section: of the recipe.
        seed: of the wording of instructions.
        root: folder at which a relative path starts; by default the working directory.

    Returns:
        A Source, or with `streaming` a StreamedSource.

    Raises:
        DataError: there is nothing at the place, its format is not known, or nothing is left of it.
    """
    records = open_records(section, root)
    format_name = _format_of(section, records)
    if isinstance(records, StreamedRecords):
        return StreamedSource(section, records, format_name, seed)
    return Source(section, records, format_name, seed)


def _format_of(section: SourceSection, records: Records | StreamedRecords) -> str:
    if section.format != "auto":
        return section.format
    if section.columns is not None:
        return "table"
    rows = read_in_order(records) if not isinstance(records, StreamedRecords) else iter(records)
    return detect(rows, records.place)
