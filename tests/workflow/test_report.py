"""The report in a real browser: what it shows of a study with missing, damaged and hostile parts, and that it asks no network."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tokenlabel.core.files import read_json
from tokenlabel.core.overlays import read_configuration

from .browser import CHROMIUM, Browser, open_browser
from .conftest import REPOSITORY, planned_jobs, run_snakemake
from .made_results import draw_picture, make_results

HOSTILE = "<img src=x onerror=alert(1)> & </script><script>alert(2)</script>"

needs_browser = pytest.mark.skipif(
    CHROMIUM is None and "TOKENLABEL_BROWSER_TESTS" not in os.environ,
    reason="no Chromium here (Debian's package chromium)",
)


@pytest.fixture(scope="module")
def hostile_overlay() -> dict[str, Any]:
    """The demo with texts that would run as scripts if anything let them."""
    overlay = yaml.safe_load((REPOSITORY / "demo" / "config.yaml").read_text(encoding="utf-8"))
    main = overlay["experiments"]["main"]
    main["rows"][0]["label"] = HOSTILE
    main["question"] = f"*Is* `this` _text_ |only|? {HOSTILE}"
    main["paper"] = f"Table 1 {HOSTILE}"
    overlay["select"]["experiments"] = ["main", "ablation_supervision", "ablation_participation"]
    return overlay


@pytest.fixture(scope="module")
def study(hostile_overlay: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose report was made of what there is: one figure cut off, one table damaged, one there so far."""
    directory = tmp_path_factory.mktemp("report")
    (directory / "study.yaml").write_text(yaml.safe_dump(hostile_overlay), encoding="utf-8")
    config = read_configuration([REPOSITORY / "config.yaml", directory / "study.yaml"])
    make_results(directory, config)
    results = directory / "results"
    figure = results / "figures" / "ablation_participation.png"
    figure.write_bytes(figure.read_bytes()[:-100])
    (results / "label_fidelity.csv").write_text("annotator,cosine\nlite0,0.9\nlite1")
    (results / "so_far").mkdir()
    (results / "so_far" / "ablation_residual.csv").write_text("label,state,top1_mean\nx + F(x),planned,\n")
    draw_picture(results / "so_far" / "figures" / "ablation_residual.png")
    finished = run_snakemake(directory, "results/report.html", "--cores", "1", overlay=hostile_overlay)
    assert finished.returncode == 0, finished.stderr[-5000:]
    assert "rule train_run" not in finished.stderr
    return directory


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture
def report(browser: Browser, study: Path) -> Iterator[Browser]:
    """The opened report; whatever a test did in it, nothing complained and nothing asked for anything outside."""
    browser.problems.clear()
    browser.requests.clear()
    browser.open(study / "results" / "report.html")
    browser.wait_for("document.querySelector('nav') !== null")
    yield browser
    assert browser.problems == []
    assert [address for address in browser.requests if not address.startswith(("file:", "data:", "blob:"))] == []


def show(report: Browser, path: str) -> None:
    """Opens a result as a reader does: its folder of the menu, then its eye."""
    report.evaluate("app.setView({navbarMode: 'menu'})")
    report.evaluate(
        f"""(() => {{
          const holds = ([_, parts]) => Object.values(parts).flat().includes({json.dumps(path)});
          const [category] = Object.entries(categories).find(holds);
          const item = [...document.querySelectorAll('nav li a')].find(link => link.textContent === category);
          item.click();
        }})()"""
    )
    label = json.dumps(report.evaluate(f"results[{json.dumps(path)}].labels.result"))
    row = f"[...document.querySelectorAll('nav tbody tr')].find(row => row.cells[0].textContent === {label})"
    report.wait_for(f"{row} !== undefined")
    report.evaluate(f"{row}.querySelector('a').click()")


@needs_browser
def test_every_figure_opens_and_decodes(report: Browser) -> None:
    figures = [path for path in report.evaluate("Object.keys(results)") if path.endswith(".png")]
    assert sorted(Path(path).stem for path in figures) == [
        "ablation_supervision", "curves_ablation_participation", "curves_ablation_supervision", "curves_main", "label_maps",
        "main", "plan",
    ]  # fmt: skip
    for path in figures:
        show(report, path)
        image = "document.querySelector('#app .h-screen img:not([class])')"
        address = f"results[{json.dumps(path)}].data_uri"
        report.wait_for(f"{image} !== null && {image}.src === {address} && {image}.complete")
        assert report.evaluate(f"{image}.naturalWidth") > 100, path
        width = report.evaluate(f"{image}.getBoundingClientRect().right")
        assert width <= report.evaluate("innerWidth"), f"{path} runs out of the window"
        top = report.evaluate(f"{image}.getBoundingClientRect().top")
        assert top >= 0, f"the top of {path} is cut off, and no scrolling shows it"


@needs_browser
def test_every_table_and_page_opens_in_the_report(report: Browser) -> None:
    pages = [path for path in report.evaluate("Object.keys(results)") if path.endswith(".html")]
    names = {Path(path).stem for path in pages}
    assert {"main", "ablation_supervision", "ablation_residual", "label_fidelity", "plan", "about_missing"} <= names
    for path in pages:
        show(report, path)
        report.wait_for(f"document.querySelector('iframe')?.src === results[{json.dumps(path)}].data_uri")
        report.wait_for("document.readyState === 'complete' && document.querySelector('h1') !== null", inside=True)
    show(report, "results/pages/ablation_supervision.html")
    report.wait_for("document.querySelectorAll('tbody tr').length === 5", inside=True)
    report.evaluate("document.querySelectorAll('th button')[3].click()", inside=True)
    assert report.evaluate("document.querySelectorAll('th')[3].ariaSort", inside=True) == "ascending"


