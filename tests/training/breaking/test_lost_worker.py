"""A process that prepares data is killed, as the system does it for want of memory."""

import os
import signal

import pytest
from torch.utils.data import get_worker_info

from varifocal.data.encoding.encoder import Encoder
from varifocal.data.parallel import lost_worker_is_an_error
from varifocal.data.rows.packing import Collator
from varifocal.errors import RunError
from varifocal.run import RunDirectory
from varifocal.training.train import run_training

PAGE = {"training.max_steps": 4, "training.save_steps": 2, "data.num_workers": 2}
MEND = r"^a process that prepares data .* free memory or lower data\.num_workers .* --resume$"


@pytest.mark.slow
def test_a_killed_worker_of_the_loader_is_a_sentence_and_resumed(recipe, tmp_path, killed_worker):
    run = RunDirectory(tmp_path / "run")
    with killed_worker(Collator, "__call__", 2), pytest.raises(RunError, match=MEND):
        run_training(recipe(PAGE), run.root)
    assert run_training(recipe(PAGE), run.root, resume=True).steps == 4


def test_a_worker_outlives_the_sigterm_of_a_launcher(recipe, tmp_path, before_call):
    """It is sent to all processes, and the step in hand, whose end is saved, needs its rows."""

    def terminate():
        if get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGTERM)

    with before_call(Collator, "__call__", terminate, 2):
        assert run_training(recipe(PAGE), tmp_path / "run").steps == 4


def test_a_lost_worker_is_told_of_once(recipe, tmp_path, killed_worker):
    """Not at the end of another child, while its error is still in somebody's hands."""
    with killed_worker(Collator, "__call__", 2), pytest.raises(RunError) as caught:
        run_training(recipe(PAGE), tmp_path / "run")
    assert caught.match(MEND)
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL


def test_a_broken_connection_to_a_worker_is_a_lost_worker():
    """Of a worker that dies with a batch in its hands; torch may notice it only afterwards."""

    def _try_get_data(kind):
        raise kind

    told = lost_worker_is_an_error(_try_get_data)
    for kind in (ConnectionResetError, ConnectionRefusedError, EOFError):
        with pytest.raises(RunError, match=MEND):
            told(kind)
    for kind in (ValueError("x"), RuntimeError("x")):
        with pytest.raises(type(kind), match=r"^x$"):
            told(kind)

    @lost_worker_is_an_error
    def elsewhere():
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        elsewhere()


@pytest.mark.slow
def test_a_killed_worker_that_encodes_is_a_sentence_and_begun_again(
    recipe, tmp_path, killed_worker
):
    run = RunDirectory(tmp_path / "run")
    with killed_worker(Encoder, "encode", 4), pytest.raises(RunError, match=MEND):
        run_training(recipe(PAGE), run.root)
    assert run_training(recipe(PAGE), run.root, resume=True).steps == 4
