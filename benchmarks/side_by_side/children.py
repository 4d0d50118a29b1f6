"""A process for each arm, which takes a step when it is asked to."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, TextIO, cast

ROOT = Path(__file__).parents[2]
OF_BEFORE = {"before": "varifocal", "before_plain": "varifocal_plain"}
"""An arm that an earlier revision runs, and its name there."""


def check_out(revision: str, directory: Path) -> Path:
    """Give a revision a source tree of its own; it is found again by its commit.

    Raises:
        SystemExit: git knows no such revision.
    """
    named = ["rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}"]
    found = subprocess.run(["git", *named], cwd=ROOT, capture_output=True, text=True)
    commit = found.stdout.strip()
    if not commit:
        raise SystemExit(f"--before {revision}: git knows no such revision; name a commit or a tag")
    root = directory / f"before-{commit[:12]}"
    if not root.is_dir():
        archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True)
        root.mkdir(parents=True)
        subprocess.run(["tar", "-x"], cwd=root, input=archive.stdout, check=True)
    return root


class Child:
    """An arm in a process of its own.

    Args:
        arm: its name.
        recipe: the recipe's file.
        directory: for what it writes; its feature table and its compiled code stay there, too.
        threads: that it computes with.
        root: of the source tree that runs; a revision's for the arms of `before`.

    Attributes:
        start: what its gate said when all was loaded; empty before `wait`.
    """

    def __init__(
        self, arm: str, recipe: Path, directory: Path, threads: int, root: Path = ROOT
    ) -> None:
        directory = directory if root == ROOT else directory / "before"
        directory.mkdir(parents=True, exist_ok=True)
        own = {
            "OMP_NUM_THREADS": str(threads),
            "VARIFOCAL_CACHE": str(directory / "cache"),
            "TORCHINDUCTOR_CACHE_DIR": str(directory / "compiled"),
            "PYTHONPATH": os.pathsep.join([str(root / "src"), str(root)]),
        }
        named = OF_BEFORE.get(arm, arm)
        command = [sys.executable, "-m", "benchmarks.side_by_side.child", named, str(recipe)]
        self.arm = arm
        self.log = directory / f"{arm}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, str(directory)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **own},
                cwd=root,
                text=True,
            )
        self.start: dict[str, Any] = {}

    def wait(self) -> dict[str, Any]:
        """Wait until it is loaded; return what its gate said."""
        self.start = self._hear()
        return self.start

    def step(self) -> dict[str, Any]:
        """Let it take a step; return what was measured."""
        asked = cast(TextIO, self.process.stdin)
        asked.write("go\n")
        asked.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        line = cast(TextIO, self.process.stdout).readline()
        if not line:
            raise SystemExit(f"{self.arm} ended:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        cast(TextIO, self.process.stdin).close()
        self.process.wait()
