"""The report's pages from a list of results: what each says of whole, missing and damaged files."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tokenlabel.cli import main
from tokenlabel.core.files import write_json
from tokenlabel.eval.report_pages import make_pages

TABLE = "label,state,seeds,top1_mean,top1_sd,paper_top1,capped,name,run\n"


def contents(**changes: Any) -> dict[str, Any]:
    result = {
        "name": "beta", "category": "Table  2, beta", "label": "", "question": "How large is beta?", "paper": "Table 2",
        "files": ["results/beta.csv", "results/figures/beta.png"], "table": "results/beta.csv",
        "so_far": "results/so_far/beta.csv", "selected": True, "command": "snakemake results/beta.csv",
    }  # fmt: skip
    configuration = {"data_root": "/data", "caps": {"epochs": None}, "models": {"<b>": {"weights": "a & b"}}}
    return {"results": [{**result, **changes}], "configuration": configuration, "digest": "0123abcd"}


def write(base: Path, path: str, text: str) -> None:
    (base / path).parent.mkdir(parents=True, exist_ok=True)
    (base / path).write_text(text, encoding="utf-8")


def test_a_table_leads_with_what_is_read_first_and_leaves_out_empty_columns(tmp_path: Path) -> None:
    write(tmp_path, "results/beta.csv", TABLE + "one <i>,done,2,81.25,,83.3,epochs 300->3,one,results/runs/a\n")
    page = make_pages(contents(), tmp_path)["beta"]
    heads = [part.split("</button>")[0] for part in page.split("<button>")[1:]]
    assert heads == ["setting", "state", "seeds", "top-1 %", "paper&#39;s top-1 %", "capped", "name", "run"]
    assert "one &lt;i&gt;" in page
    assert '<td class="number">81.25</td>' in page
    assert '<td class="path further">results/runs/a</td>' in page
    assert "epochs 300-&gt;3" in page
    assert 'class="problem"' not in page


def test_a_table_of_segmentation_leads_with_its_mean_iou(tmp_path: Path) -> None:
    head = (
        "name,label,state,seeds,miou_ss_mean,miou_ss_sd,pixel_acc_ss_mean,miou_ms_mean,against,gain_miou_ms_mean,run\n"
    )
    write(tmp_path, "results/beta.csv", head + "token,token labels,done,3,30.94,1.50,76.90,32.20,hard,0.80,r\n")
    heads, seen = [], make_pages(contents(), tmp_path)["beta"].split("<tr>")[1]
    for cell in seen.split("<th")[1:]:
        if "further" not in cell.split(">")[0]:
            heads.append(cell.split("<button>")[1].split("</button>")[0])
    assert heads == [
        "setting", "state", "seeds", "mIoU %, one scale", "sd", "mIoU %, multi", "gain, multi", "over",
    ]  # fmt: skip


def test_a_table_of_another_kind_keeps_its_columns_as_they_are(tmp_path: Path) -> None:
    write(tmp_path, "results/beta.csv", "target,jobs,gpu_hours\nmain,86,10550.33\n")
    page = make_pages(contents(), tmp_path)["beta"]
    assert [part.split("</button>")[0] for part in page.split("<button>")[1:]] == ["target", "jobs", "GPU hours"]
    assert "further" not in page.split("<body>")[1]


@pytest.mark.parametrize(
    ("table", "so_far", "says", "not_says"),
    [
        (None, None, "Not made yet. To make it: snakemake results/beta.csv", "<table"),
        ("label\none", None, "results/beta.csv: cut off in its last line. Delete it, then: snakemake", "<table"),
        (None, "label,state\none,planned\n", "What there is so far:", "done"),
        ("label,state\none,done\n", "label,state\none,planned\n", "From results/beta.csv.", "planned"),
        (None, "label\none", "Not made yet", "so far"),
    ],
    ids=["missing", "damaged", "so far", "whole", "so far damaged"],
)
def test_what_is_not_there_is_said(
    tmp_path: Path, table: str | None, so_far: str | None, says: str, not_says: str
) -> None:
    for path, text in (("results/beta.csv", table), ("results/so_far/beta.csv", so_far)):
        if text is not None:
            write(tmp_path, path, text)
    page = make_pages(contents(), tmp_path)["beta"].split("<body>")[1].split("<script>")[0]
    assert says in page
    assert not_says not in page


def test_missing_results_are_listed_with_their_commands(tmp_path: Path) -> None:
    write(tmp_path, "results/beta.csv", "label\none\n")
    page = make_pages(contents(), tmp_path)["about_missing"]
    assert "results/figures/beta.png" in page
    assert "0 of 1 results are here" in page
    assert "snakemake results/beta.csv" in page
    whole = make_pages(contents(files=["results/beta.csv"]), tmp_path)["about_missing"]
    assert "1 of 1 results are here" in whole
    assert "<table" not in whole.split("<body>")[1].split("<script>")[0]


def test_the_configuration_and_the_versions_are_pages(tmp_path: Path) -> None:
    pages = make_pages(contents(paper="none (ours)"), tmp_path)
    assert "Not in the paper (ours)." in pages["beta"]
    assert "&lt;b&gt;" in pages["about_configuration"]
    assert "weights: a &amp; b" in pages["about_configuration"]
    assert "0123abcd" in pages["about_configuration"]
    for library in ("torch", "timm", "snakemake", "tokenlabel&#39;s commit"):
        assert f">{library}</td>" in pages["about_versions"]


def test_the_command_replaces_the_folder_and_names_a_missing_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "pages/of_an_older_study.html", "old")
    assert main(["report", "pages", "--spec", "report.json", "--out", "pages"]) == 2
    assert "report.json: the report's contents is missing" in capsys.readouterr().err
    write_json(tmp_path / "report.json", contents())
    assert main(["report", "pages", "--spec", "report.json", "--out", "pages"]) == 0
    assert sorted(path.stem for path in (tmp_path / "pages").iterdir()) == [
        "about_configuration", "about_missing", "about_versions", "beta",
    ]  # fmt: skip


def test_a_report_without_pages_says_how_to_make_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 2
    assert "results/pages: no such folder; it holds the report's pages. Run snakemake" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("Traceback\n\nOSError: [Errno 28] No space left\n\n", "cannot be written (OSError: [Errno 28] No space"),
        ("Using profile x\nWorkflowError:\nno rule for y\nfile.smk\n", "could not make the report: WorkflowError: no rule for y"),
        ("error: configuration key caps.epochz: unknown key\n", "could not make the report: error: configuration key caps"),
        ("", "could not make the report: it said nothing"),
    ],
    ids=["full disk", "workflow", "configuration", "silent"],
)  # fmt: skip
def test_a_report_that_snakemake_cannot_make_says_why_and_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], said: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pages").mkdir()

    def snakemake(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        Path(command[command.index("--report") + 1]).write_text("<html")
        return subprocess.CompletedProcess(command, 1, "", said)

    monkeypatch.setattr(subprocess, "run", snakemake)
    assert main(["report", "--pages", "pages", "--out", "report.html"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: report.html: ")
    assert expected in line
    assert [path.name for path in tmp_path.iterdir()] == ["pages"]
