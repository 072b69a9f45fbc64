"""Every command that README and docs print is run here, planned here, or at least one that there is, with options that there are.

A command stands on a line of its own, indented or in a block of `sh`, or between backticks in a sentence. Verbs of RUN are run on
a small finished study, with its names in place of the pages'. Every `snakemake` line is planned. What is neither is parsed by the
command's own parser; ELSEWHERE says which test runs it, or why none can.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenlabel import cli
from tokenlabel.models import create_model, create_segmenter, save_segmenter

from .conftest import REPOSITORY, run_snakemake

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "examples").rglob("*.md")),
]
PROGRAMS = {"tokenlabel", "snakemake", "make", "python", "pip", "torchrun", "srun", "sbatch", "scancel", "apptainer"}
RUN = {
    "status",
    "plan",
    "train explain",
    "predict",
    "segment predict",
    "visualise",
    "evaluate",
    "refresh",
    "annotate list",
    "labels export",
}
ELSEWHERE = {
    r"tokenlabel init": "tests/workflow/test_own_photographs.py",
    r"tokenlabel export .*--onnx": "tests/unit/models/test_export.py",
    r"tokenlabel annotate import": "tests/unit/annotate/test_import.py",
    r"tokenlabel evaluate .*\.pth": "tests/unit/eval/test_evaluate_folder.py, with files that it makes",
    r"tokenlabel train --explain --spec": "tests/unit/train/test_explain.py",
    r"make (venv|demo|test|test-slurm|bench|campaign|lint|docs|site|lock)": "minutes, or this very suite",
    r"python examples/custom_folder": "tests/workflow/test_own_photographs.py",
    r"python (examples/tinyimagenet20|docs/studies)": "tests/workflow/test_tinyimagenet20.py, tests/unit/test_studies.py",
    r"python examples/camvid": "tests/workflow/test_camvid.py",
    r"(torchrun|srun|sbatch|scancel) ": "needs a cluster; tests/slurm",
    r"apptainer ": "there is none where the tests run; tests/workflow/test_environments.py has a stand-in",
    r"pip install": "needs an index and minutes; tests/unit/test_distribution.py installs the wheel",
}
PLACEHOLDER = re.compile(r"\.\.\.|[A-Z]{3,}|NAME|[{}|<>…]")


@dataclass(frozen=True)
class Command:
    """A command of a page; `whole` where it stands on lines of its own."""

    page: str
    text: str
    whole: bool

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    def __str__(self) -> str:
        return f"{self.page}: {self.text}"


def commands_of(page: Path) -> Iterator[Command]:
    """The commands of a page, in order."""
    name, fence, kept = str(page.relative_to(REPOSITORY)), "", ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fence = "" if fence else line.strip().removeprefix("```") or "text"
            continue
        if fence in ("sh", "bash") or (not fence and line.startswith("    ")):
            kept += line.strip()
            if kept.endswith("\\"):
                kept = kept[:-1]
                continue
            with contextlib.suppress(ValueError):  # a sentence with an apostrophe, of an example of output
                for text in split_line(kept):
                    yield Command(name, text, whole=True)
            kept = ""
        elif not fence:
            for text in re.findall(r"`((?:tokenlabel|snakemake|make) [^`]+)`", line):
                yield Command(name, text, whole=False)


def split_line(line: str) -> Iterator[str]:
    """The commands of a shell line, without comment and variables."""
    line = shlex.join(shlex.split(line, comments=True)) if "#" in line else line
    for part in re.split(r" && | \| |; ", line):
        text = re.sub(r"^(\w+=\S+ )+", "", part.strip())
        if text.split(" ")[0] in PROGRAMS and not text.startswith("make of"):
            yield text


COMMANDS = list(dict.fromkeys(command for page in PAGES if page.exists() for command in commands_of(page)))
WHOLE = [command for command in COMMANDS if command.whole]


def of_program(name: str, commands: list[Command]) -> list[Command]:
    return [command for command in commands if command.text.split()[0] == name]


def test_the_pages_commands_are_found() -> None:
    pages = {command.page for command in WHOLE}
    assert {"README.md", "CONTRIBUTING.md", "docs/status.md", "examples/custom_folder/README.md"} <= pages
    assert len(of_program("tokenlabel", WHOLE)) > 20
    assert len(of_program("snakemake", WHOLE)) > 15


# --- tokenlabel ---


def parsed(words: list[str], monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the command line understands; it ends the process where it does not."""
    found: list[argparse.Namespace] = []
    with monkeypatch.context() as patch:
        patch.setattr(cli, "run_command", lambda run, args: found.append(args) or 0)
        cli.main(words)
    return found[0]


