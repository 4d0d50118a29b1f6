"""Rows are found by their place in bytes, and read one by one."""

import csv
import gzip
import io
import json
import os
import pickle
import tarfile
import tracemalloc

import datasets
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import TypeAdapter

from varifocal.data import source as source_module
from varifocal.data.readers import files, index
from varifocal.data.readers.base import Record, StreamedRecords
from varifocal.data.readers.files import FileRecords
from varifocal.data.readers.index import index_csv, index_lines, index_list
from varifocal.data.readers.open import open_records, read_in_order
from varifocal.data.source import Source, StreamedSource, open_source
from varifocal.errors import DataError
from varifocal.recipe import FileSection, HubSection, SourceSection

texts = st.text(alphabet=st.sampled_from('ab"\\,[]{}:\n\r\té€😀 '), max_size=8)
cells = st.text(alphabet=st.sampled_from('ab",\n\té€ '), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
READ = index.blocks
quick = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture
def small_blocks(monkeypatch):
    """Read files a few bytes at a time, so that blocks end at every place."""

    def use(size):
        for module in ("varifocal.data.readers.index", "varifocal.data.readers.index"):
            monkeypatch.setattr(f"{module}.blocks", lambda stream: READ(stream, size))

    return use


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """Keep what is made in a folder of the test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("VARIFOCAL_CACHE", str(folder))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "hf")


def pieces(path, index):
    content = path.read_bytes()
    return [content[start:end] for start, end, _ in index]


@quick
@given(
    rows=st.lists(values, max_size=5),
    indent=st.sampled_from([None, 1]),
    size=st.integers(1, 9),
    ascii_only=st.booleans(),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_a_json_list_is_cut_where_its_elements_end(
    tmp_path, small_blocks, rows, indent, size, ascii_only, mark
):
    small_blocks(size)
    path = tmp_path / "a.json"
    text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + "\n"
    path.write_bytes(mark + text.encode())
    index = index_list(path)
    assert [json.loads(piece) for piece in pieces(path, index)] == rows
    assert index[:, 2].tolist() == list(range(len(rows)))


@quick
@given(
    lines=st.lists(st.sampled_from(["a", "", " ", "\t\r", " b", "c\r", "ü" * 5]), max_size=8),
    size=st.integers(1, 9),
    last=st.sampled_from(["", "\n"]),
    mark=st.sampled_from([b"", b"\xef\xbb\xbf"]),
)
def test_lines_are_found_and_counted_as_a_person_does(
    tmp_path, small_blocks, lines, size, last, mark
):
    small_blocks(size)
    path = tmp_path / "a.jsonl"
    path.write_bytes(mark + ("\n".join(lines) + last).encode())
    index = index_lines(path)
    kept = [(n, line.encode()) for n, line in enumerate(lines, 1) if line.strip()]
    assert list(zip(index[:, 2].tolist(), pieces(path, index), strict=True)) == kept


@quick
@given(
    rows=st.lists(st.lists(cells, min_size=2, max_size=2), max_size=6),
    end=st.sampled_from(["\r\n", "\n"]),
)
def test_rows_of_csv_are_those_of_the_csv_module(tmp_path, rows, end):
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator=end).writerows([["x", "y"], *rows])
    path = tmp_path / "a.csv"
    path.write_bytes(buffer.getvalue().encode())
    assert len(index_csv(path, ",")) == len(rows) + 1
    if rows:
        read = [record.row for record in read_in_order(FileRecords(path))]
        assert read == [{"x": x, "y": y} for x, y in rows]


def test_a_row_says_where_it_stands(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"a": 1}\n\n{"a": 2}\n')
    (tmp_path / "a.json").write_text('[{"a": 1},\n{"a": 2}]')
    (tmp_path / "a.csv").write_text('a\n"1\n"\n2\n')
    for name, places in (
        ("a.jsonl", ["line 2", "line 4"]),
        ("a.json", ["row 0", "row 1"]),
        ("a.csv", ["line 2", "line 4"]),
    ):
        records = FileRecords(tmp_path / name)
        assert [records[n].where for n in range(2)] == [f"{tmp_path / name}: {p}" for p in places]


def test_a_file_called_json_may_hold_lines(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}\n{"a": 2}\n')
    assert [record.row["a"] for record in read_in_order(FileRecords(tmp_path / "a.json"))] == [1, 2]


def test_one_bad_row_leaves_its_neighbours_alone(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"a": 1}\n{"a": \xff}\n{"a": 3\n[]\n{"a": 5}')
    found = list(read_in_order(FileRecords(tmp_path / "a.jsonl")))
    assert [type(one) for one in found] == [Record, DataError, DataError, DataError, Record]
    assert [f"line {number}" in str(found[number - 1]) for number in (2, 3, 4)] == [True] * 3


def test_a_record_of_many_megabytes_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_RECORD_BYTES", 100)
    line = json.dumps({"a": "x" * 500})
    (tmp_path / "a.jsonl").write_text(f'{{"a": 1}}\n{line}\n{{"a": 3}}\n')
    section = FileSection(path=str(tmp_path / "a.jsonl"))
    for streaming in (False, True):
        records = open_records(section.model_copy(update={"streaming": streaming}))
        rows = records if isinstance(records, StreamedRecords) else read_in_order(records)
        first, second, third = rows
        assert (first.row["a"], third.row["a"]) == (1, 3)
        assert "line 2 has over 100 bytes" in str(second)


def test_the_index_of_a_large_file_is_kept_and_made_anew_when_it_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_SAVED_FROM", 1)
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n')
    assert len(FileRecords(path)) == 1
    made = []
    monkeypatch.setattr(files, "index_lines", lambda file: made.append(file) or 1 / 0)
    assert FileRecords(path)[0].row == {"a": 1}
    assert made == []
    os.utime(path, (1, 1))  # the same size, another time
    with pytest.raises(ZeroDivisionError):
        FileRecords(path)


def test_opening_does_not_hold_the_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    row = json.dumps({"instruction": "x" * 900, "input": "", "output": "y"})
    path.write_text(f"{row}\n" * 20_000)
    open_source(FileSection(path=str(path)))  # what is imported on the way is no row
    tracemalloc.start()
    source = open_source(FileSection(path=str(path)))
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 20_000
    assert kept < 1_000_000 < 18_000_000 < path.stat().st_size
    assert peak < 3 * index.BLOCK


def test_records_travel_to_other_processes(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 3)
    source = open_source(FileSection(path=str(tmp_path / "a.jsonl")))
    assert pickle.loads(pickle.dumps(source)).example(2) == source.example(2)
    assert source.scan(num_workers=2).modalities.tolist() == [0, 0, 0]


ROWS = [
    {
        "id": str(number),
        "image": "p.png",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": f"red {number}"},
        ],
    }
    for number in range(3)
]


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (6, 4), "red").save(tmp_path / "p.png")
    return tmp_path


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def make_place(kind, folder):
    """Write the rows as one of the kinds of places."""
    quiet = datasets.Dataset.from_list(ROWS)
    if kind == "parquet":
        quiet.to_parquet(folder / "a.parquet")
        return {"path": str(folder / "a.parquet")}
    if kind == "images in parquet":
        rows = [{**row, "image": str(folder / "p.png")} for row in ROWS]
        filled = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        filled.to_parquet(folder / "a.parquet")
        return {"path": str(folder / "a.parquet")}
    if kind in ("saved", "arrow"):
        quiet.save_to_disk(folder / "saved")
        file = folder / "saved" / "data-00000-of-00001.arrow"
        return {"path": str(file if kind == "arrow" else folder / "saved")}
    if kind == "saved splits":
        datasets.DatasetDict(train=quiet, test=quiet.select([0])).save_to_disk(folder / "saved")
        return {"path": str(folder / "saved"), "split": "train"}
    if kind == "shards":
        image = (folder / "p.png").read_bytes()
        for number, row in enumerate(ROWS):
            said = json.dumps({"conversations": row["conversations"]}).encode()
            members = [(f"{number}.png", image), (f"{number}.json", said)]
            write_tar(folder / f"s-{number}.tar", members)
        return {"path": str(folder / "s-*.tar")}
    if kind == "files of a folder":
        (folder / "a.jsonl").write_text(json.dumps(ROWS[0]))
        (folder / "b.json").write_text(json.dumps(ROWS[1:]))
        return {"path": str(folder)}
    if kind == "compressed lines":
        with gzip.open(folder / "a.jsonl.gz", "wt") as file:
            file.write("\n".join(map(json.dumps, ROWS)))
        return {"path": str(folder / "a.jsonl.gz")}
    (folder / "hub").mkdir()
    quiet.to_parquet(folder / "hub" / "train-0.parquet")
    quiet.select([0]).to_parquet(folder / "hub" / "test-0.parquet")
    key = "hub" if kind == "hub" else "path"
    return {key: str(folder / "hub"), "split": "train"}


def source_section(page):
    return TypeAdapter(SourceSection).validate_python(page)


KINDS = (
    *("parquet", "images in parquet", "saved", "arrow", "saved splits", "shards"),
    *("files of a folder", "splits of a folder", "compressed lines", "hub"),
)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_from_every_kind_of_place(folder, kind):
    place = make_place(kind, folder)
    section = source_section({**place, "image_folder": str(folder)})
    source = open_source(section)
    stream = open_source(section.model_copy(update={"streaming": True}))
    assert isinstance(source, Source)
    assert isinstance(stream, StreamedSource)
    assert source.format_name == stream.format_name == "llava"
    for examples in (list(source), list(stream), [source.example(n) for n in range(3)]):
        assert [one.messages[1].text for one in examples] == ["red 0", "red 1", "red 2"]
        assert [one.images[0].open().size for one in examples] == [(6, 4)] * 3
    assert source.fingerprint == open_source(section).fingerprint
    assert source.scan().modalities.tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["saved splits", "splits of a folder", "hub"])
@pytest.mark.parametrize(
    ("split", "said"),
    [(None, "has the splits .*; say which one"), ("tset", "no split 'tset' .*mean 'test'")],
)
def test_splits_are_never_mixed_in_silence(folder, kind, split, said):
    place = {**make_place(kind, folder), "split": split}
    with pytest.raises(DataError, match=said):
        open_source(source_section(place))
    assert len(open_source(source_section({**place, "split": "test"}))) == 1


def test_a_split_may_be_a_folder_with_its_own_images(folder):
    for split in ("train", "test"):
        (folder / split).mkdir()
        row = {"file_name": "p.png", "text": f"For {split}."}
        (folder / split / "metadata.jsonl").write_text(json.dumps(row))
    (folder / "p.png").rename(folder / "test" / "p.png")
    (example,) = open_source(FileSection(path=str(folder), split="test"))
    assert example.images[0].path == folder / "test" / "p.png"
    assert example.messages[1].text == "For test."


def test_a_scan_is_kept_unless_something_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "_SCANS_SAVED_FROM", 1)
    path = tmp_path / "a.jsonl"
    rows = [{"question": "a", "answer": "b", "task": task} for task in "xyx"]
    path.write_text("\n".join(map(json.dumps, rows)))
    section = FileSection(path=str(path))
    first = open_source(section).scan()
    assert first.tasks.tolist() == [0, 1, 0]
    with monkeypatch.context() as patch:
        patch.setattr(Source, "example", None)
        again = open_source(section).scan()
    assert (again.task_names, again.tasks.tolist()) == (("x", "y"), [0, 1, 0])
    path.write_text(json.dumps({"question": "a", "answer": "b", "image": "p.png"}))
    assert open_source(section).scan().modalities.tolist() == [-1]
    Image.new("RGB", (6, 4)).save(tmp_path / "p.png")
    assert open_source(section).scan().modalities.tolist() == [1]


def test_what_the_library_cannot_read_is_a_sentence(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but no more")
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 99)
    (tmp_path / "state.json").write_text("{}")
    for place in ("a.parquet", ""):
        with pytest.raises(DataError, match="cannot be read by the datasets library"):
            open_source(FileSection(path=str(tmp_path / place)))
    with pytest.raises(DataError, match="cannot be read as a tar file"):
        open_source(FileSection(path=str(tmp_path / "a.tar")))
    with pytest.raises(DataError, match="'nobody/nothing' cannot be read"):
        open_source(HubSection(hub="nobody/nothing"))


def test_a_stream_takes_what_is_asked_for(tmp_path):
    rows = [{"question": "a", "answer": str(n), "split": "xy"[n % 2]} for n in range(6)]
    rows[3] = {"question": "a", "answer": "3"}
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    section = FileSection(path=str(tmp_path / "a.jsonl"), split="y", max_examples=2)
    for streaming in (False, True):
        first, second = open_source(section.model_copy(update={"streaming": streaming}))
        assert first.messages[1].text == "1"
        assert "line 4 has no split" in str(second)


def test_fingerprints_follow_content_and_question(tmp_path):
    path = tmp_path / "a.jsonl"

    def fingerprint(content='{"question": "a", "answer": "b"}\n' * 2, **asked):
        path.write_text(content)
        return open_source(FileSection(path=str(path), **asked)).fingerprint

    seen = [
        fingerprint(),
        fingerprint('{"question": "a", "answer": "c"}\n' * 2),
        fingerprint(answer_as="letter"),
        fingerprint(answer_is="value"),
        fingerprint(max_examples=1),
        fingerprint(instructions="varied"),
    ]
    assert len(set(seen)) == 6
    assert fingerprint() == seen[0]
    assert fingerprint(name="other", weight=2.0) == seen[0]
