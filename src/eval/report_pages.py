"""The report's own pages: result tables that sort and search, the configuration, the versions, what is not made yet.

Snakemake's report shows pictures and HTML and lets other files only be downloaded, so each table becomes a page here. Every page
is one file that loads nothing, and text from the configuration or a result stays text: the template escapes it, and a content
policy lets no script run but the one below. Called by `report_pages_command`.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import yaml

from ..core.log import git_commit, library_versions
from ..core.report_contents import damage

FURTHER_LIBRARIES = ("snakemake", "torchmetrics", "fvcore", "matplotlib", "pydantic")
# columns of a result table that are seen at first; the others come with a click
FIRST_COLUMNS = (
    "label", "state", "seeds", "top1_mean", "top1_sd", "paper_top1", "difference", "real_top1_mean",
    "miou_ss_mean", "miou_ss_sd", "paper_miou_ss", "miou_ms_mean", "miou_ms_sd", "paper_miou_ms", "difference_miou_ms",
    "gain_miou_ss_mean", "gain_miou_ms_mean", "against", "parameters_m", "gmacs", "gpu_hours", "capped",
)  # fmt: skip
HEADINGS = {
    "label": "setting", "top1_mean": "top-1 %", "top1_sd": "sd", "paper_top1": "paper's top-1 %", "top5_mean": "top-5 %",
    "real_top1_mean": "ReaL top-1 %", "parameters_m": "10⁶ parameters", "gmacs": "10⁹ multiply-adds", "gpu_hours": "GPU hours",
    "miou_ss_mean": "mIoU %, one scale", "miou_ss_sd": "sd", "paper_miou_ss": "paper's",
    "miou_ms_mean": "mIoU %, multi", "miou_ms_sd": "sd", "paper_miou_ms": "paper's", "difference_miou_ms": "difference",
    "gain_miou_ss_mean": "gain, one scale", "gain_miou_ms_mean": "gain, multi", "against": "over",
}  # fmt: skip

SCRIPT = """
const table = document.querySelector('table'), filter = document.querySelector('#filter'), all = document.querySelector('#all');
const body = table && table.tBodies[0];
const order = new Intl.Collator('en', {numeric: true}).compare;
function compare(a, b) {  // numbers by size, words by letters, empty cells last
  if (a === '' || b === '') return (a === '') - (b === '');
  const difference = Number(a) - Number(b);
  return Number.isNaN(difference) ? order(a, b) : difference;
}
if (table) for (const heading of table.tHead.rows[0].cells) heading.querySelector('button').onclick = () => {
  const column = heading.cellIndex, down = heading.ariaSort === 'ascending';
  for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
  heading.ariaSort = down ? 'descending' : 'ascending';
  const text = row => row.cells[column].textContent.trim();
  const rows = [...body.rows].sort((a, b) => {
    const found = compare(text(a), text(b));
    return down && text(a) !== '' && text(b) !== '' ? -found : found;
  });
  body.append(...rows);
};
if (filter) filter.oninput = () => {
  for (const row of body.rows) row.hidden = !row.textContent.toLowerCase().includes(filter.value.toLowerCase());
};
if (all) all.onchange = () => table.classList.toggle('few', !all.checked);
"""

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.2rem 1.5rem; color: #1a202c; }
h1 { font-size: 1.25rem; margin: 0 0 .3rem; }
p { margin: .3rem 0 .8rem; max-width: 60rem; }
.problem { background: #fff4e5; border-left: 4px solid #d55e00; padding: .5rem .8rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid #d7dce2; text-align: left; vertical-align: top; max-width: 26rem; }
th { background: #eef1f5; white-space: nowrap; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; cursor: pointer; }
th[aria-sort=ascending] button::after { content: ' ▲'; }
th[aria-sort=descending] button::after { content: ' ▼'; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.path { font-family: ui-monospace, monospace; font-size: .8rem; max-width: 34rem; }
td.path { overflow-wrap: anywhere; white-space: pre-line; }
tr:hover td { background: #f6f8fa; }
.few .further { display: none; }
img { max-width: 100%; }
.tools { display: flex; gap: 1.5rem; margin: .6rem 0; align-items: center; }
#filter { font: inherit; padding: .2rem .5rem; width: 16rem; }
code, pre { font-family: ui-monospace, monospace; font-size: .85rem; }
pre { background: #f6f8fa; padding: .6rem .9rem; margin: .3rem 0 .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; padding: .2rem 0; }
"""

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta http-equiv="Content-Security-Policy"
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src '{{ allowed }}'">
<style>{{ style | safe }}</style></head><body>
<h1>{{ title }}</h1>
{% for line in lines %}<p>{{ line }}</p>
{% endfor %}
{% if problem %}<p class="problem">{{ problem }}</p>
{% endif %}
{% if columns %}
<div class="tools"><label>Search <input id="filter" type="search"></label>
{% if columns | selectattr("further") | list %}<label><input id="all" type="checkbox"> all columns</label>{% endif %}
<span>{{ rows | length }} rows; a click on a heading sorts</span></div>
<div class="scroll"><table class="few"><thead><tr>
{% for column in columns %}<th scope="col" class="{{ 'further' if column.further }}"><button>{{ column.heading }}</button></th>
{% endfor %}
</tr></thead><tbody>
{% for row in rows %}<tr>
{% for column in columns %}
<td class="{{ column.kind }}{{ ' further' if column.further }}">{{ row[column.name] }}</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% if picture %}<p><img alt="The table as a figure" src="data:image/png;base64,{{ picture }}"></p>
{% endif %}
{% for section in sections %}
<details{{ ' open' if section.open }}><summary>{{ section.name }}</summary><pre>{{ section.text }}</pre></details>
{% endfor %}
<script>{{ script | safe }}</script></body></html>
"""


class _Dumper(yaml.SafeDumper):
    """Writes every kind of dict, also those that name a missing key, as a mapping."""


_Dumper.add_multi_representer(dict, yaml.SafeDumper.represent_dict)
_PAGE = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(TEMPLATE)


def make_pages(contents: Mapping[str, Any], base: Path) -> dict[str, str]:
    """Every page of a study's report.

    Args:
        contents: as the workflow writes it: `results` (the fields of core.report_contents.Result, and `command`),
            `configuration` (resolved) and `digest` (of it).
        base: the folder that its paths are relative to.

    Returns:
        page name -> HTML.
    """
    results = contents["results"]
    pages = {result["name"]: _table_page(result, base) for result in results if result["table"]}
    pages["about_missing"] = _missing_page(results, base)
    pages["about_configuration"] = _configuration_page(contents)
    pages["about_versions"] = _versions_page(contents)
    return pages


def _table_page(result: Mapping[str, Any], base: Path) -> str:
    """A result's table; what stands in for it, or why there is none."""
    paper = result["paper"].strip()
    lines = (
        [f"Not in the paper{paper[4:]}." if paper.startswith("none") else f"In the paper: {paper}."] if paper else []
    )
    found = damage(base / result["table"])
    problem, source, picture = "", result["table"], ""
    if found == "missing":
        problem = f"Not made yet. To make it: {result['command']}"
    elif found:
        problem = f"{result['table']}: {found}. Delete it, then: {result['command']}"
    if found and result["so_far"] and damage(base / result["so_far"]) is None:
        source, found = result["so_far"], None
        problem += ". What there is so far:"
        drawn = base / Path(source).parent / "figures" / f"{Path(source).stem}.png"
        picture = base64.b64encode(drawn.read_bytes()).decode() if damage(drawn) is None else ""
    rows = [] if found else _read_rows(base / source)
    capped = sorted({row["capped"] for row in rows if row.get("capped")})
    if capped:
        lines.append(f"Run with less than the paper's cost, so not comparable with its numbers: {' | '.join(capped)}.")
    if any(row.get("state") == "planned" for row in rows):
        lines.append("Planned: no run of that row is finished; its cells are empty.")
    if not found:
        lines.append(f"From {source}.")
    return _page(result["question"], lines=lines, problem=problem, rows=rows, first=FIRST_COLUMNS, picture=picture)


