"""The door to raw rows: what a recipe's source names, a file, a folder, shards or a hub id."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from glob import glob, has_magic
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from varifocal.data.formats.scienceqa import ScienceQARecords
from varifocal.data.json_files import neighbour
from varifocal.data.readers.arrow import BUILDERS, open_files, open_hub, open_saved
from varifocal.data.readers.base import (
    JoinedRecords,
    Lookup,
    NestedRecords,
    Record,
    Records,
    RecordsWithLookup,
    StreamedRecords,
    read_in_order,
    replace_rows,
    stream_nested,
    stream_with_lookup,
)
from varifocal.data.readers.captions import CaptionedImages, CocoRecords, is_coco
from varifocal.data.readers.files import TEXT_ENDINGS, FileRecords, stream_lines
from varifocal.data.readers.tar import TAR_ENDINGS, TarRecords, stream_shard
from varifocal.errors import DataError, nearest

if TYPE_CHECKING:
    from varifocal.recipe import FileSection, SourceSection
    from varifocal.recipe.data import JoinSection

__all__ = ["Record", "Records", "StreamedRecords", "open_records", "read_in_order"]

ENDINGS = (*TEXT_ENDINGS, *BUILDERS, *TAR_ENDINGS)
_SPLITS = ("train", "val", "valid", "validation", "dev", "test")


def open_records(
    section: SourceSection, root: str | Path | None = None
) -> Records | StreamedRecords:
    """Open what a recipe's source names; with `streaming`, rows in their order alone.

    Args:
        section: the source.
        root: folder at which a relative path starts; by default the working directory.

    Raises:
        DataError: there is nothing at the path, or it cannot be read as rows.
    """
    records = _open_place(section, root)
    if section.record_path is not None:
        path = section.record_path
        records = (
            replace_rows(records, partial(stream_nested, records, path))
            if isinstance(records, StreamedRecords)
            else NestedRecords(records, path)
        )
    return records if section.join is None else _joined(records, section.join, root)


def _joined(
    records: Records | StreamedRecords, join: JoinSection, root: str | Path | None
) -> Records | StreamedRecords:
    """Add another file's columns to rows."""
    from varifocal.recipe import FileSection

    there = open_records(FileSection(path=join.path, field=join.field), root)
    assert not isinstance(there, StreamedRecords)
    lookup = Lookup(there, join.key_there or join.key)
    if isinstance(records, StreamedRecords):
        return replace_rows(records, partial(stream_with_lookup, records, lookup, join.key))
    return RecordsWithLookup(records, lookup, join.key)


def _open_place(
    section: SourceSection, root: str | Path | None = None
) -> Records | StreamedRecords:
    """Open what a recipe's source names, its rows as they lie there."""
    if section.type == "hub":
        return open_hub(section.hub, section.subset, section.split, section.streaming)
    path = Path(root or ".") / Path(section.place).expanduser()
    if has_magic(str(path)) and not path.exists():
        files = sorted(Path(file) for file in glob(str(path), recursive=True))
        if not files:
            raise DataError(f"no file matches '{path}'")
        return _join(files, files[0].parent, str(path), section, is_split=False)
    if path.is_dir():
        records = _open_folder(path, section)
    elif path.exists():
        records = _join([path], path.parent, str(path), section, is_split=False)
    else:
        raise DataError(f"no file or folder '{path}'{neighbour(path)}")
    return _streamed(records) if section.streaming else records


def _streamed(records: Records | StreamedRecords) -> StreamedRecords:
    if isinstance(records, StreamedRecords):
        return records
    rows = partial(read_in_order, records)
    notes = getattr(records, "notes", ())
    return StreamedRecords(rows, records.folder, records.place, records.is_split, notes)


