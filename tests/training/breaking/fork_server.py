"""Runs `varifocal` command lines in forked children, so that torch is imported once for all.

One JSON request a line on stdin, one answer a line on stdout. A child is killed with SIGKILL after
some seconds, or by itself at the n-th time that it touches a file once it has begun to write a
checkpoint or an adapter: a moment that a busy machine does not move.
"""

import json
import os
import signal
import sys
import time

import torch

import varifocal.cli.commands
import varifocal.cli.tables
import varifocal.training.train
from varifocal.training.trainer import SupervisedTrainer

TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}


def kill_at_touch(number):
    touched = [-1]

    def hook(event, arguments):
        if touched[0] < 0:
            begun = event == "os.mkdir" and "/.checkpoint-" in os.fsdecode(arguments[0])
            touched[0] = 0 if begun else -1
        elif event in TOUCHES:
            touched[0] += 1
            if touched[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def note_steps(path):
    step = SupervisedTrainer.training_step

    def training_step(self, *args, **kwargs):
        with open(path, "a") as file:
            file.write(f"{self.state.global_step + 1}\n")
        return step(self, *args, **kwargs)

    SupervisedTrainer.training_step = training_step


def child(request):
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ["VARIFOCAL_CACHE"] = request["cache"]
    note_steps(request["steps"])
    if request["touch"]:
        kill_at_touch(request["touch"])
    sys.argv = ["varifocal", *request["arguments"]]
    varifocal.cli.commands.main()


def wait(pid, seconds):
    """Wait for a child, and kill it if it is still there after some seconds."""
    end = time.monotonic() + seconds if seconds else None
    while end is not None and time.monotonic() < end:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    if end is not None:
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def serve() -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        begun = time.monotonic()
        process = os.fork()
        if process == 0:
            code = 1
            try:
                child(asked)
            except SystemExit as end:
                code = end.code or 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        ended = os.waitstatus_to_exitcode(wait(process, asked["seconds"]))
        sys.stdout.write(json.dumps({"code": ended, "seconds": time.monotonic() - begun}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