def _read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _missing_page(results: Sequence[Mapping[str, Any]], base: Path) -> str:
    """What the study could show and does not, and the command for each."""
    rows = []
    for result in results:
        reasons = {path: damage(base / path) for path in result["files"]}
        lacking = {path: reason for path, reason in reasons.items() if reason is not None}
        if lacking:
            rows.append(
                {
                    "selected": "yes" if result["selected"] else "no",
                    "of": " ".join(result["category"].split()),
                    "what": "\n".join(
                        path if reason == "missing" else f"{path} ({reason}: delete it first)"
                        for path, reason in lacking.items()
                    ),
                    "command": result["command"],
                }
            )
    rows.sort(key=lambda row: row["selected"], reverse=True)
    there = len(results) - len(rows)
    lines = [
        f"{there} of {len(results)} results are here. Selected ones are those of this study's configuration (select); "
        "snakemake all makes them."
    ]
    return _page("What is not made yet", lines=lines, rows=rows)


def _configuration_page(contents: Mapping[str, Any]) -> str:
    """The resolved configuration, a part for each top-level key."""
    short = ("data_root", "weights_root", "dataset", "select", "defaults", "caps")
    sections = [
        {"name": name, "text": _as_yaml({name: part}), "open": name in short}
        for name, part in contents["configuration"].items()
    ]
    lines = [
        f"Digest {contents['digest']}. Every key, overlays merged. results/study.json says the same, and runs as --configfile."
    ]
    return _page("Configuration", lines=lines, sections=sections)


