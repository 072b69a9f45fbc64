"""A command that stands for Python and starts in a tenth of a second: see server.py."""

from __future__ import annotations

import atexit
import functools
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent


@functools.cache
def warm_python() -> str:
    """Path of an executable that takes `-m MODULE ...` as Python does; its server lives as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    command = folder / "python"
    start = [sys.executable, "-S", "-E", str(HERE / "client.py"), str(command), str(folder / "socket")]
    command.write_text(f'#!/bin/sh\nexec {shlex.join(start)} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    server = subprocess.Popen([sys.executable, HERE / "server.py", folder / "socket"], stdin=subprocess.PIPE)
    atexit.register(_stop, server, folder)
    return str(command)


def _stop(server: subprocess.Popen[bytes], folder: Path) -> None:
    assert server.stdin
    server.stdin.close()
    server.wait()
    for name in ("python", "socket"):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
