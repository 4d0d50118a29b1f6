"""Repeat on a real Slurm what the suite holds with commands that stand in for it; not part of CI.

    python tests/slurm/real.py [--proctrack linuxproc] [CHECK ...]

As root, where `slurm-wlm` and `munge` are installed. Two nodes on this machine, a tiny recipe in
float32, one thread a process; about ten minutes. Every daemon ends with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "training"), str(TESTS)]

import yaml  # noqa: E402
from cluster import NODES, Cluster, cluster  # noqa: E402

from conftest import save_language, save_towers, write_book  # noqa: E402
from varifocal.run import RunDirectory  # noqa: E402

STEPS, SAVE_EACH, TOLERANCE = 12, 4, 1e-5
SECONDS = 500  # for anything to happen
ENDED = ("CANCELLED", "COMPLETED", "FAILED", "TIMEOUT", "PREEMPTED", "NODE_FAIL")

# Found by every process: the first to write the first checkpoint says so, and waits until it is
# asked to stop; what asks a training to stop is the handler of SIGTERM.
WAITS = """
import os, signal, sys, time
def waits(event, args):
    here = os.environ.get("TRIAL_HERE")
    if event == "os.mkdir" and "checkpoint-4" in str(args[0]) and here and not os.path.exists(here):
        open(here, "w").close()
        end = time.monotonic() + 200
        while not getattr(signal.getsignal(signal.SIGTERM), "given", False):
            if time.monotonic() > end:
                break
            time.sleep(0.1)
