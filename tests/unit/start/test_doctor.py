"""`tokenlabel doctor` on this machine: each check that fails is made to fail by a thing that is broken for real."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenlabel.cli import main
from tokenlabel.core.errors import ConfigError
from tokenlabel.core.study import Study
from tokenlabel.start import doctor_files
from tokenlabel.start.doctor_files import look_at_files, look_at_room
from tokenlabel.start.doctor_findings import ask
from tokenlabel.start.doctor_machine import look_at_gpus, look_at_python
from tokenlabel.start.doctor_profile import read_profile
from tokenlabel.start.doctor_slurm import count_gpus, longest_jobs, look_at_slurm, minutes_of

Doctor = Callable[..., list[dict[str, str]]]


@pytest.fixture
def demo(repository: Path, photographs: Path) -> dict[str, Any]:
    """The demo's overlay over the photographs of the tests."""
    overlay: dict[str, Any] = yaml.safe_load((repository / "demo" / "config.yaml").read_text(encoding="utf-8"))
    overlay["data_root"] = str(photographs)
    overlay["machine"]["device"] = "cpu"
    return overlay


@pytest.fixture
def quick_torch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that says what one says on a machine without GPU, and is imported in no time."""
    folder = tmp_path_factory.mktemp("quick")
    (folder / "torch.py").write_text(
        "class cuda:\n    device_count = staticmethod(lambda: 0)\n__version__ = '2'\n"
        "class version:\n    cuda = None\nclass backends:\n    class mps:\n        is_available = staticmethod(lambda: False)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.fixture
def doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the command with an overlay; checks that its exit code says whether something fails."""

    def look(overlay: dict[str, Any], *arguments: str) -> list[dict[str, str]]:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(overlay))
        folder = [] if "--directory" in arguments else ["--directory", str(tmp_path)]
        code = main(["doctor", "--json", *folder, *arguments, "--configfile", str(tmp_path / "study.yaml")])
        findings: list[dict[str, str]] = json.loads(capsys.readouterr().out)
        assert code == int(any(finding["status"] == "fail" for finding in findings))
        assert all("\n" not in finding["found"] for finding in findings)
        return findings

    return look


def failed(findings: list[dict[str, str]], area: str) -> str:
    """What the failing findings of an area say, with their remedies."""
    return "; ".join(
        f"{finding['found']} -> {finding['remedy']}"
        for finding in findings
        if finding["status"] == "fail" and finding["area"] == area
    )


def test_a_machine_that_is_well(doctor: Doctor, demo: dict[str, Any], tmp_path: Path) -> None:
    findings = doctor(demo)
    assert [finding for finding in findings if finding["status"] == "fail"] == []
    said = " ".join(finding["found"] for finding in findings)
    assert "decodes, " in said
    assert "efficientnet_lite0: " in said
    assert "GB to come for" in said
    assert "O_EXCL, rename and fsync as relied on, also as another process sees it" in said
    assert "HDF5 files open, also with its locks" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "study.yaml"]  # it cleans up behind it


