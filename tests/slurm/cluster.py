"""Start a real Slurm of two nodes on this machine, as root, in a folder of its own.

Debian's `slurm-wlm` and `munge` are needed. The key, the sockets, the ports and all state are the
cluster's own; every daemon ends with the `with` block.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("n1", "n2")
_CPUS = 8  # of a node, whatever this machine has
_SECONDS_TO_START = 60
_CONFIG = """\
ClusterName=varifocal
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SlurmdTimeout=20
KillWait=30
ReturnToService=2
MaxJobCount=50
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=1
GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=120
PartitionName=cancel Nodes=ALL PriorityTier=1 PreemptMode=CANCEL GraceTime=120
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=ALL PriorityTier=1 MaxTime=5
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
    "CPUs={cpus} RealMemory=4000 Gres=gpu:{cpus}"
)


@dataclass
class Cluster:
    """A running Slurm.

    Args:
        folder: of its files.
        proctrack: how it finds a job's processes, `cgroup` or `linuxproc`.
    """

    folder: Path
    proctrack: str = "cgroup"
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """What Slurm's commands need in their environment."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def run(self, *words: str, check: bool = True) -> str:
        """Run one of Slurm's commands and return what it prints."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
        return done.stdout + (done.stderr if not check else "")

    def job(self, number: str) -> dict[str, str]:
        """Return what Slurm knows of a job; nothing once it is forgotten."""
        words = self.run("scontrol", "show", "job", number, "-o", check=False).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def start_node(self, name: str) -> None:
        """Start a node's daemon."""
        self._start(f"slurmd-{name}", "slurmd", "-D", "-N", name)

    def kill(self, daemon: str) -> None:
        """Kill a daemon, as a machine's fault would."""
        process = self.daemons.pop(daemon)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def _start(self, name: str, *words: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                words, env=self.env, stdout=out, stderr=out, start_new_session=True
            )

    def start(self) -> None:
        """Write the configuration, start every daemon and wait until the nodes are idle."""
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        self._configure()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        sockets = [f"--{word}={self.folder}/munge.{word}" for word in ("socket", "pid", "seed")]
        files = [f"--key-file={key}", f"--log-file={self.folder}/munge.log"]
        names = [
            word.replace("pid=", "pid-file=").replace("seed=", "seed-file=") for word in sockets
        ]
        self._start("munged", "munged", "-F", "--force", *names, *files)
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def _configure(self) -> None:
        host = socket.gethostname().split(".")[0]
        control, *ports = _free_ports(1 + len(NODES))
        nodes = [
            _NODE.format(name=name, host=host, port=port, cpus=_CPUS)
            for name, port in zip(NODES, ports, strict=True)
        ]
        text = _CONFIG.format(
            host=host,
            port=control,
            folder=self.folder,
            proctrack=self.proctrack,
            nodes="\n".join(nodes),
        )
        (self.folder / "slurm.conf").write_text(text)
        for number in range(_CPUS):  # plain files do for GPUs, which nobody opens
            (self.folder / f"gpu{number}").touch()
        gpus = f"NodeName={','.join(NODES)} Name=gpu File={self.folder}/gpu[0-{_CPUS - 1}]\n"
        (self.folder / "gres.conf").write_text(gpus)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")

    def limit_jobs(self, number: int) -> None:
        """Let the queue take no more than a number of jobs; the controller starts anew."""
        config = self.folder / "slurm.conf"
        text = re.sub(r"^MaxJobCount=.*$", f"MaxJobCount={number}", config.read_text(), flags=re.M)
        config.write_text(text)
        self.kill("slurmctld")
        self._start("slurmctld", "slurmctld", "-D")
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Wait until every node can take jobs.

        Raises:
            RuntimeError: one cannot.
        """
        end, states = time.monotonic() + _SECONDS_TO_START, list[str]()
        while time.monotonic() < end:
            states = self.run("sinfo", "-h", "-N", "-p", "low", "-o", "%t", check=False).split()
            if states == ["idle"] * len(NODES):
                return
            time.sleep(0.5)
        said = (self.folder / "slurmctld.log").read_text().splitlines()[-8:]
        raise RuntimeError("\n".join([f"the nodes are {states} and not idle; slurmctld:", *said]))

    def stop(self) -> None:
        """End every job, every daemon, and what a killed daemon may have left."""
        with suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--signal=KILL", "--full", "-u", "root", check=False)
            self.run("scancel", "-u", "root", check=False)
            time.sleep(2)
        for process in reversed(self.daemons.values()):
            process.terminate()
        for process in self.daemons.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self._left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        """Find the processes that have this Slurm's configuration in their environment."""
        ours, found = f"SLURM_CONF={self.folder}/slurm.conf".encode(), []
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if int(place.name) != os.getpid() and ours in (place / "environ").read_bytes():
                    found.append(int(place.name))
        return found


def _free_ports(number: int) -> list[int]:
    """Find ports that nobody listens on."""
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextmanager
def cluster(folder: Path, proctrack: str = "cgroup") -> Iterator[Cluster]:
    """Run a Slurm while the block runs.

    Raises:
        RuntimeError: it is not installed, or its nodes did not come up.
    """
    missing = [word for word in ("slurmctld", "slurmd", "munged") if shutil.which(word) is None]
    if missing:
        raise RuntimeError(f"no {', '.join(missing)} here: apt-get install slurm-wlm munge")
    made = Cluster(folder, proctrack)
    try:
        made.start()
        yield made
    finally:
        made.stop()