sys.addaudithook(waits)
"""


@dataclass
class Trial:
    """A running Slurm, a tiny recipe, and what is asked of both.

    Args:
        slurm: where jobs are submitted.
        folder: of recipe, runs and cache.
    """

    slurm: Cluster
    folder: Path

    def write(self) -> None:
        """Write the models, the data and the recipe."""
        parts, book, hook = (self.folder / name for name in ("parts", "book", "hook"))
        parts.mkdir()
        save_language(parts / "language")
        save_towers(parts)
        write_book(book)
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(WAITS)
        recipe = {
            "seed": 5,
            "model": {
                "language_model": str(parts / "language"),
                "vision_tower": str(parts / "clip"),
                "connector": {"hidden_dim": 16, "num_tokens": 4, "num_global_tokens": 1},
                "dtype": "float32",
            },
            "tuner": {"type": "mma", "router_temperature": 1.0, "dropout": 0.0},
            "data": {
                "train": [{"path": str(book), "format": "scienceqa", "split": "train"}],
                "max_length": 160,
                "row_length": 320,
            },
            "training": {
                "max_steps": STEPS,
                "save_steps": SAVE_EACH,
                "per_device_train_batch_size": 2,
                "learning_rate": 1e-3,  # a high one magnifies rounding
                "warmup_steps": 2,
                "logging_steps": 1,
            },
        }
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(recipe))

    def varifocal(self, *words: object, here: Path | None = None) -> tuple[int, str, str]:
        """Run a command; return its exit code, its output and its errors."""
        paths = [self.folder / "hook", *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        env = {
            **self.slurm.env,
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "VARIFOCAL_CACHE": str(self.folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "TRIAL_HERE": "" if here is None else str(here),
        }
        command = [sys.executable, "-m", "varifocal.cli", *map(str, words)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=self.folder)
        return done.returncode, done.stdout, done.stderr

    def curve(self, run: Path) -> list[float]:
        """Return the losses of a run."""
        return [record["loss"] for record in RunDirectory(run).read_metrics()]

    def unbroken(self) -> list[float]:
        """Return the losses of a run of one process that nothing breaks."""
        run = self.folder / "unbroken"
        if not run.exists():
            code, _, said = self.varifocal("train", "tiny.yaml", "--out", run)
            assert code == 0, said
        return self.curve(run)

    def submit(self, name: str, *words: object) -> tuple[str, Path, Path]:
        """Submit a job; return its number, its run, and the file that says it has saved once."""
        run, here = self.folder / name, self.folder / f"{name}.here"
        code, said, errors = self.varifocal(
            *("launch", "tiny.yaml", "--out", run, "--slurm", "--time", "30", *words), here=here
        )
        assert code == 0, errors
        return said.split("submitted job ")[1].split(";")[0], run, here

    def wait_for(self, number: str, *states: str) -> dict[str, str]:
        """Wait until a job is in a state; it does not wait for the queue's own delays."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            found = self.slurm.job(number)
            if found.get("JobState") in states:
                return found
            if found.get("JobState") in ENDED:
                break
            if found.get("JobState") == "PENDING" and found.get("Reason") == "BeginTime":
                self.slurm.run("scontrol", "update", f"jobid={number}", "StartTime=now")
            time.sleep(1)
        raise AssertionError(f"job {number} is not {' or '.join(states)} but {found}")

    def until(self, what: str, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        end = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < end, f"{what} did not happen"
            time.sleep(0.2)

    def until_saving(self, here: Path) -> None:
        """Wait until a job writes its first checkpoint, where it waits for what is done to it."""
        self.until("the first checkpoint", here.exists)

    def assert_unbroken(self, run: Path) -> None:
        """Hold a run's losses next to those of one that nothing broke."""
        losses, expected = self.curve(run), self.unbroken()
        assert len(losses) == len(expected) == STEPS, (len(losses), self.log(run))
        apart = [abs(a - b) / abs(b) for a, b in zip(losses, expected, strict=True)]
        assert max(apart) < TOLERANCE, [f"{each:.1e}" for each in apart]

    def log(self, run: Path) -> str:
        """Return the end of what the jobs of a run wrote."""
        return "\n".join(file.read_text()[-3000:] for file in (run / "slurm").glob("*.out"))

    def assert_saved(self, run: Path) -> None:
        """Hold that a run was stopped, and has a checkpoint, after the step that it was at."""
        steps = RunDirectory(run).steps()
        assert steps, self.log(run)
        assert steps[-1] == SAVE_EACH + 1, steps  # of the step after the checkpoint


def one_process(trial: Trial) -> None:
    """Time is up: saved, requeued, ended."""
    _warned(trial, "one-process", processes=1, nodes=1)


def two_processes(trial: Trial) -> None:
    """The same."""
    _warned(trial, "two-processes", processes=2, nodes=1)


def two_nodes(trial: Trial) -> None:
    """The same; the announced output is the one with the progress."""
    _warned(trial, "two-nodes", processes=1, nodes=2)


def _warned(trial: Trial, name: str, processes: int, nodes: int) -> None:
    number, run, here = trial.submit(name, "--num-processes", processes, "--num-nodes", nodes)
    trial.until_saving(here)
    hours, minutes, _ = trial.slurm.job(number)["RunTime"].split(":")
    limit = int(hours) * 60 + int(minutes) + 3  # less than three minutes are left
    trial.slurm.run("scontrol", "update", f"jobid={number}", f"TimeLimit={limit}")
    assert trial.wait_for(number, "PENDING")["Restarts"] == "1", trial.log(run)
    trial.assert_saved(run)
    trial.slurm.run("scontrol", "update", f"jobid={number}", "TimeLimit=60")
    trial.wait_for(number, "COMPLETED", "FAILED")
    trial.assert_unbroken(run)
    shown = (run / "slurm" / f"{number}_0_log.out").read_text()
    assert f"{STEPS} steps" in shown, shown[-2000:]


def cancelled(trial: Trial) -> None:
    """`scancel`: saved, ended, and gone on with by a job that is submitted anew."""
    number, run, here = trial.submit("cancelled", "--num-processes", 2)
    trial.until_saving(here)
    trial.slurm.run("scancel", number)
    trial.wait_for(number, "CANCELLED")
    trial.until("the end of its processes", lambda: "the job was ended" in trial.log(run))
    trial.assert_saved(run)
    again, _, _ = trial.submit("cancelled", "--num-processes", 2, "--resume")
    trial.wait_for(again, "COMPLETED", "FAILED")
    trial.assert_unbroken(run)


def preempted(trial: Trial) -> None:
    """A partition that goes first, a grace time: saved, requeued, ended."""
    _preempted(trial, "low")


def preempted_to_cancel(trial: Trial) -> None:
    """The same, where the cluster would not requeue what it preempts."""
    _preempted(trial, "cancel")


def _preempted(trial: Trial, partition: str) -> None:
    asked = ("--num-processes", 1, "--partition", partition, "--cpus-per-node", 8)
    number, run, here = trial.submit(f"preempted-{partition}", *asked)
    trial.until_saving(here)
    both = ("sbatch", "--parsable", "-p", "high", "-N", "2", "-n", "2", "-c", "8")
    first = trial.slurm.run(*both, "-o", "/dev/null", "--wrap", "sleep 600").strip()
    assert trial.wait_for(number, "PENDING")["Restarts"] == "1", trial.log(run)
    trial.assert_saved(run)
    trial.slurm.run("scancel", first)
    trial.wait_for(number, "COMPLETED", "FAILED")
    trial.assert_unbroken(run)


def lost_node(trial: Trial) -> None:
    """A killed slurmd: Slurm requeues the job, and the processes that it lost give way."""
    asked = ("--num-processes", 1, "--sbatch", "nodelist=n1")
    number, run, here = trial.submit("lost", *asked)
    trial.until_saving(here)
    trial.slurm.kill("slurmd-n1")
    assert trial.wait_for(number, "PENDING")["Restarts"] == "1", trial.log(run)
    trial.slurm.run("scontrol", "update", f"jobid={number}", "ReqNodeList=n2")
    trial.wait_for(number, "COMPLETED", "FAILED")
    trial.assert_unbroken(run)
    trial.slurm.start_node("n1")
    trial.slurm.wait_until_idle()


def refused(trial: Trial) -> None:
    """What sbatch refuses is one sentence and leaves no file."""
    wrong = {
        "invalid partition specified": ("--partition", "gpus"),
        "unrecognized option": ("--sbatch", "no-such-option"),
        "Invalid generic resource": ("--sbatch", "gres=tpu:1"),
    }
    for expected, words in wrong.items():
        _assert_refused(trial, expected, *words)
    number, _, _ = trial.submit("large", "--num-processes", 1, "--cpus-per-node", 99)
    assert trial.slurm.job(number)["Reason"] == "PartitionConfig"  # taken, and never started
    trial.slurm.run("scancel", number)
    run = trial.folder / "twice"
    number, _, _ = trial.submit("twice", "--num-processes", 1, "--sbatch", "hold")
    before = sorted(run.rglob("*"))
    sentence = _refusal(trial, run, "--num-processes", 1)
    assert f"job {number} is there for {run} already and is PENDING" in sentence, sentence
    assert sorted(run.rglob("*")) == before
    trial.slurm.run("scancel", number)


def _refusal(trial: Trial, run: Path, *words: object) -> str:
    code, said, errors = trial.varifocal(
        *("launch", "tiny.yaml", "--out", run, "--slurm", *words, "--num-processes", 1)
    )
    assert (code, said) == (2, ""), (code, said, errors)
    assert errors.startswith("error: "), errors
    assert len(errors.splitlines()) == 1, errors
    return errors


def _assert_refused(trial: Trial, expected: str, *words: object) -> None:
    run = trial.folder / "refused"
    sentence = _refusal(trial, run, *words)
    assert expected in sentence, sentence
    assert not run.exists()
    print("   ", sentence.strip())


def full_queue(trial: Trial) -> None:
    """No more jobs are taken, then no controller answers: each a sentence."""
    held = trial.slurm.run("sbatch", "--hold", "--parsable", "--wrap", "true").strip()
    trial.slurm.limit_jobs(1)
    _assert_refused(trial, "Slurm refuses the job: ")
    trial.slurm.run("scancel", held)
    trial.slurm.kill("slurmctld")
    _assert_refused(trial, "Slurm refuses the job: ")


CHECKS = {
    check.__name__: check
    for check in (
        *(refused, one_process, two_processes, two_nodes, cancelled, preempted),
        *(preempted_to_cancel, lost_node, full_queue),
    )
}


@contextmanager
def known_nodes() -> Iterator[None]:
    """Let this machine find the nodes by their names while the block runs."""
    hosts = Path("/etc/hosts")
    line = f"127.0.0.1 {' '.join(NODES)}  # varifocal {os.getpid()}\n"
    hosts.write_text(hosts.read_text().rstrip("\n") + "\n" + line)
    try:
        yield
    finally:
        hosts.write_text(hosts.read_text().replace(line, ""))


def main() -> int:
    """Run the checks that are named, or all of them; the number of those that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=", ".join(CHECKS))
    parser.add_argument("--proctrack", default="cgroup", choices=("cgroup", "linuxproc"))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemons end, too
    failed = 0
    with tempfile.TemporaryDirectory(prefix="varifocal-slurm-") as name, known_nodes():
        folder = Path(name)
        (folder / "slurm").mkdir()
        with cluster(folder / "slurm", asked.proctrack) as slurm:
            trial = Trial(slurm, folder)
            trial.write()
            for check in asked.checks or CHECKS:
                began = time.monotonic()
                try:
                    CHECKS[check](trial)
                except Exception as error:  # the others are still worth running
                    failed += 1
                    print(f"FAILED {check}: {type(error).__name__}: {error}", flush=True)
                else:
                    print(f"ok {check}, {time.monotonic() - began:.0f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
