"""Starts Python commands as forks of one process that has torch, timm and Snakemake loaded: a job's start takes 0.1 s, not 6.

Most of a small job's time on the tests' two cores is imports. What is forked runs the same module with the same arguments,
environment, folder, umask and open standard files, and its exit code or signal comes back through client.py, the command
that stands for Python. What is not carried over: process groups and limits of the caller; a test of those starts the real one.

`python server.py SOCKET` serves until its standard input is closed.
"""

from __future__ import annotations

import array
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from typing import Any

PRELOADED = (
    "timm", "torchmetrics", "torchmetrics.classification", "matplotlib.pyplot", "pydantic", "h5py", "snakemake.cli",
    "snakemake.workflow", "snakemake.executors.local", "tokenlabel.cli", "tokenlabel.annotate.shard_job", "tokenlabel.train.job",
    "tokenlabel.segment.job", "tokenlabel.eval.evaluation", "tokenlabel.data.manifest",
)  # fmt: skip


def main() -> None:
    """Loads what the commands need, then forks one for each connection."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen(64)
    running: dict[int, Command] = {}  # by the descriptor of its process and of its connection
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    poll.register(listening, select.POLLIN)
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == 0:
                return
            if descriptor == listening.fileno():
                command = Command(listening)
                for number in command.descriptors:
                    running[number] = command
                    poll.register(number, select.POLLIN)
            elif descriptor not in running:  # ended earlier in this round
                continue
            elif descriptor == running[descriptor].process:
                command = running[descriptor]
                for number in command.descriptors:
                    del running[number]
                    with contextlib.suppress(KeyError):
                        poll.unregister(number)
                command.report()
            elif not running[descriptor].pass_on():
                poll.unregister(descriptor)


class Command:
    """A forked process and the connection to the caller that stands for it."""

    def __init__(self, listening: socket.socket) -> None:
        self._connection, _ = listening.accept()
        self._pid = start(self._connection, listening)
        self.process = os.pidfd_open(self._pid)
        self.descriptors = (self.process, self._connection.fileno())

    def pass_on(self) -> bool:
        """Passes a signal on; that of a caller who was killed is SIGKILL. Returns whether the caller lives."""
        try:
            said = self._connection.recv(1)
        except ConnectionResetError:
            said = b""
        signal.pidfd_send_signal(self.process, said[0] if said else signal.SIGKILL)
        return bool(said)

    def report(self) -> None:
        """Tells the caller how the process ended."""
        code = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        os.close(self.process)
        with contextlib.suppress(OSError):
            self._connection.sendall(f"{code}\n".encode())
        self._connection.close()


def start(connection: socket.socket, listening: socket.socket) -> int:
    """Forks a process for a request of client.py; returns its id."""
    request, descriptors = receive(connection)
    pid = os.fork()
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        return pid
    listening.close()
    connection.close()
    become(request, descriptors)
    code = 1
    try:
        code = run(request["arguments"])
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A request, and the caller's three standard files."""
    descriptors = array.array("i")
    size, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_LEN(3 * descriptors.itemsize))
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    wanted, text = int.from_bytes(size, "big"), b""
    while len(text) < wanted:
        text += connection.recv(wanted - len(text))
    return json.loads(text), list(descriptors)


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Takes the caller's folder, environment, umask and standard files."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.umask(request["umask"])
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    at_once = bool(os.environ.get("PYTHONUNBUFFERED"))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - they stay open
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stdout.reconfigure(line_buffering=os.isatty(1), write_through=at_once)
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr.reconfigure(line_buffering=True, write_through=at_once)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    sys.executable = request["executable"]
    searched = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:0] = [request["folder"], *searched]


def run(arguments: list[str]) -> int:
    """`-m MODULE ...`, `-c PROGRAM ...` or `FILE ...`; returns the exit code."""
    try:
        if arguments[0] == "-m":
            sys.argv = ["-m", *arguments[2:]]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        elif arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - shown as Python shows it
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    main()
