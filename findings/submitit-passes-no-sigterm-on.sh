#!/usr/bin/env bash
# submitit 1.5.4 takes SIGTERM in a job's task, logs it and does nothing else: a task with a
# `checkpoint` method is asked to save at SIGUSR2 alone. So `scancel`, and preemption where the
# cluster sends SIGTERM, end in SIGKILL with nothing saved, unless the task sets a handler of its own
# once it runs, as src/varifocal/training/slurm_job.py does. And what sbatch refuses leaves a pickle
# and a script in the folder:
#
#   SIGTERM: checkpoint called 0 times; the task goes on
#   SIGUSR2: checkpoint called 1 times
#   after a refusal: ['.submission_file_*.sh', '*.pkl']
#
# Exits 1 if submitit's behaviour changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q submitit==1.5.4
mkdir "$folder/bin"
for name in sbatch srun; do
    printf '#!/bin/bash\necho "sbatch: error: Invalid partition name specified" >&2\nexit 1\n' \
        >"$folder/bin/$name"
    chmod +x "$folder/bin/$name"
done
PATH="$folder/bin:$PATH" "$folder/venv/bin/python" - "$folder" 2>/dev/null <<'PYTHON'
import logging
import os
import re
import signal
import sys
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError
from submitit.slurm.slurm import SlurmJobEnvironment

folder = Path(sys.argv[1])
saved = []
logging.getLogger("submitit").setLevel(logging.CRITICAL)


class Task:
    def __call__(self):
        return 0

    def checkpoint(self):
        saved.append(True)  # None: it is not to be requeued


os.environ |= {"SLURM_JOB_ID": "7", "SUBMITIT_FOLDER": str(folder)}
environment = SlurmJobEnvironment()
environment._handle_signals(environment.paths, DelayedSubmission(Task()))
os.kill(os.getpid(), signal.SIGTERM)
print(f"SIGTERM: checkpoint called {len(saved)} times; the task goes on")
assert saved == []
try:
    os.kill(os.getpid(), signal.SIGUSR2)
except submitit.core.utils.UncompletedJobError:
    print(f"SIGUSR2: checkpoint called {len(saved)} times")
assert saved == [True]
executor = submitit.SlurmExecutor(folder / "jobs")
try:
    executor.submit(Task())
except FailedJobError:
    names = sorted(path.name for path in (folder / "jobs").iterdir())
    left = [re.sub(r"[0-9a-f]{32}", "*", name) for name in names]
    print(f"after a refusal: {left}")
    assert left == [".submission_file_*.sh", "*.pkl"]
else:
    raise AssertionError("it was not refused")
PYTHON
