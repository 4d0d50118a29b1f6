"""A disk that is really full: a small file system in memory, and a ballast file that fills it."""

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass

import pytest

from varifocal.data.encoded_table import EncodedTable
from varifocal.errors import RunError
from varifocal.models.features import FeatureStore
from varifocal.run import RunDirectory
from varifocal.training import train as train_module
from varifocal.training.train import train
from varifocal.training.trainer import SupervisedTrainer

PAGE = {
    "training.max_steps": 6,
    "training.save_steps": 2,
    "training.logging_steps": 3,
    "training.save_total_limit": 1,
    "tuner.adapt_vision_tower": False,
}
SIZE = 4 << 20


@pytest.fixture
def disk(tmp_path):
    """A file system of its own; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            yield place
            subprocess.run(["umount", "-l", str(place)], check=True)
            return
    pytest.skip("no file system can be mounted here")


@dataclass(frozen=True)
class Moment:
    """When the disk fills up, and what then is not written.

    Args:
        owner, name: the disk fills just before this is called,
        call: for this time;
        leave: but for some bytes.
        unwritten: the end of the path in the sentence.
        kept: the step of the one checkpoint that is left, if any.
    """

    owner: object
    name: str
    unwritten: str
    kept: int | None
    call: int = 1
    leave: int = 0

    def arrange(self, patch, disk):
        before, calls = getattr(self.owner, self.name), []

        def filled(*args, **kwargs):
            calls.append(1)
            if len(calls) == self.call:
                fill(disk, self.leave)
            return before(*args, **kwargs)

        patch.setattr(self.owner, self.name, filled)


MOMENTS = [
    Moment(EncodedTable, "add", r"/cache/encoded/\w+/entries\.bin", None),
    Moment(FeatureStore, "_append", r"/cache/features/\S+", None),
    Moment(SupervisedTrainer, "_save_checkpoint", "/checkpoints/checkpoint-2", None),
    Moment(SupervisedTrainer, "_save_checkpoint", "/checkpoints/checkpoint-4", 2, 2, 1 << 16),
    Moment(RunDirectory, "append_metrics", r"/run/metrics\.jsonl", 2),
    Moment(SupervisedTrainer, "_save_rng_state", "/checkpoints/checkpoint-6", 4, 2),
    Moment(train_module, "_gather", "/run/adapter", 6),
]


def fill(disk, leave=0):
    """Write until nothing fits any more, and give some bytes back."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    os.truncate(ballast, max(ballast.stat().st_size - leave, 0))


def test_the_disk_fills_up_at_every_file_in_turn_and_the_run_goes_on(recipe, disk, monkeypatch):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(disk / "cache"))
    run = RunDirectory(disk / "run")
    page = recipe(PAGE)
    whole = {}
    save = RunDirectory.keep_newest

    def watch(self, number):
        save(self, number)
        newest = self.newest_checkpoint()
        whole[newest] = {path.name: path.read_bytes() for path in newest.iterdir()}

    monkeypatch.setattr(RunDirectory, "keep_newest", watch)
    for moment in MOMENTS:
        with monkeypatch.context() as patch:
            moment.arrange(patch, disk)
            with pytest.raises(RunError) as caught:
                train(page, run.root, resume=True)
        mend = "free some space"
        if "/cache/" in moment.unwritten:
            mend += " or set VARIFOCAL_CACHE to a folder on another disk,"
        assert re.fullmatch(
            rf"the disk is full: {disk}\S*{moment.unwritten} was not written, and what was saved "
            rf"before is untouched; {mend} and repeat the command with --resume",
            str(caught.value),
        ), (moment, str(caught.value))
        kept = [] if moment.kept is None else [run.checkpoints / f"checkpoint-{moment.kept}"]
        assert list(run.checkpoints.glob("*")) == kept, moment
        for path in kept:
            assert {file.name: file.read_bytes() for file in path.iterdir()} == whole[path]
        (disk / "ballast").unlink()
    assert not run.adapter.exists()
    told = []
    train(page, run.root, resume=True, progress=lambda *at: told.append(at))
    assert not [at for at in told if at[0] == "train"]  # the steps are done, and saved now
    assert [record["step"] for record in run.read_metrics()] == [3, 6]
    run.check_whole(run.adapter)
    assert not list(run.root.rglob(".*"))
