"""Runs `varifocal` and `python` command lines in forked children: torch is imported once for all.

`python fork_server.py SOCKET` serves; a client sends its arguments, folder and environment with its
three standard files, and gets the exit code back.
"""

import contextlib
import json
import os
import runpy
import socket
import sys
import traceback

import torch

import varifocal.assemble
import varifocal.cli.chat
import varifocal.cli.commands
import varifocal.cli.tables
import varifocal.demo
import varifocal.evaluation.runner
import varifocal.exporting.export
import varifocal.training.train

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


def answer(connection):
    """Do what is asked, in a child, and tell its exit code."""
    message, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while more := connection.recv(1 << 20):
        message += more
    asked = json.loads(message)
    for number, file in enumerate(files):
        os.dup2(file, number)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    code = run(asked["arguments"])
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    connection.sendall(str(code).encode())
    os._exit(0)


def run(arguments):
    """Run one command line and return its exit code."""
    try:
        if arguments[0] == "varifocal":
            sys.argv = arguments
            varifocal.cli.commands.main()
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
    torch.set_num_threads(1)
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
