"""One results folder, two users of a group: real users, real jobs; every file keeps the rights that the umask gives."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.warm import User, warm_python
from tests.workflow.conftest import REPOSITORY, planned_jobs, run_snakemake
from tokenlabel.core.files import read_json, write_json

GROUP = 61000
TABLE = "results/ablation_annotators.csv"


@pytest.fixture
def shared(photographs: Path, overlay: dict[str, Any]) -> Iterator[Path]:
    """A folder that the group may write and whose files are the group's, with a space in its name."""
    top = Path(tempfile.mkdtemp(prefix="shared-"))
    top.chmod(0o755)
    folder = top / "our results"
    folder.mkdir()
    data = shutil.copytree(photographs, top / "our photographs")
    for path in data.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    overlay["data_root"] = str(data)
    (folder / "study.yaml").write_text(yaml.safe_dump(overlay), encoding="utf-8")
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2770)
    yield folder
    shutil.rmtree(top)


class Member:
    """A user of the group, with a home and a umask."""

    def __init__(self, folder: Path, number: int, umask: int) -> None:
        self._folder, self._umask = folder, umask
        home = folder.parent / f"home-{number}"
        home.mkdir()
        os.chown(home, number, GROUP)
        self.user = User(number, GROUP, str(home))

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.user.prefix, *command], cwd=self._folder, umask=self._umask, env=os.environ | self.user.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def run(self, *command: str) -> tuple[int, str]:
        process = self.start(*command)
        said, _ = process.communicate(timeout=300)
        return process.returncode, said

    def snakemake(self, *words: str) -> list[str]:
        python = warm_python(self.user)
        words = ("--snakefile", str(REPOSITORY / "Snakefile"), "--cores", "2", *words)
        return [python, "-m", "snakemake", *words, "--configfile", "study.yaml"]


def refuses(path: Path, *, directory_bits: int, file_bits: int) -> bool:
    """Whether a path lacks one of the bits."""
    bits = directory_bits if path.is_dir() else file_bits
    return stat.S_IMODE(path.lstat().st_mode) & bits != bits


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two users")
@pytest.mark.campaign
def test_two_users_of_a_group_work_on_one_study(shared: Path) -> None:
    first, second = Member(shared, 61001, 0o002), Member(shared, 61002, 0o002)
    code, said = first.run(*first.snakemake("labels"))
    assert code == 0, said[-3000:]

    running = first.start(*first.snakemake(TABLE))
    runs = shared / "results" / "runs"
    deadline = time.monotonic() + 120
    while not list(runs.glob("*/seed0/*.lease")):
        if running.poll() is not None or time.monotonic() > deadline:
            running.kill()
            pytest.fail(running.communicate()[0][-3000:])
        time.sleep(0.02)
    running.kill()  # Snakemake alone: its job may go on
    running.communicate()
    goal = (TABLE, "--rerun-incomplete")
    code, said = second.run(*second.snakemake(*goal))
    assert code == 1
    assert "Directory cannot be locked" in said  # as while it ran
    code, said = second.run(*second.snakemake(TABLE, "--unlock"))
    assert code == 0, said[-3000:]
    code, said = second.run(*second.snakemake(*goal))
    assert code == 0, said[-3000:]
    assert (shared / TABLE).exists(), said

    paths = [path for path in shared.rglob("*") if path.name != "study.yaml"]
    owners = {path.stat().st_uid for path in paths if "results" in path.parts}
    assert owners == {61001, 61002}
    assert [path for path in paths if path.stat().st_gid != GROUP] == []
    assert [path for path in paths if refuses(path, directory_bits=0o2770, file_bits=0o660)] == []
    logs = "".join(path.read_text() for path in (shared / "logs").rglob("*.log"))
    if (REPOSITORY / ".git").exists():
        assert "commit unknown" not in logs  # git distrusts a checkout that is another user's

    code, said = first.run(*first.snakemake(TABLE, "-n"))
    assert code == 0
    assert "Nothing to be done" in said
    code, said = first.run("rm", "-r", "results", "logs", "benchmarks", ".snakemake")
    assert code == 0, said


def test_a_strict_umask_keeps_everything_private(shared: Path) -> None:
    finished = subprocess.run(
        [warm_python(), "-m", "snakemake", "--snakefile", REPOSITORY / "Snakefile", "labels", "--cores", "2",
         "--directory", shared, "--configfile", shared / "study.yaml"],
        umask=0o077, cwd=shared.parent, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    made = [path for name in ("results", "logs", "benchmarks") for path in (shared / name).rglob("*")]
    assert list((shared / "results" / "labels").rglob("*.h5"))
    assert [path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


def test_a_stale_shard_is_planned_whatever_the_clock_of_the_node_that_wrote_it(
    finished_study: Path, overlay: dict[str, Any], tmp_path: Path
) -> None:
    place = Path(shutil.copytree(finished_study, tmp_path / "study"))
    (manifest,) = place.glob("results/data/*/manifest.done")
    document = read_json(manifest)
    document["splits"]["train"]["shard_digests"][0] = "another"  # as tokenlabel refresh leaves it
    write_json(manifest, document)
    an_hour_ahead = time.time() + 3600
    for marker in place.glob("results/labels/*/*.done"):
        os.utime(marker, (an_hour_ahead, an_hour_ahead))
    assert planned_jobs(run_snakemake(place, "labels", "-n", overlay=overlay)).get("annotate_shard") == 1
