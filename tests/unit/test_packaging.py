"""What is shipped: a wheel that imports elsewhere, environments that agree with the lock, rules that are complete."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]


def test_a_wheel_installs_and_imports_elsewhere(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(REPOSITORY)],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    (wheel,) = tmp_path.glob("tokenlabel-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "elsewhere")
    folders = {path.name for path in (REPOSITORY / "src").iterdir() if (path / "__init__.py").exists()}
    assert {f"tokenlabel/{folder}/__init__.py" for folder in folders} <= names
    assert {"tokenlabel/py.typed", "tokenlabel/core/paper.csv"} <= names
    code = "import tokenlabel, tokenlabel.labels as l; l.LabelStore, l.sparse_targets; print(tokenlabel.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "elsewhere"), "PATH": ""},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert str(tmp_path / "elsewhere") in found.stdout


def test_environments_pin_what_the_lock_pins_and_cover_the_base_dependencies() -> None:
    lock = locked_versions()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=]", item)[0] for item in project["dependencies"]}
    study = {re.split(r"[<>=]", item)[0] for item in project["optional-dependencies"]["study"]}
    environments = sorted((REPOSITORY / "envs").glob("*.yaml"))
    assert [path.stem for path in environments] == ["annotate", "eval", "train"]
    for path in environments:
        (pinned,) = [item["pip"] for item in yaml.safe_load(path.read_text())["dependencies"] if isinstance(item, dict)]
        versions = dict(item.split("==") for item in pinned)
        assert names <= versions.keys(), path
        assert versions.keys() - names <= study, path
        for name, version in versions.items():
            assert lock[name] == version, f"{path}: {name}"
        assert path.with_suffix("").with_suffix(".post-deploy.sh").exists()


def test_the_lock_satisfies_pyproject() -> None:
    from packaging.requirements import Requirement

    lock = locked_versions()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    for item in wanted:
        requirement = Requirement(item)
        assert requirement.specifier.contains(lock[requirement.name.lower().replace("_", "-")]), item


def locked_versions() -> dict[str, str]:
    """Distribution -> version of requirements.lock, names in lower case with hyphens."""
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {
        name.lower().replace("_", "-"): version
        for name, version in (line.strip().split("==") for line in lines if "==" in line)
    }


RULES = [
    (path.name, rule.group(0))
    for path in sorted((REPOSITORY / "rules").glob("*.smk"))
    for rule in re.finditer(r"^rule \w+:\n(?:(?:    .*)?\n)+", path.read_text(), flags=re.MULTILINE)
]


@pytest.mark.parametrize(("file", "text"), RULES, ids=[re.match(r"rule (\w+)", text)[1] for _, text in RULES])
def test_every_rule_has_all_its_parts(file: str, text: str) -> None:
    lines = text.splitlines()
    assert re.fullmatch(r'    """.+\."""', lines[1]), f"{file}: no docstring"
    for part in ("input", "output", "log", "benchmark", "conda", "threads", "resources", "retries", "shell"):
        assert re.search(rf"^    {part}:", text, flags=re.MULTILINE), f"{file}: no {part}"
    assert "attempt" in text or "_runtime" in text
    assert "--log {log}" in text


def test_no_rule_escapes_the_look() -> None:
    assert len(RULES) == 21


def test_functions_of_rules_stand_in_common_only() -> None:
    for path in (REPOSITORY / "rules").glob("*.smk"):
        if path.name != "common.smk":
            assert not re.search(r"^def ", path.read_text(), flags=re.MULTILINE), path
    assert len((REPOSITORY / "Snakefile").read_text().splitlines()) <= 55


@pytest.mark.parametrize(
    "path", sorted((REPOSITORY / "src").rglob("*.py")), ids=lambda p: str(p.relative_to(REPOSITORY))
)
def test_every_module_says_what_it_is_and_none_is_a_god_file(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), path
    assert len(source.splitlines()) < 700
    assert path.stem not in {"utils", "helpers", "misc", "common"}


def test_snakemakes_own_linter_has_nothing_new_to_say() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint", "--snakefile", str(REPOSITORY / "Snakefile")],
        capture_output=True, text=True, cwd=REPOSITORY, timeout=120, check=False,
    )  # fmt: skip
    complaints = [line for line in (finished.stdout + finished.stderr).splitlines() if line.startswith("    * ")]
    assert complaints == []
