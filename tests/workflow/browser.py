"""A headless Chromium, driven through its debugging pipe: opens a file, runs JavaScript, reports what the console said.

The pipe (descriptors 3 and 4, JSON messages that end in a zero byte) needs no port and no WebSocket library.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE_S = 120.0  # of a machine with much else to do


class Browser:
    """One page of a browser that reaches no network."""

    def __init__(self, to_browser: int, from_browser: int, complaints: Path) -> None:
        self._write, self._read, self._complaints = to_browser, from_browser, complaints
        self._numbers, self._pending = itertools.count(1), b""
        self._session: str | None = None
        self.problems: list[str] = []  # console errors and uncaught exceptions, in every frame
        self.requests: list[str] = []  # addresses that anything of the page asked for
        self._contexts: dict[str, int] = {}  # frame -> where its scripts run
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its answer."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, path: Path) -> None:
        """Opens a file and waits until it is loaded."""
        address = path.resolve().as_uri()
        self.call("Page.navigate", url=address)
        self.wait_for(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def evaluate(self, script: str, *, inside: bool = False) -> Any:
        """Value of a JavaScript expression, of the page or of the frame inside it."""
        where = {"contextId": self._inner_context()} if inside else {}
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, **where)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _inner_context(self) -> int:
        """Where the scripts of the only frame inside the page run."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            (frame,) = self.call("Page.getFrameTree")["frameTree"].get("childFrames") or [None]
            if frame and frame["frame"]["id"] in self._contexts:
                return self._contexts[frame["frame"]["id"]]
            assert time.monotonic() < deadline, "no frame inside the page"
            time.sleep(0.05)

    def wait_for(self, script: str, *, inside: bool = False) -> None:
        """Waits until an expression is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.evaluate(script, inside=inside):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.05)

    def screenshot(self, path: Path) -> None:
        """Writes what the page looks like to a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._read], [], [], PATIENCE_S)
            more = os.read(self._read, 1 << 16) if ready else b""
            assert more, f"the browser is gone or silent: {self._complaints.read_text(errors='replace')[-2000:]}"
            self._pending += more
        first, self._pending = self._pending.split(b"\0", 1)
        message = json.loads(first)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, event: str | None, said: dict[str, Any]) -> None:
        if event == "Runtime.executionContextCreated":
            context = said["context"]
            self._contexts[context["auxData"]["frameId"]] = context["id"]
        elif event == "Page.javascriptDialogOpening":
            raise AssertionError(f"the page opens a dialog: {said['message']}")
        elif event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(said["exceptionDetails"])[:500])
        elif event == "Runtime.consoleAPICalled" and said["type"] in ("error", "assert"):
            self.problems.append(json.dumps(said["args"])[:500])
        elif event == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.problems.append(said["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(said["request"]["url"])


@contextmanager
def open_browser(width_px: int = 1400, height_px: int = 900) -> Iterator[Browser]:
    """Starts a browser with an empty profile; ends it with everything that it started."""
    assert CHROMIUM
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        complaints = Path(profile) / "stderr.log"
        arguments = [
            CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe",
            f"--window-size={width_px},{height_px}", "about:blank",
        ]  # fmt: skip
        with complaints.open("wb") as log:
            process = subprocess.Popen(
                ["bash", "-c", f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}', *arguments],
                pass_fds=(from_us, to_us), stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        os.close(from_us)
        os.close(to_us)
        try:
            yield Browser(to_browser, from_browser, complaints)
        finally:
            os.close(to_browser)
            os.close(from_browser)
            os.killpg(process.pid, 9)
            process.wait()