def test_data_that_is_missing_broken_or_of_other_classes(
    doctor: Doctor, demo: dict[str, Any], tmp_path: Path, quick_torch: None
) -> None:
    changed = copy.deepcopy(demo)
    changed["data_root"] = str(tmp_path / "nowhere")
    assert "no such folder on this machine -> Set data_root" in failed(doctor(changed), "data")
    (tmp_path / "root" / "val").mkdir(parents=True)
    (tmp_path / "root" / "train" / "tench").mkdir(parents=True)
    changed["data_root"] = str(tmp_path / "root")
    said = failed(doctor(changed), "data")
    assert "1 folders are no class of dataset.class_map imagenet-1k: tench" in said
    assert "val: no class folders" in said
    changed["dataset"]["class_map"] = None
    (tmp_path / "root" / "train" / "tench" / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken off")
    said = failed(doctor(changed), "data")
    assert "train: 1 class folders, dataset.num_classes is 1000" in said
    assert "a.jpg: does not decode" in said


def test_weights_that_are_missing_or_others(
    doctor: Doctor, demo: dict[str, Any], tmp_path: Path, quick_torch: None
) -> None:
    demo["weights_root"] = str(tmp_path / "weights")
    entry = demo["annotators"]["efficientnet_lite2"]
    entry |= {"weights": "file:lite2.pth", "weights_sha256": "0" * 64}
    assert "lite2.pth: no such weights file" in failed(doctor(demo), "weights")
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "lite2.pth").write_bytes(b"something else")
    said = failed(doctor(demo), "weights")
    assert "the configuration states 0000000000000000" in said
    assert "Run tokenlabel fetch, or correct weights_sha256" in said


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with options."""
    places: list[Path] = []

    def make(options: str) -> Path:
        place = tmp_path / f"disk{len(places)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=False, capture_output=True
        )
        if done.returncode != 0:
            pytest.skip("no file system can be mounted here")
        places.append(place)
        return place

    yield make
    for place in places:
        subprocess.run(["umount", str(place)], check=True)


def test_disks_that_are_full_small_read_only_or_without_inodes(mount: Callable[[str], Path]) -> None:
    full = mount("size=1m")
    (full / "filling").write_bytes(b"x" * (1 << 20))
    (found,) = [finding for finding in look_at_files(full) if finding.status == "fail"]
    assert "No space left on device" in found.found
    assert "Free space on it" in found.remedy
    read_only = mount("size=1m,ro")
    (found,) = look_at_files(read_only)
    assert (found.status, "Read-only file system" in found.found) == ("fail", True)


def test_room_for_the_study(mount: Callable[[str], Path], raw_config: dict[str, Any]) -> None:
    few = mount("size=1m,nr_inodes=100")
    found = list(look_at_room(few, Study.plan(raw_config)))
    assert [finding.status for finding in found] == ["fail", "fail"]
    assert "0.0 GB free, about 103" in found[0].found
    assert "inodes free, about 9,048 files to come" in found[1].found


def test_a_file_system_whose_renames_are_seen_halfway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def in_place(probe: Path, letter: str) -> None:  # what a copying rename looks like to a reader
        with open(probe / "renamed", "w") as file:
            file.write(letter * 2048)
            file.flush()
            file.write(letter * 2048)

    monkeypatch.setattr(doctor_files, "_put", in_place)
    monkeypatch.setattr(doctor_files, "RENAMES", 1500)
    (found,) = [finding for finding in look_at_files(tmp_path) if finding.status == "fail"]
    assert "torn" in found.found
    assert "Two jobs could write one output" in found.remedy


def test_hdf5_that_cannot_open_and_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "h5py.py").write_text("raise OSError('libhdf5.so.310 not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = [finding for finding in look_at_files(tmp_path) if finding.status == "fail"]
    assert "HDF5 cannot write (OSError: libhdf5.so.310 not found)" in found.found
    (tmp_path / "h5py.py").write_text(  # as a file system that refuses locks answers
        "class File(dict):\n"
        "    def __init__(self, path, mode, locking=True):\n"
        "        if locking: raise OSError('unable to lock file, errno = 11')\n"
        "    def __enter__(self): return {'x': [1]}\n"
        "    def __exit__(self, *error): pass\n"
    )
    (found,) = [finding for finding in look_at_files(tmp_path) if finding.status == "warn"]
    assert "HDF5 cannot lock its files (unable to lock file, errno = 11)" in found.found
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "TRUE")  # which asks for locks also where locking=False is said
    (tmp_path / "h5py.py").write_text("def File(*path, **options): raise OSError('unable to lock file, errno = 11')\n")
    warned, refused = (finding for finding in look_at_files(tmp_path) if finding.status != "ok")
    assert "HDF5_USE_FILE_LOCKING" in warned.found
    assert (refused.status, refused.remedy) == ("fail", "Unset HDF5_USE_FILE_LOCKING")
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", "FALSE")
    assert "HDF5_USE_FILE_LOCKING" not in " ".join(finding.found for finding in look_at_files(tmp_path))
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    before = os.umask(0o022)
    try:
        assert "umask 022 keeps it from files" in list(look_at_files(shared))[-1].found
        os.umask(0o002)
        assert list(look_at_files(shared))[-1].found.endswith("shared with its group, umask 002")
    finally:
        os.umask(before)


def test_packages_and_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text("numpy==0.0.1\nno-such-package==1.0\ntorch==0.1+cu1\n")
    statuses = {finding.status: finding.found for finding in look_at_python(lock)}
    assert "1 of 3 packages of requirements.lock are missing: no-such-package" in statuses["fail"]
    assert "2 of 3 packages have other versions: numpy " in statuses["warn"]
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13 not found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (found,) = look_at_gpus("auto", needed=True)
    assert (found.status, "libcudart.so.13 not found" in found.found) == ("fail", True)


@pytest.mark.parametrize(
    ("device", "needed", "status"), [("cuda", True, "fail"), ("cuda", False, "ok"), ("auto", True, "warn"), ("cpu", True, "ok")]
)  # fmt: skip
def test_no_gpu_here(device: str, needed: bool, status: str, quick_torch: None) -> None:
    (found,) = look_at_gpus(device, needed=needed)
    assert found.status == status


def test_a_configuration_that_is_not_legal_and_a_profile_that_is_not_there(
    doctor: Doctor, demo: dict[str, Any], monkeypatch: pytest.MonkeyPatch, quick_torch: None
) -> None:
    demo["machine"]["device"] = "gpu"
    findings = doctor(demo, "--profile", "sturm")
    assert "machine.device: 'gpu' is not legal" in failed(findings, "config")
    assert "profile 'sturm': no config.yaml in" in failed(findings, "slurm")
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "not on PATH or silent: sbatch, " in failed(doctor(demo, "--profile", "slurm"), "slurm")


def test_profiles_of_both_spellings(tmp_path: Path, repository: Path) -> None:
    profile = read_profile(str(repository / "slurm"))
    assert profile.partitions == ["cpu", "gpu"]
    assert profile.rules_in("gpu", ["train_run", "make_manifest"]) == ["train_run"]
    (tmp_path / "config.yaml").write_text(
        "default-resources: [slurm_partition=long, slurm_account=me]\n"
        "set-resources: ['train_run:slurm_partition=a,b', 'train_run:gpu=4']\n"
    )
    listed = read_profile(str(tmp_path))
    assert (listed.partitions, listed.accounts, listed.gpus_of("train_run", None)) == (["long", "a", "b"], ["me"], 4)
    (tmp_path / "config.yaml").write_text("- jobs\n")
    with pytest.raises(ConfigError, match="expected a dictionary of options, found list"):
        read_profile(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "minutes"), [("1-00:30:00", 1470), ("02:00:00", 120), ("UNLIMITED", float("inf")), ("00:00:30", 0.5)]
)  # fmt: skip
def test_time_limits(text: str, minutes: float) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize(
    ("gres", "count"),
    [("gpu:2", 2), ("gpu:a100:4(S:0-1)", 4), ("gpu:a100:4(S:0-1),gpu:v100:2,shard:8", 6), ("(null)", 0), ("shard:gpu:3", 0)],
)  # fmt: skip
def test_gpus_of_a_node(gres: str, count: int) -> None:
    assert count_gpus(gres) == count


def test_longest_jobs_and_silent_commands(
    raw_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    minutes = longest_jobs(Study.plan(raw_config))
    assert minutes["train_run"] > 100 * minutes["annotate_shard"]
    (tmp_path / "sinfo").write_text("#!/bin/sh\nexec sleep 20\n")
    (tmp_path / "sinfo").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert ask(["sinfo"], timeout_s=0.2).error == "sinfo: no answer within 0.2 s"


SITE = {
    "scontrol": 'case "$*" in ping) echo is UP;; *partition*) echo "PartitionName=$4 State=UP MaxTime=1-00:00:00";; '
    "*config) echo 'AccountingStorageType = accounting_storage/slurmdbd';; *) echo slurm 22.05;; esac",
    "sinfo": 'case "$*" in *%T*) echo "idle|gpu:v100:4(S:0)|fast|32|90000+";; *) echo slurm 22.05;; esac',
    "sacctmgr": "echo 'research|normal,high'",
} | dict.fromkeys(("sbatch", "squeue", "scancel", "srun"), "echo slurm 22.05")


@pytest.fixture
def profile(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes the repository's profile with changes for its GPU jobs, on a site whose Slurm are scripts; returns its folder."""
    (tmp_path / "bin").mkdir()
    for name, text in SITE.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    def write(**changes: Any) -> str:
        content = yaml.safe_load((repository / "slurm" / "config.yaml").read_text())
        for resources in content["set-resources"].values():
            resources.update(changes)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
        return str(tmp_path)

    return write


