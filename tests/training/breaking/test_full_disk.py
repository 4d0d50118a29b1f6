"""A disk that is really full, at every file that a training writes."""

import re
from dataclasses import dataclass
from functools import partial

import pytest

from varifocal.data.encoding.encoded import EncodedTable
from varifocal.errors import RunError
from varifocal.models.features import FeatureStore
from varifocal.run import RunDirectory
from varifocal.training import train as train_module
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer

PAGE = {
    "training.max_steps": 6,
    "training.save_steps": 2,
    "training.logging_steps": 3,
    "training.save_total_limit": 1,
    "tuner.adapt_vision_tower": False,
}


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


MOMENTS = [
    Moment(EncodedTable, "add", r"/cache/encoded/\w+/entries\.bin", None),
    Moment(FeatureStore, "_append", r"/cache/features/\S+", None),
    Moment(SupervisedTrainer, "_save_checkpoint", "/checkpoints/checkpoint-2", None),
    Moment(SupervisedTrainer, "_save_checkpoint", "/checkpoints/checkpoint-4", 2, 2, 1 << 16),
    Moment(RunDirectory, "append_metrics", r"/run/metrics\.jsonl", 2),
    Moment(SupervisedTrainer, "_save_rng_state", "/checkpoints/checkpoint-6", 4, 2),
    Moment(train_module, "_gather", "/run/adapter", 6),
]


def test_the_disk_fills_up_at_every_file_in_turn_and_the_run_goes_on(
    recipe, disk, before_call, monkeypatch
):
    monkeypatch.setenv("VARIFOCAL_CACHE", str(disk.root / "cache"))
    run = RunDirectory(disk.root / "run")
    page = recipe(PAGE)
    whole = {}
    keep = RunDirectory.keep_newest

    def watch(self, number, spared=None):
        keep(self, number, spared)
        newest = self.newest_checkpoint()
        whole[newest] = {path.name: path.read_bytes() for path in newest.iterdir()}

    monkeypatch.setattr(RunDirectory, "keep_newest", watch)
    for moment in MOMENTS:
        fill = partial(disk.fill, moment.leave)
        with (
            before_call(moment.owner, moment.name, fill, moment.call),
            pytest.raises(RunError) as caught,
        ):
            run_training(page, run.root, resume=True)
        fix = "free some space"
        if "/cache/" in moment.unwritten:
            fix += " or set VARIFOCAL_CACHE to a folder on another disk,"
        assert re.fullmatch(
            rf"the disk is full: {disk.root}\S*{moment.unwritten} was not written, and what was "
            rf"saved before is untouched; {fix} and repeat the command with --resume",
            str(caught.value),
        ), (moment, str(caught.value))
        kept = [] if moment.kept is None else [run.checkpoints / f"checkpoint-{moment.kept}"]
        assert list(run.checkpoints.glob("*")) == kept, moment
        for path in kept:
            assert {file.name: file.read_bytes() for file in path.iterdir()} == whole[path]
        disk.free()
    assert not run.adapter.exists()
    told = []
    run_training(page, run.root, resume=True, progress=lambda *at: told.append(at))
    # the steps are done, and saved now: training is told of once, where it goes on from
    assert [at for at in told if at[0] == "train"] == [("train", 6, 6)]
    assert [record["step"] for record in run.read_metrics()] == [3, 6]
    run.check_weights(run.adapter)
    assert [path.name for path in run.root.rglob(".*")] == [".varifocal"]
