"""The command line: every verb explains itself, a mistake is one line, importing labels or the plan loads no torch."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.warm import warm_python
from tokenlabel.cli import VERBS, main
from tokenlabel.core.errors import missing_packages_named


def run(*arguments: str, timeout_s: int = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [warm_python(), "-m", "tokenlabel", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: tokenlabel {verb}" in shown
    assert len(shown.splitlines()) > 4


@pytest.mark.parametrize("stage", ["annotate", "train", "segment", "eval", "labels", "data", "demo"])
def test_the_stages_are_modules_too(stage: str) -> None:
    finished = subprocess.run(
        [warm_python(), "-m", f"tokenlabel.{stage}", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0
    assert f"usage: python -m tokenlabel.{stage}" in finished.stdout


def test_help_and_version_are_quick_and_an_unknown_verb_is_refused() -> None:
    assert "annotate" in run("--help").stdout
    assert run("--version").stdout.startswith("tokenlabel 0.")
    finished = run("anotate")
    assert finished.returncode == 2
    assert "invalid choice: 'anotate'" in finished.stderr


@pytest.mark.parametrize("start", ["cli.main(['demo', 'here'])", "core.command.run_stage('demo', ['here'])"])
def test_a_package_that_the_base_install_lacks_is_named(start: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules['PIL'] = None; from tokenlabel import cli, core; sys.exit({start})"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == 2
    assert finished.stderr.startswith("error: the Python module PIL is not installed; ")
    assert "pip install 'tokenlabel[study]'" in finished.stderr
    assert finished.stderr.count("\n") == 1


def test_a_module_of_our_own_that_is_missing_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError), missing_packages_named():
        importlib.import_module("tokenlabel.core.not_there")


@pytest.mark.parametrize(
    "statement",
    [
        "import tokenlabel.core.study, tokenlabel.core.cost, tokenlabel.core.log",
        "from tokenlabel.labels import LabelStore",
        "import tokenlabel.cli",
        "import tokenlabel.eval.status_command",
    ],
)
def test_torch_is_not_loaded_where_it_is_not_needed(statement: str) -> None:
    code = f"{statement}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_spec_is_one_line(tmp_path: Path) -> None:
    finished = run(
        "train", "--spec", "no.json", "--machine", "m.json", "--manifest", "x", "--done", str(tmp_path / "d")
    )
    assert finished.returncode == 2
    assert finished.stderr.splitlines() == [
        "error: no.json: the run's spec is missing. The workflow writes it when it starts; run snakemake."
    ]
