"""`tokenlabel refresh`: what changed is named, the manifest follows, exactly the shards concerned are called stale."""

from __future__ import annotations

import os
import socket
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tokenlabel.cli import main
from tokenlabel.core.files import read_json, write_json
from tokenlabel.core.identity import digest_of
from tokenlabel.core.staleness import stale_shards
from tokenlabel.data.manifest import build_manifests, load_manifest, save_manifests

SHARDS = 4


def write_photograph(path: Path, width: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, 8)).save(path, "PPM")


@dataclass
class Study:
    """A folder as a study leaves it: documents, a manifest, an annotator's markers."""

    folder: Path
    spec: dict[str, Any]
    machine: dict[str, Any]

    @property
    def data(self) -> Path:
        return self.folder / "results" / "data" / f"{self.spec['name']}-{digest_of(self.spec)}"

    @property
    def labels(self) -> Path:
        return self.folder / "results" / "labels" / "lite0-01234567"

    def write(self) -> None:
        results = self.folder / "results"
        write_json(results / "machine.json", self.machine)
        write_json(results / "study.json", {"dataset": {"name": self.spec["name"], "version": self.spec["release"]}})
        self.write_manifest()
        write_json(self.labels / "spec.json", {"dataset": self.spec})
        for split, digests in self.digests().items():
            for shard, digest in enumerate(digests):
                place = self.labels / f"{split}-{shard:05d}-of-{SHARDS:05d}.done"
                write_json(place, {"manifest_digest": digest})
                place.with_suffix(".h5").write_bytes(b"labels")

    def write_manifest(self) -> None:
        write_json(self.data / "spec.json", self.spec)
        manifests = build_manifests(self.spec, self.machine | {"data_root": str(self.folder / "photos")})
        write_json(self.data / "manifest.done", save_manifests(self.data, manifests))

    def digests(self) -> dict[str, list[str]]:
        return {
            name: split["shard_digests"] for name, split in read_json(self.data / "manifest.done")["splits"].items()
        }

    def stale(self) -> list[str]:
        return [path.stem for path in stale_shards(self.labels, self.digests())]

    def files(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    for split, count in (("train", 6), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            for number in range(count):
                write_photograph(tmp_path / "photos" / split / name / f"{number}.ppm")
    spec = {
        "stage": "data", "name": "pets", "release": "1", "class_map": None, "num_classes": 3, "val_fraction": None,
        "val_seed": None, "images": None, "shards": SHARDS,
    }  # fmt: skip
    machine = {
        "data_root": "photos", "threads": 1,  # relative to the study, as a configuration may say
        "dataset": {"format": "folder", "train": "train", "val": "val"},
    }  # fmt: skip
    made = Study(tmp_path, spec, machine)
    made.write()
    return made


@pytest.fixture
def refresh(study: Study, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    def call(*arguments: str, exit_code: int = 0) -> list[str]:
        assert main(["refresh", str(study.folder), *arguments]) == exit_code
        return capsys.readouterr().err.splitlines()

    return call


def test_nothing_changed_is_said_and_nothing_written(study: Study, refresh: Callable[..., list[str]]) -> None:
    before = study.files()
    said = refresh()
    assert [line.split(": ")[1] for line in said] == ["18 train, 6 val photographs, nothing changed"]
    assert study.files() == before


def add(study: Study) -> None:
    write_photograph(study.folder / "photos" / "train" / "bee" / "new.ppm")


def remove(study: Study) -> None:
    (study.folder / "photos" / "train" / "ant" / "3.ppm").unlink()


def enlarge(study: Study) -> None:
    write_photograph(study.folder / "photos" / "val" / "cat" / "1.ppm", width=9)


@pytest.mark.parametrize(
    ("change", "said", "split"),
    [
        (add, ["  train: 1 added", "    bee/new.ppm"], "train"),
        (remove, ["  train: 1 removed", "    ant/3.ppm"], "train"),
        (enlarge, ["  val: 1 of another size", "    cat/1.ppm (203 -> 227 bytes)"], "val"),
    ],
    ids=["added", "removed", "resized"],
)
def test_a_change_is_named_and_makes_its_shard_stale(
    study: Study, refresh: Callable[..., list[str]], change: Callable[[Study], None], said: list[str], split: str
) -> None:
    before = study.files()
    change(study)
    dry = refresh("--dry-run")
    assert study.stale() == []
    assert {path: data for path, data in study.files().items() if "results" in path.parts} == {
        path: data for path, data in before.items() if "results" in path.parts
    }
    lines = refresh()
    assert lines[1:3] == said
    assert dry == [*lines, "Nothing was written (--dry-run)."]
    (stale,) = study.stale()
    assert stale.startswith(split)
    assert f"results/labels/lite0-01234567: to be made again: {stale}" in lines
    assert any("evaluation-*.json" in line for line in lines) == (split == "val")
    after = study.files()
    kept = {path: data for path, data in before.items() if study.labels in path.parents}
    assert kept.items() <= after.items()  # neither shards nor markers are touched
    refreshed = study.digests()
    study.write_manifest()
    assert study.digests() == refreshed
    # until snakemake has made the shard again, every call names it
    assert [line.split(": ", 1)[1] for line in refresh()[:2]] == [
        lines[0].split(": ", 1)[1].replace("changed", "nothing changed"),
        f"to be made again: {stale}",
    ]


def test_many_paths_are_cut_short(study: Study, refresh: Callable[..., list[str]]) -> None:
    for number in range(13):
        write_photograph(study.folder / "photos" / "train" / "cat" / f"more{number:02d}.ppm")
    lines = refresh()
    assert lines[1:13] == [
        "  train: 13 added", *(f"    cat/more{number:02d}.ppm" for number in range(10)), "    and 3 more",
    ]  # fmt: skip


def test_another_class_order_is_seen(study: Study, refresh: Callable[..., list[str]]) -> None:
    (study.folder / "classes.txt").write_text("ant\nbee\ncat\n")
    study.spec["class_map"] = str(study.folder / "classes.txt")
    study.write()
    (study.folder / "classes.txt").write_text("ant\ncat\nbee\n")
    lines = [line for line in refresh() if "bee" in line or "class" in line]
    assert lines[:2] == ["  train: 12 of another class", "    bee/0.ppm (1 bee -> 2 bee)"]
    assert len(study.stale()) > 2


def test_a_photograph_that_crosses_the_drawn_validation_split_is_named(
    study: Study, refresh: Callable[..., list[str]]
) -> None:
    study.spec |= {"val_fraction": 0.34, "val_seed": 0}
    study.machine["dataset"]["val"] = None
    study.write()
    for number in range(30):  # a few of them are drawn and push another one back, or make the share one larger
        before = {split: paths(study, split) for split in ("train", "val")}
        place = study.folder / "photos" / "train" / "ant" / f"more{number}.ppm"
        write_photograph(place)
        lines = refresh()
        crossed = [line for line in lines if "moved across" in line]
        if crossed:
            break
    (said,) = crossed
    path, start, _, end = said.split(": ")[1].replace("(", "").replace(")", "").split(" ")
    assert path in before[start]
    assert path in paths(study, end)


def paths(study: Study, split: str) -> set[str]:
    manifest = load_manifest(study.data, split)
    return {manifest.path(row) for row in range(len(manifest))}


def test_the_same_path_in_both_folders_is_no_move(study: Study, refresh: Callable[..., list[str]]) -> None:
    (study.folder / "photos" / "val" / "bee" / "1.ppm").unlink()
    write_photograph(study.folder / "photos" / "val" / "bee" / "2.ppm")
    (study.folder / "photos" / "train" / "bee" / "2.ppm").unlink()
    assert not [line for line in refresh() if "moved across" in line]


def test_a_repacked_archive_makes_no_label_stale(study: Study, refresh: Callable[..., list[str]]) -> None:
    photos = study.folder / "photos"

    def pack(backwards: bool) -> None:
        for split in ("train", "val"):
            with tarfile.open(photos / f"{split}.tar", "w") as archive:
                for path in sorted((photos / split).rglob("*.ppm"), reverse=backwards):
                    archive.add(path, path.relative_to(photos / split))

    pack(backwards=False)
    study.machine["dataset"] = {"format": "tar", "train": "train.tar", "val": "val.tar"}
    study.write()
    before = read_json(study.data / "manifest.done")
    rows = (study.data / "train.npz").read_bytes()
    pack(backwards=True)
    lines = refresh()
    assert "  train: 18 at another place in their archive; no label depends on that" in lines
    assert study.stale() == []
    assert before["splits"] == read_json(study.data / "manifest.done")["splits"]
    assert rows != (study.data / "train.npz").read_bytes()  # jobs read by what the manifest says


def test_a_shard_that_a_job_is_writing_is_not_pulled_away(study: Study, refresh: Callable[..., list[str]]) -> None:
    add(study)
    (stale,) = predicted(study)
    lease = study.labels / f"{stale}.lease"
    parts = study.labels / f"{stale}.parts"
    parts.mkdir()
    (parts / "part-0.h5").write_bytes(b"of the photographs before")
    before = study.files()
    write_json(lease, {"host": socket.gethostname(), "pid": os.getppid(), "job": "", "counter": 3})
    (said,) = [line for line in refresh(exit_code=2) if line.startswith("error")]
    assert f"{stale}.lease: a job is writing this shard" in said
    lease.unlink()
    assert study.files() == before
    write_json(lease, {"host": socket.gethostname(), "pid": 2**22 + 1, "job": "", "counter": 3})  # killed
    other = study.labels / f"{next(n for n in all_shards('train') if n != stale)}.parts"
    other.mkdir()
    refresh()
    assert study.stale() == [stale]
    assert not parts.exists()
    assert other.exists()  # its photographs are the same


def all_shards(split: str) -> list[str]:
    return [f"{split}-{shard:05d}-of-{SHARDS:05d}" for shard in range(SHARDS)]


def predicted(study: Study) -> list[str]:
    after = build_manifests(study.spec, study.machine | {"data_root": str(study.folder / "photos")})
    return [
        name
        for name, old, new in zip(
            all_shards("train"), study.digests()["train"], after["train"].shard_digests, strict=True
        )
        if old != new
    ]


def test_manifests_of_another_data_set_are_left_alone(study: Study, refresh: Callable[..., list[str]]) -> None:
    other = Study(study.folder, study.spec | {"name": "birds"}, study.machine)
    other.write_manifest()
    before = (other.data / "manifest.done").read_bytes()
    add(study)
    lines = refresh()
    assert f"results/data/{other.data.name}: left alone, not the data set of the last snakemake run (pets)" in lines
    assert (other.data / "manifest.done").read_bytes() == before
    assert len(study.stale()) == 1


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda s: (s.folder / "results" / "machine.json").unlink(), "machine.json: the machine settings is missing"),
        (lambda s: (s.data / "manifest.done").unlink(), "no finished manifest to refresh. Run snakemake first."),
        (lambda s: (s.folder / "photos").rename(s.folder / "moved"), "data_root photos: no such folder"),
        (lambda s: (s.data / "train.npz").write_bytes(b"x"), "damaged manifest"),
        (
            lambda s: write_json(s.folder / "results" / "study.json", {"dataset": {"name": "x", "version": "1"}}),
            "no manifest of x. Run snakemake first.",
        ),
    ],
    ids=["no study", "no manifest", "data moved", "damaged", "other data set"],
)
def test_what_cannot_be_refreshed_is_said_in_one_line(
    study: Study, refresh: Callable[..., list[str]], break_it: Callable[[Study], Any], said: str
) -> None:
    break_it(study)
    before = study.files()
    (line,) = [line for line in refresh(exit_code=2) if line.startswith("error")]
    assert said in line
    assert study.files() == before


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["refresh", str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
