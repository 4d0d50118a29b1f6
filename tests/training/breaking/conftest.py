"""Ways to break a training: a disk that fills up, a killed worker, a gradient that is no number."""

import contextlib
import os
import signal
import subprocess

import pytest
from torch.utils.data import get_worker_info

from varifocal.training.trainer import SupervisedTrainer


class Disk:
    """A small file system in memory, and a ballast file that fills it."""

    def __init__(self, root):
        self.root, self.ballast = root, root / "ballast"

    def fill(self, leave=0):
        """Write until nothing fits any more, and give some bytes back."""
        with self.ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(b"\0" * 4096):
                pass
        os.truncate(self.ballast, max(self.ballast.stat().st_size - leave, 0))

    def free(self):
        self.ballast.unlink()


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MiB; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    with contextlib.suppress(OSError):
        if subprocess.run(mount, capture_output=True).returncode == 0:
            yield Disk(place)
            subprocess.run(["umount", "-l", str(place)], check=True)
            return
    pytest.skip("no file system can be mounted here")


@pytest.fixture
def before_call():
    """Do something just before the n-th call of a function, and tell whether it was done.

    `with before_call(owner, name, act, call=2): ...`
    """

    @contextlib.contextmanager
    def arrange(owner, name, act, call=1):
        function, calls = getattr(owner, name), []

        def acted(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                act()
            return function(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, acted)
            yield

    return arrange


def _die_in_worker():
    worker = get_worker_info()
    if worker is not None and worker.id == 0:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def killed_worker(before_call):
    """Kill the first data worker at its n-th call of a method: `killed_worker(kind, name, 2)`."""
    return lambda kind, name, call: before_call(kind, name, _die_in_worker, call)


@pytest.fixture
def poisoned():
    """Put a number into one gradient of one step: `with poisoned(3, nan) as before: ...`.

    `before` holds the model and its trained weights as they were before that step.
    """

    @contextlib.contextmanager
    def poison(at, number):
        step, before = SupervisedTrainer.training_step, {}

        def training_step(self, model, *args, **kwargs):
            loss = step(self, model, *args, **kwargs)
            if self.state.global_step + 1 == at:
                named = [(n, p) for n, p in model.named_parameters() if p.grad is not None]
                before.update({name: each.detach().clone() for name, each in named}, model=model)
                named[-1][1].grad.view(-1)[0] = number
            return loss

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SupervisedTrainer, "training_step", training_step)
            yield before

    return poison
