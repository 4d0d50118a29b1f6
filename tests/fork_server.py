"""Runs `varifocal` and `python` command lines in forked children: torch is imported once for all.

`python fork_server.py SOCKET` serves; a client sends its arguments, folder and environment with its
three standard files, and gets the exit code back.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORTED = (
    "varifocal.assemble",
    "varifocal.cli.chat",
    "varifocal.cli.commands",
    "varifocal.cli.tables",
    "varifocal.demo",
    "varifocal.evaluation.runner",
    "varifocal.exporting.export",
    "varifocal.planning.plan",
    "varifocal.training.train",
)

CLIENT = """
import array, json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect(sys.argv[1])
asked = {"arguments": sys.argv[2:], "cwd": os.getcwd(), "env": dict(os.environ)}
socket.send_fds(link, [json.dumps(asked).encode()], [0, 1, 2])
link.shutdown(socket.SHUT_WR)
sys.exit(int(link.recv(16) or 1))
"""
"""What stands in for both programs; started without site, it costs hundredths of a second."""


class Forks:
    """A server of forks, and the processes that are asked of it.

    Args:
        folder: an empty one, for the socket.
    """

    def __init__(self, folder):
        self.socket = folder / "socket"
        paths = f"{ROOT / 'src'}:{ROOT}"
        self._server = subprocess.Popen(
            [sys.executable, __file__, str(self.socket)],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
            text=True,
        )
        if self._server.stdout.readline() != "ready\n":
            raise RuntimeError("the server of forks did not start")

    def start(self, arguments, files, env=None, cwd=None):
        """Start a process on its three standard files; `exit_code` waits for its end."""
        link = socket.socket(socket.AF_UNIX)
        link.connect(str(self.socket))
        asked = {
            "arguments": [str(each) for each in arguments],
            "cwd": str(cwd or Path.cwd()),
            "env": {**os.environ, **(env or {})},
        }
        socket.send_fds(link, [json.dumps(asked).encode()], files)
        link.shutdown(socket.SHUT_WR)
        return link

    def run(self, arguments, env=None, cwd=None):
        """Run a command line to its end, as `subprocess.run` with its output captured."""
        with (
            open(os.devnull) as nothing,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as errors,
        ):
            files = [each.fileno() for each in (nothing, out, errors)]
            code = exit_code(self.start(arguments, files, env, cwd))
            for each in (out, errors):
                each.seek(0)
            return subprocess.CompletedProcess(arguments, code, out.read(), errors.read())

    def close(self):
        self._server.kill()
        self._server.wait()
        self._server.stdout.close()


def exit_code(link):
    """Wait for the end of a process: its exit code, or minus the signal that killed it."""
    with link:
        return int(link.recv(16))


def answer(connection):
    """Do what is asked, in a child, and send its exit code."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while more := connection.recv(1 << 20):
        message += more
    asked = json.loads(message)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    child = os.fork()
    if child == 0:
        connection.close()
        code = run(asked["arguments"])
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    for number in range(len(files)):  # whoever reads the child's output sees its end
        os.close(number)
    _, status = os.waitpid(child, 0)
    connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def run(arguments):
    """Run one command line and return its exit code."""
    try:
        if arguments[0] == "varifocal":
            sys.argv = arguments
            sys.modules["varifocal.cli.commands"].main()
        elif arguments[1] == "-m":
            sys.argv = arguments[2:]
            runpy.run_module(arguments[2], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments[1:]
            sys.path[0] = os.path.dirname(os.path.abspath(arguments[1]))
            runpy.run_path(arguments[1], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def serve(path):
    """Answer until the process is ended."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy every page
    # No torch.set_num_threads here: the pool that it makes does not outlive two forks.
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            answer(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    serve(sys.argv[1])
