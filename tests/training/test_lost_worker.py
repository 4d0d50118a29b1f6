"""A process that prepares data is killed, as the system does it for want of memory."""

import os
import signal

import pytest
from torch.utils.data import get_worker_info

from varifocal.data.encode import Encoder
from varifocal.data.packing import Collator
from varifocal.errors import RunError
from varifocal.run import RunDirectory
from varifocal.training.train import train

PAGE = {"training.max_steps": 4, "training.save_steps": 2, "data.num_workers": 2}
MEND = r"^a process that prepares data .* free memory or lower data\.num_workers .* --resume$"


def dies_in_a_worker(monkeypatch, kind, name, after=0):
    """Kill the first worker at its call of a method, once it has been called some times."""
    calls = [0]
    method = getattr(kind, name)

    def killed(self, *args, **kwargs):
        calls[0] += 1
        worker = get_worker_info()
        if worker is not None and worker.id == 0 and calls[0] > after:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(self, *args, **kwargs)

    monkeypatch.setattr(kind, name, killed)


def test_a_killed_worker_of_the_loader_is_a_sentence_and_resumed(recipe, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        dies_in_a_worker(patch, Collator, "__call__", after=1)
        with pytest.raises(RunError, match=MEND):
            train(recipe(PAGE), run.root)
    assert train(recipe(PAGE), run.root, resume=True).steps == 4


def test_a_killed_worker_that_encodes_is_a_sentence_and_begun_again(recipe, tmp_path, monkeypatch):
    run = RunDirectory(tmp_path / "run")
    with monkeypatch.context() as patch:
        dies_in_a_worker(patch, Encoder, "encode", after=3)
        with pytest.raises(RunError, match=MEND):
            train(recipe(PAGE), run.root)
    assert train(recipe(PAGE), run.root, resume=True).steps == 4