def _open_folder(folder: Path, section: FileSection) -> Records | StreamedRecords:
    """Open a folder: ScienceQA's, a saved data set, files of records, or images with captions."""
    if (folder / "problems.json").is_file() or section.format == "scienceqa":
        _refuse_names(section, folder)
        return ScienceQARecords(folder, section.split)
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        _refuse_names(section, folder)
        return open_saved(folder, section.split)
    files = _files_of(folder)
    if not files:
        _refuse_names(section, folder)
        return CaptionedImages(folder)
    by_split = {name: list(group) for name, group in groupby(sorted(files, key=_key), _split_of)}
    named = {name: group for name, group in by_split.items() if name}
    if not named:
        return _join(files, folder, str(folder), section, is_split=False)
    known = ", ".join(named)
    if section.split is None and len(named) > 1:
        raise DataError(f"'{folder}' has the splits {known}; say which one is meant (split: ...)")
    split = section.split or next(iter(named))
    if split not in named:
        raise DataError(f"'{folder}' has no split '{split}' but {known}{nearest(split, named)}")
    return _join(named[split], folder, str(folder), section, is_split=True)


def _files_of(folder: Path) -> list[Path]:
    """List a folder's files of records, or else those of its folders of splits or `data`."""
    places = [folder, *(folder / name for name in ("data", *_SPLITS))]
    by_pattern = [
        sorted(file for file in place.iterdir() if _is_data(file))
        for place in places
        if place.is_dir()
    ]
    return by_pattern[0] or [file for files in by_pattern[1:] for file in files]


def _is_data(file: Path) -> bool:
    return file.is_file() and not file.name.startswith(".") and bool(_ending(file))


def _ending(file: Path) -> str:
    return next((ending for ending in ENDINGS if file.name.lower().endswith(ending)), "")


def _split_of(file: Path) -> str:
    """Read a split off a file's name ("train-00000.parquet") or its folder's; "" for none."""
    for name in (file.name, file.parent.name):
        word = re.split(r"[-_.]", name.lower())[0]
        if word in _SPLITS:
            return word
    return ""


def _key(file: Path) -> tuple[str, str]:
    return _split_of(file), str(file)


def _join(
    files: Sequence[Path], folder: Path, place: str, section: FileSection, is_split: bool
) -> Records | StreamedRecords:
    """Open files of records and set their rows one after the other."""
    streaming = section.streaming
    parts: list[Any] = []
    for ending, group in groupby(files, _ending):
        same = list(group)
        if ending in (*BUILDERS, *TAR_ENDINGS):
            _refuse_names(section, place)
        if ending in BUILDERS:
            parts.append(open_files(same, same[0].parent, place, streaming))
        elif ending in TAR_ENDINGS:
            parts += [_open_shard(file, streaming) for file in same]
        else:
            parts += [_open_text(file, ending, section) for file in same]
    homes = {file.parent for file in files}
    home = homes.pop() if len(homes) == 1 else folder
    if streaming:
        streams = [_streamed(part) for part in parts]
        notes = dict.fromkeys(note for stream in streams for note in stream.notes)
        return StreamedRecords(partial(_chain, streams), home, place, is_split, notes)
    if len(parts) == 1:
        parts[0].is_split = is_split
        return parts[0]
    return JoinedRecords(parts, home, place, is_split)


def _open_text(file: Path, ending: str, section: FileSection) -> Records | StreamedRecords:
    is_plain = section.field is None and section.record_path is None
    if ending == ".json" and is_plain and is_coco(file):
        _refuse_names(section, file)
        return CocoRecords(file)
    if ending in (".jsonl", ".jsonl.gz") and section.streaming:
        rows = partial(stream_lines, file, section.column_names)
        return StreamedRecords(rows, file.parent, str(file))
    if not ending:
        raise DataError(
            f"'{file}' cannot be read as rows: a file's name ends with {', '.join(ENDINGS)}"
        )
    is_row = section.record_path is not None
    return FileRecords(file, field=section.field, names=section.column_names, is_row=is_row)


def _refuse_names(section: FileSection, place: str | Path) -> None:
    if section.column_names is not None:
        raise DataError(f"'{place}' has names of its own; leave column_names out")


def _open_shard(file: Path, streaming: bool) -> Records | StreamedRecords:
    if streaming:
        return StreamedRecords(partial(stream_shard, file), file.parent, str(file))
    return TarRecords(file)


def _chain(parts: Sequence[StreamedRecords]) -> Iterator[Record | DataError]:
    for part in parts:
        yield from part
