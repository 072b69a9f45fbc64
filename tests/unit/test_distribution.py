"""The wheel and the source distribution: built from each other, installed in a fresh environment, and used there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from tokenlabel import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
GOLDEN = REPOSITORY / "tests" / "golden" / "format-1" / "compact"
# of a checkout, what is no part of it
IGNORED = (
    ".git",
    ".venv",
    "build",
    "dist",
    "*.egg-info",
    "results",
    "demo_run",
    "site",
    ".*_cache",
    "__pycache__",
    ".snakemake",
)
CLEAN = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
FORMS = [
    path for path in sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution of a copy of the checkout, and the wheel that is built of that."""
    checkout = tmp_path_factory.mktemp("distribution") / "checkout"
    shutil.copytree(REPOSITORY, checkout, ignore=shutil.ignore_patterns(*IGNORED))
    out = checkout.parent / "dist"
    finished = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(checkout)],
        env=CLEAN, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-2000:]
    (source,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return source, wheel


def test_the_source_distribution_is_a_whole_checkout(built: tuple[Path, Path]) -> None:
    top = f"tokenlabel-{__version__}/"
    with tarfile.open(built[0]) as archive:
        names = {name.removeprefix(top) for name in archive.getnames()}
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    listed = tracked or [
        "Snakefile",
        "config.yaml",
        "rules/common.smk",
        "slurm/config.yaml",
        "envs/train.yaml",
        "src/cli.py",
    ]
    left_out = {
        name for name in listed if name not in names and not name.startswith(("bench/results/", "campaign/results/"))
    }
    assert {name for name in left_out if (REPOSITORY / name).exists()} == set()


def test_the_wheel_holds_every_package_and_its_data(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
    expected = {
        f"tokenlabel/{path.relative_to(REPOSITORY / 'src')}"
        for path in (REPOSITORY / "src").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert {name for name in names if name.startswith("tokenlabel/")} == expected


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of a fresh environment with the wheel; other packages are those of this environment."""
    place = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], env=CLEAN, check=True, timeout=120)
    (packages,) = place.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["--python", str(place / "bin" / "python"), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, "-m", "pip", *install, str(built[1])], env=CLEAN, check=True, timeout=120)
    return place / "bin"


def ran(*command: str | Path, cwd: Path) -> str:
    finished = subprocess.run(command, cwd=cwd, env=CLEAN, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_wheel_works_in_a_fresh_environment(installed: Path, tmp_path: Path) -> None:
    assert ran(installed / "tokenlabel", "--version", cwd=tmp_path) == f"tokenlabel {__version__}\n"
    shard = sorted(GOLDEN.glob("*.h5"))[0]
    assert "are best in most cells" in ran(installed / "tokenlabel", "labels", "inspect", shard, cwd=tmp_path)
    code = (
        "import importlib.metadata, tokenlabel, torch; from tokenlabel.labels import LabelStore, sparse_targets;"
        f"label = LabelStore({str(GOLDEN)!r}, split='train').get_many(LabelStore({str(GOLDEN)!r}, split='train').ids[:1]);"
        "print(tokenlabel.__file__, importlib.metadata.version('tokenlabel'), label.scores.shape)"
    )
    found = ran(installed / "python", "-c", code, cwd=tmp_path)
    assert found.startswith(str(installed.parent))
    assert f" {__version__} (1, 3, 4, 2)" in found


def test_there_is_one_version() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"]
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "\n## Unreleased\n" in changes or f"\n## {__version__} " in changes


def test_the_citation_has_what_its_format_wants() -> None:
    """Required keys of the Citation File Format 1.2.0, for the software and for the paper; cffconvert accepts the file."""
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "license", "version"} <= citation.keys()
    paper = citation["preferred-citation"]
    assert {"type", "title", "authors", "year", "identifiers"} <= paper.keys()
    assert [author["family-names"] for author in paper["authors"]] == [
        "Jiang", "Hou", "Yuan", "Zhou", "Shi", "Jin", "Wang", "Feng",
    ]  # fmt: skip
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert all(entry["value"].removeprefix("arXiv:") in readme for entry in paper["identifiers"])


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_are_such(form: Path) -> None:
    """As GitHub wants them: a name, a description, and questions with names of their own."""
    document = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= document.keys()
    names = [item["id"] for item in document["body"]]
    assert len(names) == len(set(names)) >= 3
    assert all(item["type"] in ("textarea", "input") and item["attributes"]["label"] for item in document["body"])


@pytest.mark.campaign
@pytest.mark.network
@pytest.mark.parametrize("extra", ["", "[study]"], ids=["base", "study"])
def test_a_fresh_environment_gets_its_packages_from_the_index(
    built: tuple[Path, Path], tmp_path: Path, extra: str
) -> None:
    """Minutes and gigabytes: torch comes with it."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], env=CLEAN, check=True, timeout=120)
    python = tmp_path / "venv" / "bin" / "python"
    constraints = ["--constraint", str(REPOSITORY / "requirements.lock")]
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", f"{built[1]}{extra}", *constraints],
        env=CLEAN, check=True, timeout=1200,
    )  # fmt: skip
    ran(python, "-m", "pip", "check", cwd=tmp_path)
    shard = sorted(GOLDEN.glob("*.h5"))[0]
    assert "are best in most cells" in ran(python.with_name("tokenlabel"), "labels", "inspect", shard, cwd=tmp_path)
    ran(python, "-c", "from tokenlabel.labels import sparse_targets", cwd=tmp_path)
    if extra:
        ran(
            python,
            "-c",
            "from tokenlabel.models import create_model; create_model('lvvit_t', num_classes=2)",
            cwd=tmp_path,
        )
