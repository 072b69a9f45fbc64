"""`python client.py EXECUTABLE SOCKET ARGUMENTS...`: has server.py run a Python command, and ends as it ends.

Imports nothing that takes time.
"""

import array
import json
import os
import signal
import socket
import sys
import time


def main():
    """Sends the command with this process's folder, environment and standard files; returns its exit code."""
    executable, path, *arguments = sys.argv[1:]
    umask = os.umask(0)
    os.umask(umask)
    request = json.dumps(
        {
            "arguments": arguments,
            "folder": os.getcwd(),  # noqa: PTH109 - pathlib takes longer to import than the rest together
            "environment": dict(os.environ),
            "umask": umask,
            "executable": executable,
        }
    ).encode()
    server = connect(path)
    held = set()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGQUIT):
        held.add(number)
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    files = array.array("i", (0, 1, 2))
    server.sendmsg([len(request).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
    server.sendall(request)
    said = b""
    # not until the connection ends: commands that were forked meanwhile hold it open too
    while not said.endswith(b"\n") and (more := server.recv(64)):
        said += more
    code = int(said)
    if code < 0:
        if -code in held:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        time.sleep(5)
    return code


def connect(path):
    """A connection to the server, which may still be loading."""
    deadline = time.monotonic() + 120
    while True:
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(path)
            return server
        except (FileNotFoundError, ConnectionRefusedError):
            if time.monotonic() > deadline:
                raise
            server.close()
            time.sleep(0.05)


sys.exit(main())
