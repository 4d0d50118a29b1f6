"""How much processor time passes before a verb answers, in units of `import torch`.

    python benchmarks/startup.py [--repeats 3]

Runs `python -c "import torch"` and then, in an empty folder, mistakes of every kind, verbs that
need no model, verbs that import everything and stop before a weight is read, and, without Python's
garbage collector, the imports of other libraries that these verbs need, each added to the former
ones. Prints the CPU seconds (user and system, the least of the repeats) of each, and how many times
those of torch they are. What a process has compiled to bytecode is kept, as it is after an
installation.
"""

import argparse
import os
import resource
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

CLI = ("-m", "varifocal.cli")
RUN = "model: {language_model: smollm2-135m-instruct}\nprovenance: null\n"
EMPTY_RUN = "model: {language_model: %s}\nprovenance: null\n"
BASE = '{"model_type": "llama", "vocab_size": 32, "hidden_size": 8, "num_attention_heads": 2}'


@dataclass(frozen=True)
class Case:
    """A command and what it should take.

    Attributes:
        name: its line in the table.
        words: arguments of Python.
        target: most that it may take, as a multiple of `import torch`; None for no target.
        code: exit code that it has to end with.
    """

    name: str
    words: tuple[str, ...]
    target: float | None = None
    code: int = 0


def mistake(name: str, line: str) -> Case:
    """A command line with one thing wrong."""
    return Case(name, (*CLI, *line.split()), 0.3, 2)


def cases(port: int) -> list[Case]:
    """List what is measured.

    Args:
        port: one that is taken.
    """
    return [
        mistake("unknown option", "train demo --wrong 1"),
        mistake("recipe's path", "train nosuch.yaml"),
        mistake("recipe's key", "train demo --set training.max_stps=3"),
        mistake("recipe's value", "plan demo --set tuner.bottleneck_dim=x"),
        mistake("data path", "train demo --set data.root=nosuch"),
        mistake("base's name", "plan demo --set model.language_model=no/such"),
        mistake("device", "plan demo --device a200"),
        mistake("sweep's path", "sweep nosuch.yaml"),
        mistake("run of ask", "ask nosuch Why?"),
        mistake("image of ask", "ask run Why? --image no.png"),
        mistake("port of serve", f"serve run --port {port}"),
        mistake("run of eval", "eval nosuch"),
        mistake("run of export", "export nosuch --to merged"),
        mistake("runs of compare", "compare nosuch run"),
        mistake("run of report", "report nosuch"),
        mistake("run of analyze", "analyze routing nosuch"),
        Case("varifocal --help", (*CLI, "--help"), 0.3),
        Case("varifocal recipes", (*CLI, "recipes"), 0.3),
        Case("varifocal cache", (*CLI, "cache"), 0.3),
        Case("ask, before weights", (*CLI, "ask", "empty", "Why?"), 2.0, 2),
        *imports(),
        Case("plan of LaVIN-7B", (*CLI, "plan", "lavin-7b-scienceqa", "--device", "a100-80g")),
    ]


LIBRARIES = {
    "torch": "torch",
    "torch.distributed.tensor (transformers asks for it)": "torch.distributed.tensor",
    "torch._dynamo (transformers)": "torch._dynamo",
    "scipy.optimize (transformers)": "scipy.optimize",
    "transformers' PreTrainedModel": "transformers.modeling_utils",
    "the run's model class": "transformers.models.llama.modeling_llama",
    "bitsandbytes (PEFT)": "bitsandbytes",
    "PEFT": "peft",
}
"""What `ask` cannot do without, in the order in which each has the former ones in it: line of the
table -> module."""


def imports() -> list[Case]:
    """List imports of other libraries, each with all before it, as a verb imports them."""
    modules = list(LIBRARIES.values())
    script = "import gc; gc.disable(); import {}; gc.freeze()"
    return [
        Case(
            f"import {name}, no collector" if number == 0 else f"+ {name}",
            ("-c", script.format(", ".join(modules[: number + 1]))),
        )
        for number, name in enumerate(LIBRARIES)
    ]


def cpu_seconds(words: tuple[str, ...], folder: Path, code: int) -> float:
    """Run Python and return its processor time, user and system.

    Raises:
        SystemExit: it ended with another code.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stderr}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def prepare(folder: Path) -> None:
    """Write a run that looks whole, and one whose base has no weights."""
    base = folder / "base"
    for name, recipe in (("run", RUN), ("empty", EMPTY_RUN % base)):
        adapter = folder / name / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").write_text("{}")
        (folder / name / "recipe.yaml").write_text(recipe)
    base.mkdir()
    (base / "config.json").write_text(BASE)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="CPU seconds before a verb answers.")
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name, socket.socket() as taken:
        folder = Path(name)
        prepare(folder)
        taken.bind(("127.0.0.1", 0))
        taken.listen()

        def least(words: tuple[str, ...], code: int = 0) -> float:
            cpu_seconds(words, folder, code)  # writes the bytecode
            return min(cpu_seconds(words, folder, code) for _ in range(repeats))

        torch = least(("-c", "import torch"))
        print("| command | CPU s | x torch | target |\n| --- | ---: | ---: | ---: |")
        print(f"| import torch | {torch:.2f} | 1.00 | |", flush=True)
        for case in cases(taken.getsockname()[1]):
            seconds = least(case.words, case.code)
            target = "" if case.target is None else f"{case.target:g}"
            over = " (over)" if case.target is not None and seconds > case.target * torch else ""
            print(
                f"| {case.name} | {seconds:.2f} | {seconds / torch:.2f} | {target}{over} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
