"""The process of one arm: `python -m benchmarks.side_by_side.child ARM RECIPE DIRECTORY`."""

import os
import sys
import tempfile
from pathlib import Path

import torch
from benchmarks.side_by_side.arms import run_arm
from benchmarks.side_by_side.gate import PipeGate

from varifocal.recipe import load_recipe


def main() -> None:
    """Run the arm; what libraries print goes to the log."""
    arm, recipe, directory = sys.argv[1:]
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory(dir=directory) as run:
        run_arm(arm, load_recipe(Path(recipe)), Path(run) / "run", PipeGate(told))


if __name__ == "__main__":
    main()
