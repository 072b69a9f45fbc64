"""One file from an address: goes on where an earlier attempt broke off, whole or absent under its name, its digest checked.

Called by `tokenlabel fetch`. Proxies are the environment's (https_proxy, no_proxy), as urllib takes them.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError, OutputError
from ..core.files import Lease, sha256_of, write_text

TIMEOUT_S = 30.0  # without a byte
BLOCK_BYTES = 1 << 20
PARTIAL_CONTENT, RANGE_NOT_SATISFIABLE = 206, 416


def size_of(url: str, timeout_s: float = TIMEOUT_S) -> int | None:
    """Bytes behind an address, without fetching them; None where the server does not say.

    Raises:
        CheckpointError: it is not there, or the server does not answer.
    """
    try:
        with _open(urllib.request.Request(url, method="HEAD"), timeout_s) as answer:
            return _length(answer)
    except urllib.error.HTTPError as error:
        if error.code in (403, 405, 501):  # a server that refuses the question may yet give the file
            return None
        raise _refused(url, error) from None
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(url, error) from None


def download(url: str, path: Path, sha256: str | None, timeout_s: float = TIMEOUT_S) -> None:
    """Fetches a file that is not there yet; of two that fetch it at once the second waits, and finds it.

    Args:
        url: http or https.
        path: where it shall lie.
        sha256: that it must have; None: only its length is checked.
        timeout_s: without a byte, after which it gives up.

    Raises:
        CheckpointError: the server refuses, falls silent or breaks off, or the digest is another one.
        OutputError: it cannot be written.
    """
    with Lease(path.with_name(f".{path.name}.lease")):
        if path.exists():
            return
        part, label = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.part.version")
        try:
            _fetch(url, part, label, timeout_s)
        except urllib.error.HTTPError as error:
            raise _refused(url, error) from None
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            kept = f" {part.stat().st_size:,} bytes are kept; run it again to go on." if part.exists() else ""
            raise CheckpointError(f"{_unreachable(url, error)}{kept}") from None
        except OSError as error:
            remedy = (
                "Free space there, or set weights_root elsewhere"
                if error.errno in (errno.ENOSPC, errno.EDQUOT)
                else "Mend it"
            )
            raise OutputError(
                f"{part}: cannot be written ({error.strerror}). {remedy}, then run it again to go on."
            ) from None
        if sha256 is not None and (digest := sha256_of(part)) != sha256:
            part.unlink()
            label.unlink(missing_ok=True)
            raise CheckpointError(
                f"{url}: what came has sha256 {digest[:16]}..., the configuration states {sha256[:16]}...; it was removed. "
                "Correct weights_sha256, or find out who changed the file."
            )
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)  # noqa: PTH105 - a resumed file keeps its name until it is whole
        label.unlink(missing_ok=True)


def _fetch(url: str, part: Path, label: Path, timeout_s: float) -> None:
    """Appends what is missing of the file to `part`; `label` holds the version that the server gave its beginning."""
    have = part.stat().st_size if part.exists() else 0
    version = label.read_text() if label.exists() else ""
    request = urllib.request.Request(url)
    if have and version:  # else nobody knows of which version the beginning is
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    try:
        answer = _open(request, timeout_s)
    except urllib.error.HTTPError as error:
        if error.code != RANGE_NOT_SATISFIABLE:
            raise
        part.unlink()  # longer than the file is now
        answer = _open(urllib.request.Request(url), timeout_s)
    with answer:
        resumed = answer.status == PARTIAL_CONTENT
        length = _length(answer)
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if version.startswith("W/"):  # a weak one does not say that the bytes are the same
            version = answer.headers.get("Last-Modified") or ""
        if not resumed:
            write_text(label, version)
        _check_room(part, length)
        done = have if resumed else 0
        total = None if length is None else done + length
        with open(part, "ab" if resumed else "wb") as file, _bar(part, done, total) as bar:
            while block := answer.read1(BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
                done += len(block)
    if total is not None and done != total:
        raise http.client.IncompleteRead(b"", total - done)


def _open(request: urllib.request.Request, timeout_s: float) -> Any:
    return urllib.request.urlopen(request, timeout=timeout_s)


def _length(answer: Any) -> int | None:
    found = answer.headers.get("Content-Length")
    return int(found) if found and found.isdigit() else None


def _check_room(part: Path, length: int | None) -> None:
    if length is not None and shutil.disk_usage(part.parent).free < length:
        raise OSError(errno.ENOSPC, f"{length:,} bytes are to come, {shutil.disk_usage(part.parent).free:,} are free")


def _bar(part: Path, done: int, total: int | None) -> Any:
    from tqdm import tqdm

    name = part.name.removeprefix(".").removesuffix(".part")
    return tqdm(initial=done, total=total, desc=name, unit="B", unit_scale=True, disable=not sys.stderr.isatty())


def _refused(url: str, error: urllib.error.HTTPError) -> CheckpointError:
    with contextlib.closing(error):
        words = {
            401: "it wants a login; fetch it with a browser",
            403: "it is not open to all; fetch it with a browser",
            404: "there is no such file; it may have moved",
        }.get(error.code, "try again later")
        return CheckpointError(
            f"{url}: HTTP {error.code} {error.reason}: {words}, or put the file in its place by hand."
        )


def _unreachable(url: str, error: Exception) -> CheckpointError:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError) or isinstance(error, TimeoutError):
        said = "the server fell silent"
    elif isinstance(error, http.client.IncompleteRead):
        said = (
            f"the connection broke off, {error.expected:,} bytes are missing"
            if error.expected
            else "the connection broke off"
        )
    else:
        said = f"no connection ({reason})"
    scheme = url.split(":", 1)[0]
    proxy = urllib.request.getproxies().get(scheme)
    through = f" through the proxy {proxy} of {scheme}_proxy" if proxy else f", and no proxy is set ({scheme}_proxy)"
    return CheckpointError(f"{url}: {said}{through}. Is this a node with a network?")
