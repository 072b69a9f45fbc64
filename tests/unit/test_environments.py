"""envs/: conda environments, the container's definition and pyproject name the same packages in the same versions."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.unit.test_packaging import locked_versions

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENTS = sorted((REPOSITORY / "envs").glob("*.yaml"))


def pinned(environment: Path) -> list[str]:
    """The lines of an environment's pip section."""
    document = yaml.safe_load(environment.read_text(encoding="utf-8"))
    (lines,) = [item["pip"] for item in document["dependencies"] if isinstance(item, dict)]
    return lines


def test_environments_pin_what_the_lock_pins_and_cover_the_base_dependencies() -> None:
    lock = locked_versions()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", item)[0] for item in project["dependencies"]}
    study = {re.split(r"[<>=]", item)[0] for item in project["optional-dependencies"]["study"]}
    assert [path.stem for path in ENVIRONMENTS] == ["annotate", "eval", "train"]
    for path in ENVIRONMENTS:
        versions = dict(item.split("==") for item in pinned(path))
        assert names <= versions.keys(), path
        assert versions.keys() - names <= study, path
        for name, version in versions.items():
            assert lock[name] == version, f"{path}: {name}"


def test_every_environment_has_the_same_script_that_bash_understands() -> None:
    scripts = [path.with_suffix("").with_suffix(".post-deploy.sh") for path in ENVIRONMENTS]
    assert len({script.read_bytes() for script in scripts}) == 1
    subprocess.run(["bash", "-n", scripts[0]], check=True)
    copied = re.search(r"^cp -r (.+) \"\$copy\"$", scripts[0].read_text(), flags=re.MULTILINE)
    assert copied
    assert all((REPOSITORY / name).exists() for name in copied[1].split())


def test_every_rule_names_an_environment_that_there_is() -> None:
    named = set()
    for path in (REPOSITORY / "rules").glob("*.smk"):
        named |= set(re.findall(r"    conda:\n        \"\.\./envs/(\w+)\.yaml\"", path.read_text()))
    assert named == {path.stem for path in ENVIRONMENTS}


def test_the_image_is_made_of_the_lock() -> None:
    definition = (REPOSITORY / "envs" / "apptainer.def").read_text(encoding="utf-8")
    sections = re.split(r"^%(\w+)\n", definition, flags=re.MULTILINE)
    parts = dict(zip(sections[1::2], sections[2::2], strict=True))
    sources = [line.split()[0] for line in parts["files"].split("\n") if line.strip()]
    assert all((REPOSITORY / name).exists() for name in sources)
    assert "--constraint /opt/tokenlabel/requirements.lock" in parts["post"]
    assert '"/opt/tokenlabel[study]"' in parts["post"]
    versions = {re.search(r"python=([\d.]+)", path.read_text())[1] for path in ENVIRONMENTS}  # type: ignore[index]
    assert {re.search(r"^From: python:([\d.]+)-", definition, flags=re.MULTILINE)[1]} == versions  # type: ignore[index]
    assert 'f"{workflow.basedir}/envs/tokenlabel.sif"' in (REPOSITORY / "rules" / "common.smk").read_text()


def test_a_further_index_brings_the_build_for_cpus_for_the_same_pin(tmp_path: Path) -> None:
    """What docs/environments.md rests on: pip prefers 2.14.1+cpu where `==2.14.1` is asked for and both are to be had."""
    for version in ("1.0", "1.0+cpu"):
        name = f"pretended-{version}"
        with zipfile.ZipFile(tmp_path / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(
                f"{name}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: pretended\nVersion: {version}\n"
            )
            wheel.writestr(
                f"{name}.dist-info/WHEEL",
                "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            )
            wheel.writestr(f"{name}.dist-info/RECORD", "")
    asked = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-index",
        "--find-links",
        str(tmp_path),
        "pretended==1.0",
    ]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True)
    assert "Would install pretended-1.0+cpu" in found.stdout


@pytest.mark.campaign
@pytest.mark.network
@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=lambda path: path.stem)
def test_the_index_has_what_an_environment_pins(environment: Path) -> None:
    """pip resolves the pins with everything that they need, from nothing."""
    asked = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
        *pinned(environment),
    ]
    found = subprocess.run(asked, capture_output=True, text=True, timeout=900, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    versions = {
        entry["metadata"]["name"].lower().replace("_", "-"): entry["metadata"]["version"]
        for entry in yaml.safe_load(found.stdout)["install"]
    }
    lock = locked_versions()
    assert {name for name in versions if name not in lock} == set(), "packages that the lock does not have"
