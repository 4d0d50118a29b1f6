"""One run is broken in every way in turn, and ends as the run that nothing broke."""

import json
import multiprocessing
import os
import re
import signal
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from varifocal.data.rows.packing import Collator
from varifocal.errors import ModelError, RunError
from varifocal.run import RunDirectory, checkpoint_step
from varifocal.training.train import run_training
from varifocal.training.trainer import SupervisedTrainer


@pytest.fixture
def page(recipe, tmp_path, new_language):
    """Packed rows, images, dropout and two workers, on a base that may be changed."""
    new_language(tmp_path / "language")
    return recipe(
        {
            "model.language_model": str(tmp_path / "language"),
            "tuner.dropout": 0.3,
            "data.num_workers": 2,
            "training.max_steps": 8,
            "training.save_steps": 2,
            "training.save_total_limit": 2,
        }
    )


class Broken:
    """A run, and what breaks it: each way goes on with it, breaks it, and looks at the sentence."""

    def __init__(self, page, run, language, disk):
        self.page, self.run, self.language, self.disk = page, run, language, disk

    def go_on(self):
        """Resume; return the steps that were taken."""
        taken = []
        run_training(self.page, self.run.root, resume=True, progress=lambda *at: taken.append(at))
        _start, *steps = [step for stage, step, *_ in taken if stage == "train"]
        return steps

    def fails(self, sentence, kind=RunError):
        with pytest.raises(kind) as caught:
            self.go_on()
        assert re.search(sentence, str(caught.value)), str(caught.value)

    def is_killed(self, before_call):
        """SIGKILL in the middle of the second checkpoint."""
        with before_call(SupervisedTrainer, "_save_rng_state", _kill_this_process, call=2):
            process = multiprocessing.get_context("fork").Process(target=self.go_on)
            process.start()
            process.join()
        assert process.exitcode == -signal.SIGKILL
        assert list(self.run.checkpoints.glob(".checkpoint-4.*"))

    def loses_a_worker(self, killed_worker):
        with killed_worker(Collator, "__call__", 3):
            self.fails(r"^a process that prepares data .* lower data\.num_workers .* --resume$")

    def finds_the_disk_full(self, before_call):
        fill = partial(self.disk.fill, 1 << 16)
        with before_call(SupervisedTrainer, "_save_checkpoint", fill, call=2):
            self.fails(r"^the disk is full: \S+ was not written.* free some space .* --resume$")
        self.disk.free()

    def meets_a_nan(self, poisoned):
        newest = checkpoint_step(self.run.newest_checkpoint())
        with poisoned(newest + 2, float("nan")):
            self.fails(
                rf"^step {newest + 2} of 8: .* norm of its gradient nan, .* not learned from\. "
                rf"lower training\.learning_rate .*; checkpoint-{newest} is kept, and --resume"
            )

    def has_a_damaged_checkpoint(self):
        _flip_a_bit(self.run.newest_checkpoint() / "adapter_model.safetensors")

    def has_another_base(self):
        file = self.language / "model.safetensors"
        _flip_a_bit(file)
        self.fails(r"content hash .* give back the former files", ModelError)
        _flip_a_bit(file)


def _kill_this_process():
    os.kill(os.getpid(), signal.SIGKILL)


def _flip_a_bit(file):
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def curve(run):
    """What a run logged, without the clock."""
    return [
        {key: value for key, value in record.items() if key != "tokens_per_second"}
        for record in run.read_metrics()
    ]


@pytest.mark.slow
def test_a_run_that_is_broken_in_every_way_ends_as_an_unbroken_one(
    page, tmp_path, disk, before_call, killed_worker, poisoned
):
    reference = RunDirectory(tmp_path / "reference")
    run_training(page, reference.root)
    run = RunDirectory(disk.root / "run")
    broken = Broken(page, run, tmp_path / "language", disk)

    def newest():
        return checkpoint_step(run.newest_checkpoint())

    broken.is_killed(before_call)
    assert newest() == 2
    broken.loses_a_worker(killed_worker)
    assert newest() == 4
    broken.finds_the_disk_full(before_call)
    assert newest() == 6
    broken.meets_a_nan(poisoned)
    assert newest() == 6
    broken.has_another_base()
    assert newest() == 6
    broken.has_a_damaged_checkpoint()
    assert broken.go_on() == [5, 6, 7, 8]

    assert curve(run) == curve(reference)
    mine, theirs = (
        load_file(each.adapter / "adapter_model.safetensors") for each in (run, reference)
    )
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    told = json.loads((run.root / "training.json").read_text())["passed_over"]
    assert len(told) == 1
    assert "checkpoint-6 is damaged: adapter_model.safetensors holds other bytes" in told[0]
    assert [path.name for path in run.root.rglob(".*")] == [".varifocal"]