def test_jobs_that_no_node_of_the_site_can_run(
    profile: Callable[..., str], doctor: Doctor, demo: dict[str, Any]
) -> None:
    asked = profile(qos="gold", gpu_model="a100", constraint="slow")
    machine = {"device": "cuda", "processes": 8, "threads": 8, "train_mem_mb": 16000, "micro_batch": 1, "nodes": 3}
    overlay = demo | {"machine": demo["machine"] | machine, "plan": {"gpus": 24}}
    said = failed(doctor(overlay, "--profile", asked), "slurm")
    assert "qos gold: not allowed; allowed are high, normal -> Set qos in" in said
    assert "gpu_model a100 of annotate_shard: its nodes have v100" in said
    assert "no node has the feature slow" in said
    assert "jobs ask for 8 GPUs of a node, its nodes have 4" in said
    assert "jobs ask for 64 processors of a node, its largest has 32 -> Lower machine.threads or" in said
    assert "jobs ask for 128,000 MB of memory of a node, its largest has 90,000 -> Lower machine.train_mem_mb" in said
    assert "a training asks for 3 nodes, it has 1 -> Lower machine.nodes" in said


@pytest.mark.parametrize(
    ("hours", "status", "remedy"),
    [
        (None, "fail", "Choose a partition for long jobs, or set machine.max_job_hours: 24, which splits trainings"),
        (24, "ok", ""),
    ],
)
def test_the_partitions_limit_and_the_longest_job(
    profile: Callable[..., str], raw_config: dict[str, Any], hours: float | None, status: str, remedy: str
) -> None:
    study = Study.plan(raw_config | {"machine": raw_config["machine"] | {"max_job_hours": hours}})
    found = look_at_slurm(read_profile(profile()), study)
    limit = next(finding for finding in found if "partition gpu: time limit 24.0 h" in finding.found)
    assert (limit.status, limit.remedy[: len(remedy or " ")]) == (status, remedy)


