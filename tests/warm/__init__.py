"""A command that stands for Python and starts in a tenth of a second: see server.py."""

from __future__ import annotations

import atexit
import functools
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class User:
    """Another user of this machine, whom root can act as.

    May read what others may not, because the interpreter or the checkout may lie in root's home; may write only what
    owner, group and mode allow.
    """

    number: int
    group: int
    home: str

    @property
    def prefix(self) -> tuple[str, ...]:
        """Words before a command that run it as this user."""
        who = ("setpriv", "--reuid", str(self.number), "--regid", str(self.group), "--clear-groups")
        return (*who, "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search", "--")

    @property
    def environment(self) -> dict[str, str]:
        """Variables that differ from root's."""
        return {"HOME": self.home, "USER": f"user{self.number}"}


@functools.cache
def warm_python(user: User | None = None) -> str:
    """Path of an executable that takes `-m MODULE ...` as Python does; its server lives as long as this process.

    A command runs as the user who started the server, so another user's commands need a server of their own.
    """
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    command = folder / "python"
    start = [sys.executable, "-S", "-E", str(HERE / "client.py"), str(command), str(folder / "socket")]
    command.write_text(f'#!/bin/sh\nexec {shlex.join(start)} "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    if user:
        os.chown(folder, user.number, user.group)
    serve = [*(user.prefix if user else ()), sys.executable, str(HERE / "server.py"), str(folder / "socket")]
    server = subprocess.Popen(serve, stdin=subprocess.PIPE, env=os.environ | (user.environment if user else {}))
    atexit.register(_stop, server, folder)
    return str(command)


def _stop(server: subprocess.Popen[bytes], folder: Path) -> None:
    assert server.stdin
    server.stdin.close()
    server.wait()
    for name in ("python", "socket"):
        (folder / name).unlink(missing_ok=True)
    folder.rmdir()