@needs_browser
def test_folders_stand_in_the_order_of_the_paper_and_texts_are_only_text(report: Browser) -> None:
    folders = report.evaluate("[...document.querySelectorAll('nav li a')].map(link => link.textContent)")
    numbers = [folder.split(",")[0].split() for folder in folders if folder.startswith("Table")]
    assert [int(words[1]) for words in numbers] == sorted(int(words[1]) for words in numbers)
    assert len(numbers) > 4
    show(report, "results/figures/main.png")
    report.evaluate("app.showResultInfo('results/figures/main.png')")
    report.wait_for("document.querySelector('nav .prose') !== null")
    caption = report.evaluate("document.querySelector('nav .prose').textContent").replace("\u2060", "")
    assert f"*Is* `this` _text_ |only|? {HOSTILE}" in caption
    assert "configuration " in caption
    assert "System Message" not in report.evaluate(
        "workflow_desc + Object.values(results).map(result => result.caption)"
    )
    assert report.evaluate("document.querySelectorAll('img[src=x]').length") == 0


@needs_browser
def test_tables_sort_filter_and_show_more_columns(report: Browser, study: Path) -> None:
    report.open(study / "results" / "pages" / "main.html")
    assert report.evaluate("document.querySelector('tbody td').textContent") == HOSTILE
    assert report.evaluate("document.images.length") == 0
    report.open(study / "results" / "pages" / "ablation_supervision.html")
    columns = report.evaluate("[...document.querySelectorAll('th')].map(cell => cell.textContent)")
    top1 = columns.index("top-1 %")
    read = f"[...document.querySelectorAll('tbody tr')].map(row => Number(row.cells[{top1}].textContent))"
    unsorted = report.evaluate(read)
    assert unsorted != sorted(unsorted)
    for expected in (sorted(unsorted), sorted(unsorted, reverse=True)):
        report.evaluate(f"document.querySelectorAll('th button')[{top1}].click()")
        assert report.evaluate(read) == expected
    visible = "[...document.querySelectorAll('tbody tr')].filter(row => !row.hidden).length"
    assert report.evaluate(visible) == 5
    report.evaluate("filter.value = 'relabel'; filter.oninput()")
    assert report.evaluate(visible) == 2
    shown = "[...document.querySelectorAll('th')].filter(cell => cell.offsetParent !== null).length"
    few = report.evaluate(shown)
    report.evaluate("all.click()")
    assert report.evaluate(shown) == len(columns) > few


@needs_browser
def test_what_is_missing_or_damaged_is_named_with_its_command(report: Browser, study: Path) -> None:
    report.open(study / "results" / "pages" / "about_missing.html")
    rows = report.evaluate(
        "[...document.querySelectorAll('tbody tr')].map(row => [...row.cells].map(c => c.textContent))"
    )
    found = {command: (selected, what) for selected, _, what, command in rows}
    assert found["snakemake results/label_fidelity.csv"] == (
        "yes", "results/label_fidelity.csv (cut off in its last line: delete it first)"
    )  # fmt: skip
    assert found["snakemake results/ablation_participation.csv"][0] == "yes"
    assert "no whole PNG file" in found["snakemake results/ablation_participation.csv"][1]
    assert found["snakemake results/ablation_residual.csv"][0] == "no"
    assert "snakemake results/main.csv" not in found
    report.open(study / "results" / "pages" / "ablation_residual.html")
    assert "Not made yet" in report.evaluate("document.querySelector('.problem').textContent")
    assert report.evaluate("document.querySelector('tbody').textContent.includes('planned')")
    assert report.evaluate("document.querySelector('img').naturalWidth") > 200  # the report made it anew
    report.open(study / "results" / "pages" / "about_versions.html")
    assert report.evaluate("document.body.textContent.includes('snakemake')")


def test_a_report_that_was_made_is_current_and_knows_its_configuration(
    study: Path, hostile_overlay: dict[str, Any]
) -> None:
    again = planned_jobs(run_snakemake(study, "-n", "results/report.html", overlay=hostile_overlay))
    assert again.keys() <= {
        "make_plan",
        "make_report_pages",
        "make_report",
    }  # the plan counts the report's own jobs as done now
    contents = read_json(study / "results" / "tables" / "report.json")
    assert contents["configuration"]["dataset"]["name"] == "foolbox20"
    changed = copy.deepcopy(hostile_overlay)
    changed["machine"]["workers"] = 1
    finished = run_snakemake(study, "results/report.html", "--cores", "1", overlay=changed)
    assert finished.returncode == 0, finished.stderr[-3000:]
    assert "workers: 1" in (study / "results" / "pages" / "about_configuration.html").read_text(encoding="utf-8")


def test_a_report_of_nothing_names_every_table(hostile_overlay: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / hostile_overlay["data_root"]).mkdir()
    finished = run_snakemake(tmp_path, "results/report.html", "--cores", "1", overlay=hostile_overlay)
    assert finished.returncode == 0, finished.stderr[-3000:]
    html = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert html.count("<script>alert") == 0
    missing = (tmp_path / "results" / "pages" / "about_missing.html").read_text(encoding="utf-8")
    assert "snakemake results/main.csv" in missing
    assert "snakemake results/ablation_architectures.csv" in missing