@pytest.mark.campaign
def test_a_retry_that_the_partition_would_never_start(
    profile: Callable[..., str], doctor: Doctor, demo: dict[str, Any]
) -> None:
    found = doctor(demo | {"plan": {"job_start_s": 30_000}}, "--profile", profile())
    (warned,) = (finding for finding in found if "would ask for" in finding["found"])
    assert (warned["status"], warned["remedy"]) == ("warn", "Set machine.max_job_hours: 24")


def test_jobs_that_cannot_be_split_and_nodes_of_no_run(
    profile: Callable[..., str], doctor: Doctor, demo: dict[str, Any]
) -> None:
    machine = demo["machine"] | {"max_job_hours": 6, "nodes_of": {"lvvit_small@484": 2}}
    found = doctor(demo | {"plan": {"job_start_s": 30_000}, "machine": machine}, "--profile", profile())
    said = [finding["found"] for finding in found if finding["status"] == "warn"]
    assert any("annotate_shard should take 8.3 h, machine.max_job_hours gives a job 6.0 h" in words for words in said)
    (nodes,) = (words for words in said if words.startswith("machine.nodes_of"))
    assert (
        nodes
        == "machine.nodes_of lvvit_small@484: no run of this study has it; runs of that model are at 112, 144, 384 px"
    )


@pytest.mark.campaign
def test_a_controller_that_does_not_answer_is_said_once(
    profile: Callable[..., str], doctor: Doctor, demo: dict[str, Any], tmp_path: Path
) -> None:
    folder = profile()
    (tmp_path / "bin" / "scontrol").write_text(
        "#!/bin/sh\n[ $1 = ping ] && for _ in 1 2 3; do echo 'Slurmctld(primary) at c1 is DOWN'; done || echo slurm 22.05\n"
    )
    said = failed(doctor(demo, "--profile", folder), "slurm")
    assert said.startswith("slurmctld does not answer (Slurmctld(primary) at c1 is DOWN) ->")