@pytest.mark.parametrize("command", of_program("tokenlabel", WHOLE), ids=str)
def test_tokenlabel_commands_are_understood(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command.words[1:]
    if "..." in words:  # the rest of a long command is left to the reader
        check_verb_and_options(words, monkeypatch)
    elif words[-1] not in ("--help", "--version"):
        assert parsed(words, monkeypatch).verb


@pytest.mark.parametrize("command", of_program("tokenlabel", [c for c in COMMANDS if not c.whole]), ids=str)
def test_verbs_and_options_in_sentences_are_there(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in re.sub(r"(\w+) ((?:\w+ \| )+)", r"\1 ", command.text).split(" | "):
        check_verb_and_options(shlex.split(text)[1:], monkeypatch)


def check_verb_and_options(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the verb's help names every option that a shortened command has."""
    if not words or words[0] in ("VERB", "--version", "--help"):
        return
    verb = [word for word in words[:2] if re.fullmatch(r"[a-z]+", word)] + [
        w for w in words if w in ("--list", "--explain")
    ]
    parser: list[argparse.ArgumentParser] = []

    def keep(self: argparse.ArgumentParser, *_: Any) -> None:
        parser.append(self)
        raise SystemExit(0)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(argparse.ArgumentParser, "print_help", keep)
        cli.main([*verb, "--help"])
    assert ended.value.code == 0, words
    known = set(parser[0].format_help().replace(",", " ").split())
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in known or option in ("--list", "--explain"), (
            f"no {option} in tokenlabel {' '.join(verb)} --help"
        )


@pytest.fixture(scope="module")
def workplace(_finished_study: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of its own, for commands that change things."""
    place = tmp_path_factory.mktemp("documented") / "photos_study"
    shutil.copytree(_finished_study, place, ignore=shutil.ignore_patterns(".snakemake"))
    return place


def make_segmenter(folder: Path) -> None:
    """A small segmenter in random weights, as a run leaves it."""
    settings = {
        "depth": 2, "width": 16, "heads": 2, "stem_channels": 8, "stem_kernels": (3, 3, 3, 3), "stem_strides": (2, 1, 2, 2),
    }  # fmt: skip
    head = {
        "kind": "fcn", "channels": 8, "convolutions": 1, "concatenate_input": False, "dropout": 0.0,
        "levels": {"blocks": [2], "scales": [1], "deepest_channels": None}, "auxiliary": None,
    }  # fmt: skip
    spec = {"model": {"architecture": "lvvit_t", "settings": settings}, "recipe": {"crop_px": 64, "short_side_px": 64}}
    folder.mkdir()
    save_segmenter(folder, create_segmenter(create_model("lvvit_t", 1, 64, **settings), head, 3), spec, "abc", 0)


@pytest.fixture(scope="module")
def names(workplace: Path, photographs: Path) -> dict[str, str]:
    """A page's word -> what stands for it in the workplace."""
    runs = [str(path.parent) for path in sorted(workplace.glob("results/runs/*/seed0/done.json"))]
    (labels,) = (workplace / "results" / "labels").iterdir()
    (data,) = (workplace / "results" / "data").iterdir()
    classes = sorted((photographs / "val").iterdir())
    make_segmenter(workplace / "segmenter")
    return {
        "SEGMENTER": str(workplace / "segmenter"), "results/segmentation/NAME/seed0": str(workplace / "segmenter"),
        "my_photos": str(classes[0]),
        "results/runs/RUN/seed0": runs[0], "my_photos_study/results/runs/RUN/seed0": runs[0], "CHECKPOINT": runs[0],
        "RUN_A": runs[0], "RUN_B": runs[1], "PHOTOS": str(classes[0]), "/my/other/photos": str(classes[0]),
        "my photos": str(classes[0]), "PHOTO": str(next(classes[0].iterdir())), "/photos/val": str(photographs / "val"),
        "photos_study": str(workplace), "demo_run": str(workplace), "my_study.yaml": str(workplace / "study.yaml"),
        "beta.yaml": str(workplace / "study.yaml"), "mine": "finetune", "lvvit_m": "lvvit_small",
        "results/labels/nfnet_f6-1a2b3c4d": str(labels), "results/data/imagenet-5e6f7a8b": str(data),
    }  # fmt: skip


def runs_here(command: Command) -> bool:
    words = command.words[1:]
    verb = f"{words[0]} {words[1]}" if words[0] in ("labels", "annotate", "segment") else words[0]
    verb = f"{words[0]} {option}" if (option := "list") and "--list" in words else verb
    verb = "train explain" if "--explain" in words else verb
    return verb in RUN and not any(re.match(pattern, command.text) for pattern in ELSEWHERE) and "..." not in words


@pytest.mark.parametrize("command", [c for c in of_program("tokenlabel", WHOLE) if runs_here(c)], ids=str)
def test_tokenlabel_commands_run(
    command: Command, workplace: Path, names: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = [names.get(word, word) for word in command.words[1:]]
    for place, word in enumerate(words[:-1]):
        if word in ("--out", "--maps"):
            words[place + 1] = str(tmp_path / words[place + 1])
    monkeypatch.chdir(REPOSITORY if "--recipe" in words else workplace)
    assert cli.main(words) == 0


# --- snakemake ---


def configfiles(words: list[str]) -> tuple[str, ...]:
    """The overlays that a snakemake command names."""
    if "--configfile" not in words:
        return ()
    after = words[words.index("--configfile") + 1 :]
    return tuple(after[: next((n for n, word in enumerate(after) if word.startswith("-")), len(after))])


def overlay_of(name: str, page: Path, own: dict[str, Any]) -> dict[str, Any]:
    """An overlay that a page names: a file of the repository, the page's own block of that name, or a study of one's own."""
    if (REPOSITORY / name).exists():
        return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))
    block = re.search(rf"```yaml\n# {re.escape(name)}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return yaml.safe_load(block[1]) if block else own


def plans() -> dict[tuple[str, ...], list[Command]]:
    """Overlays, with the page where they are its own -> the commands that are planned together."""
    found: dict[tuple[str, ...], list[Command]] = {}
    for command in of_program("snakemake", COMMANDS):
        if command.whole or not PLACEHOLDER.search(command.text):
            files = configfiles(command.words)
            shared = all((REPOSITORY / name).exists() for name in files)
            found.setdefault(("" if shared else command.page, *files) if files else (), []).append(command)
    return found


PLANS = plans()


@pytest.mark.parametrize("files", PLANS, ids=lambda files: " ".join(files).strip() or "config.yaml")
def test_snakemake_commands_are_planned(files: tuple[str, ...], small_study: dict[str, Any], tmp_path: Path) -> None:
    from snakemake.cli import get_argument_parser

    merged: dict[str, Any] = {}
    for name in files[1:]:
        merged = merge(merged, overlay_of(name, REPOSITORY / files[0], small_study))
    targets: set[str] = set()
    for command in PLANS[files]:
        words = [word for word in command.words[1:] if word != "..."]
        told = get_argument_parser().parse_args(words)
        assert all((REPOSITORY / name / "config.yaml").exists() for name in told.profile or ()), command
        targets |= {target for target in told.targets if not PLACEHOLDER.search(target)} if not told.unlock else set()
    planned = run_snakemake(tmp_path, *sorted(targets or {"all"}), "-n", "--quiet", "rules", overlay=merged or None)
    assert planned.returncode == 0, planned.stderr[-2000:]


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As Snakemake merges overlays."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


# --- the others ---


@pytest.mark.parametrize("command", of_program("make", COMMANDS), ids=str)
def test_make_has_the_target(command: Command) -> None:
    said = subprocess.run(
        [*command.words, "--dry-run"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("command", of_program("python", WHOLE), ids=str)
def test_python_files_and_modules_are_there(command: Command) -> None:
    words = command.words[1:]
    if words[0] == "-m":
        module = words[1].removeprefix("tokenlabel.").replace(".", "/")
        assert any((REPOSITORY / top / module).exists() for top in ("src", ".")) or words[1] in ("venv", "http.server")
    else:
        assert (REPOSITORY / words[0]).exists(), command


@pytest.mark.parametrize("pattern", ELSEWHERE)
def test_what_is_tested_elsewhere_is(pattern: str) -> None:
    assert any(re.match(pattern, command.text) for command in COMMANDS), "no page has it any more"
    for path in re.findall(r"tests/\S+\.py", ELSEWHERE[pattern]):
        assert (REPOSITORY / path).exists(), path