def _as_yaml(part: Mapping[str, Any]) -> str:
    return yaml.dump(part, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _versions_page(contents: Mapping[str, Any]) -> str:
    """Versions of what made this report's pages; a run's own are in its log and its done.json."""
    versions = {"tokenlabel's commit": git_commit(), **library_versions()}
    for name in FURTHER_LIBRARIES:
        versions[name] = metadata.version(name)
    versions["system"] = platform.platform()
    rows = [{"what": name, "version": version} for name, version in versions.items()]
    lines = [
        f"What made this report. Configuration {contents['digest']}. The first line of every job's log names its own.",
        "A + after the commit: the checkout had changes that are not committed.",
    ]
    return _page("Versions", lines=lines, rows=rows)


def _page(
    title: str,
    *,
    lines: Sequence[str] = (),
    problem: str = "",
    rows: Sequence[Mapping[str, str]] = (),
    first: Sequence[str] = (),
    sections: Sequence[Mapping[str, Any]] = (),
    picture: str = "",
) -> str:
    """One page of HTML: sentences, a table, a picture (PNG in base64) and foldable texts, each where given."""
    return _PAGE.render(
        title=title, lines=lines, problem=problem, rows=rows, columns=_columns(rows, first), sections=sections,
        picture=picture, style=STYLE, script=SCRIPT, allowed=_allowed(SCRIPT),
    )  # fmt: skip


def _columns(rows: Sequence[Mapping[str, str]], first: Sequence[str]) -> list[dict[str, Any]]:
    """The columns that have a value anywhere, those of `first` before the others, which are further ones."""
    filled = [name for name in (rows[0] if rows else ()) if any(row[name] for row in rows)]
    leading = [name for name in first if name in filled] if "label" in filled else []  # else it is no result table
    ordered = leading + [name for name in filled if name not in leading]
    return [
        {
            "name": name,
            "heading": HEADINGS.get(name, name.replace("_", " ")),
            "kind": _kind([row[name] for row in rows if row[name]]),
            "further": bool(leading) and name not in leading,
        }
        for name in ordered
    ]


def _kind(values: Sequence[str]) -> str:
    """How a column's cells are written."""
    if all(_is_number(value) for value in values):
        return "number"
    return "path" if all("/" in value or value.startswith("snakemake ") for value in values) else "words"


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _allowed(script: str) -> str:
    """The content policy's name of the only script that may run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
