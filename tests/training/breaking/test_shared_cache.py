"""Processes that fill one cache at once, and one that is killed while it holds the cache's lock."""

import faulthandler
import fcntl
import hashlib
import multiprocessing
import os
import signal
from types import SimpleNamespace

import pytest
import torch

import varifocal.data.encoding.encoded
import varifocal.models.features
from varifocal.models.features import DIGEST_BYTES, FeatureStore
from varifocal.run import RunDirectory
from varifocal.training.train import run_training

pytestmark = pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")

FORK = multiprocessing.get_context("fork")  # torch is imported already
SECONDS = 200  # a lock that is held for ever ends the test, on a busy machine too
SHAPE, NUM_IMAGES, BATCH = (3, 5), 40, 4
ROW_BYTES = 3 * 5 * 4
MODULES = {"encoded": varifocal.data.encoding.encoded, "features": varifocal.models.features}


def start(work, *args):
    def watched():
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        work(*args)

    process = FORK.Process(target=watched)
    process.start()
    return process


def end(*processes):
    for process in processes:
        process.join(SECONDS)
    assert [process.exitcode for process in processes] == [0] * len(processes)


class Image:
    def __init__(self, number):
        self.number = number

    def fingerprint(self):
        return hashlib.sha256(bytes([self.number])).hexdigest()


def features(images):
    found = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(p.number)) for p in images]
    return torch.stack(found)


IMAGES = [Image(number) for number in range(NUM_IMAGES)]


def fill(directory, on_first=None):
    """Fill the table and look everything up; do something when the first batch is computed."""
    first = [on_first] if on_first else []

    def compute(images):
        if first:
            first.pop()()
        return features(images)

    store = FeatureStore(compute, SHAPE, torch.float32, directory, BATCH)
    assert torch.equal(store(IMAGES), features(IMAGES))


def assert_whole(directory):
    """Every image stands there once, and nothing else does."""

    def refuse(images):
        raise AssertionError("an image is missing")

    assert (directory / "keys.bin").stat().st_size == NUM_IMAGES * DIGEST_BYTES
    assert (directory / "features.bin").stat().st_size == NUM_IMAGES * ROW_BYTES
    found = FeatureStore(refuse, SHAPE, torch.float32, directory)(IMAGES)
    assert torch.equal(found, features(IMAGES))


def hold(module, held, leave=lambda: None):
    """From now on, whoever takes a module's lock keeps it, with half of its work done."""

    def flock(file, how):
        fcntl.flock(file, how)
        leave()
        held.set()
        signal.pause()

    module.fcntl = SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX)


def test_processes_that_begin_at_once_fill_one_table(tmp_path):
    met = FORK.Barrier(3)
    end(*(start(fill, tmp_path / "table", lambda: met.wait(SECONDS)) for _ in range(3)))
    assert_whole(tmp_path / "table")


@pytest.mark.parametrize(
    ("rows", "keys"),
    [(0, 0), (ROW_BYTES // 2, 0), (BATCH * ROW_BYTES, 0), (BATCH * ROW_BYTES, DIGEST_BYTES + 8)],
    ids=["nothing", "half a row", "rows", "rows and a half key"],
)
def test_one_that_is_killed_in_the_middle_of_writing_stops_nobody(tmp_path, rows, keys):
    table, held, near = tmp_path / "table", FORK.Event(), FORK.Event()

    def leave():
        part = IMAGES[:BATCH]
        digests = b"".join(bytes.fromhex(each.fingerprint()) for each in part)
        for name, written in [
            ("features.bin", features(part).numpy().tobytes()[:rows]),
            ("keys.bin", digests[:keys]),
        ]:
            with (table / name).open("ab") as file:
                file.write(written)

    def dies():
        hold(varifocal.models.features, held, leave)
        fill(table)

    killed = start(dies)
    assert held.wait(SECONDS)
    other = start(fill, table, near.set)
    assert near.wait(SECONDS)
    os.kill(killed.pid, signal.SIGKILL)
    end(other)
    assert_whole(table)


@pytest.mark.slow
@pytest.mark.parametrize("lock", ["encoded", "features"])
def test_runs_that_share_a_cache_learn_what_one_alone_learns(recipe, tmp_path, lock):
    """Two begin while a third one holds a lock; it is killed, and they go on."""
    page = recipe({"tuner": {"type": "none", "train_connector": True}, "training.max_steps": 3})
    run_training(page, tmp_path / "alone")
    held, near = FORK.Event(), FORK.Semaphore(0)

    def run(name, prepare):
        os.environ["VARIFOCAL_CACHE"] = str(tmp_path / "shared")
        prepare()
        run_training(page, tmp_path / name)

    def tell():
        def flock(file, how):
            near.release()
            fcntl.flock(file, how)

        MODULES[lock].fcntl = SimpleNamespace(flock=flock, LOCK_EX=fcntl.LOCK_EX)

    killed = start(run, "killed", lambda: hold(MODULES[lock], held))
    assert held.wait(SECONDS)
    names = ("one", "other")
    others = [start(run, name, tell) for name in names]
    assert all(near.acquire(timeout=SECONDS) for _ in others)
    os.kill(killed.pid, signal.SIGKILL)
    end(*others)
    losses = [
        [record["loss"] for record in RunDirectory(tmp_path / name).read_metrics()]
        for name in ("alone", *names)
    ]
    assert len(losses[0]) == 3
    for found in losses[1:]:
        assert found == pytest.approx(losses[0], rel=1e-5)
