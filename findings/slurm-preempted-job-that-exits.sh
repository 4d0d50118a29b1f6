#!/usr/bin/env bash
# Slurm 22.05.8 (Debian 12): a job under PreemptMode=REQUEUE that obeys the SIGTERM at the start of
# its grace time, that is, saves and exits, is not requeued. It counts as COMPLETED (or FAILED, with
# an exit code); only one that is still there when the grace time is over goes back into the queue:
#
#   exits 0   JobState COMPLETED  Restarts 0
#   requeues  JobState PENDING    Restarts 1
#
# So whoever saves at the signal has to call `scontrol requeue` as well, as the second job does
# (src/varifocal/training/slurm_job.py does). Meanwhile `scontrol show job` says RUNNING and has a
# PreemptTime; after `scancel` it says CANCELLED. Needs root and Debian's slurm-wlm and munge.
# Exits 1 if Slurm's behaviour changes.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
PYTHONPATH="$here/tests/slurm" python3 - "$folder" <<'PYTHON'
import sys
import time
from pathlib import Path

from cluster import cluster

TASK = """#!/bin/bash
trap '{then}; exit 0' TERM
touch {folder}/{name}
sleep 300 & wait
"""
EXPECTED = {"exits 0": ("COMPLETED", "0"), "requeues": ("PENDING", "1")}
folder = Path(sys.argv[1])
found = {}
with cluster(folder) as slurm:
    for name, then in (("exits 0", "true"), ("requeues", "scontrol requeue $SLURM_JOB_ID")):
        word = name.split()[0]
        script = folder / f"{word}.sh"
        script.write_text(TASK.format(then=then, folder=folder, name=word))
        script.chmod(0o700)
        both = ("sbatch", "--parsable", "-N2", "-n2", "-c8", "-o", "/dev/null")
        low = slurm.run(*both, "--requeue", "-p", "low", "--wrap", f"srun -N1 -n1 {script}").strip()
        while not (folder / word).exists():
            time.sleep(0.2)
        high = slurm.run(*both, "-p", "high", "--wrap", "sleep 60").strip()
        state = {}
        for _ in range(60):
            state = slurm.job(low)
            if state["JobState"] in ("COMPLETED", "PENDING", "FAILED"):
                break
            time.sleep(1)
        found[name] = (state["JobState"], state["Restarts"])
        print(f"{name:9} JobState {state['JobState']:10} Restarts {state['Restarts']}")
        slurm.run("scancel", low, high)
        slurm.wait_until_idle()
assert found == EXPECTED, found
PYTHON
