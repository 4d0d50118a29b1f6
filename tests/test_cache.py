"""What is kept to save work: shown by kind, deleted by kind and age, and nothing next to it."""

import os
import subprocess
import time
from hashlib import sha256

import pytest
from typer.testing import CliRunner

from varifocal.cache import CacheKind, cache_kinds, clear_cache, file_digest
from varifocal.cli.commands import app
from varifocal.errors import VarifocalError
from varifocal.staging import machine, staging_path

DAY = 86400


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Two feature tables, the older of them last used 40 days ago; a model; somebody's own file."""
    root = tmp_path / "cache"
    monkeypatch.setenv("VARIFOCAL_CACHE", str(root))
    for name, size, days in (("old", 1000, 40), ("new", 3000, 2)):
        table = root / "features" / name
        table.mkdir(parents=True)
        for file in ("keys.bin", "features.bin"):
            (table / file).write_bytes(bytes(size))
            os.utime(table / file, (time.time() - days * DAY, time.time() - days * DAY))
    (root / "digests").mkdir()
    (root / "digests" / "abc").write_text("0" * 64)
    (root / "smollm2-1").mkdir()
    (root / "smollm2-1" / "config.json").write_text("{}")
    (root / "mine.txt").write_text("keep me")
    return root


def ask(*words):
    return CliRunner().invoke(app, ["cache", *words])


def test_sizes_by_kind(kept):
    assert cache_kinds() == {
        "digests": CacheKind(1, 64),
        "features": CacheKind(2, 8000),
        "models": CacheKind(1, 2),
    }
    lines = ask().output.splitlines()
    assert [line.split() for line in lines[:2]] == [
        ["digests", "1", "entries", "64", "B"],
        ["features", "2", "entries", "7.8", "KiB"],
    ]
    assert lines[-1].split() == ["in", "all", "4", "entries", "7.9", "KiB", str(kept)]


def test_one_kind_is_deleted_and_the_others_stay(kept):
    assert ask("--clear", "features").output.startswith("deleted 2 entries, 7.8 KiB")
    assert cache_kinds() == {
        "digests": CacheKind(1, 64),
        "features": CacheKind(0, 0),
        "models": CacheKind(1, 2),
    }
    assert (kept / "mine.txt").is_file()


@pytest.mark.parametrize(("days", "left"), [(30, ["new"]), (1, []), (60, ["new", "old"])])
def test_only_what_was_not_used_since_is_deleted(kept, days, left):
    ask("--clear", "features", "--older-than", str(days))
    assert sorted(path.name for path in (kept / "features").iterdir()) == left


def test_a_table_that_was_read_lately_is_not_old(kept):
    file = kept / "features" / "old" / "features.bin"
    os.utime(file, (time.time(), time.time() - 40 * DAY))
    assert clear_cache("features", 30) == CacheKind(0, 0)


def test_all_spares_what_is_not_varifocals(kept):
    assert clear_cache("all").num_entries == 4
    assert (kept / "mine.txt").is_file()


def test_an_empty_cache_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "none"))
    assert ask().output.split()[:4] == ["in", "all", "0", "entries"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--clear", "feature"], "--clear feature: nothing of that kind; did you mean 'features'"),
        (["--older-than", "3"], "--older-than says what --clear deletes; give --clear KIND, too"),
    ],
)
def test_mistakes(kept, words, text):
    error = ask(*words).exception
    assert isinstance(error, VarifocalError)
    assert str(error).startswith(text)


def test_a_digest_that_a_kill_left_half_written_is_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    assert file_digest(file) == sha256(b"abc").hexdigest()
    (note,) = (tmp_path / "cache" / "digests").iterdir()
    note.unlink()
    gone = subprocess.Popen(["true"])
    gone.wait()
    staging_path(note, f"{machine()}-{gone.pid}-0123abcd").touch()
    assert file_digest(file) == sha256(b"abc").hexdigest()
    assert list(note.parent.iterdir()) == [note]
