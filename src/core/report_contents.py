"""What the report shows, in which folder of its menu, and which command makes it: one list for rules, pages and captions.

Called by rules/common.smk. Looks whether files are there and whole; decides nothing about what they say.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .planned import RESULTS, Table, Training
from .segment_plan import SegmentationTable
from .so_far import compared_row
from .study import Study

ABOUT_FOLDER, BEFORE, LABELS = "About this study", "Before training", "Labels"
ABOUT_PAGES = {  # pages that are no result's -> what they are
    "about_configuration": "Configuration",
    "about_missing": "What is not made yet",
    "about_versions": "Versions",
}
VIEWS = "Side by side"  # label of a segmenter's page beside its classifier
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


class Other(NamedTuple):
    """A result that is no experiment's.

    Attributes:
        category, label, question: as a Result's.
        files: of the job that makes it, under results/.
        cheap: whether it needs no run.
        experiment: whose selection selects it; "" for none, it is made when it is asked for.
        possible: whether a study can have it; asking for one that it cannot have would end the report.
    """

    category: str
    label: str
    question: str
    files: tuple[str, ...]
    cheap: bool = False
    experiment: str = ""
    possible: Callable[[Study], bool] = lambda _: True


OTHERS = {
    "plan": Other(BEFORE, "Plan", "What will the study cost?", ("plan.csv", "figures/plan.png"), cheap=True),
    "published": Other(
        BEFORE,
        "Published checkpoints",
        "Do the published checkpoints reach their printed accuracy here?",
        ("published.csv", "figures/published.png"),
    ),
    "accuracy_parameters": Other(
        "Fig.  1, accuracy against parameters",
        "",
        "How accurate are models of one size?",
        ("figures/accuracy_parameters.csv", "figures/accuracy_parameters.png"),
        experiment="main",
    ),
    "comparison_cait": Other(
        "Table 12, comparison with CaiT",
        "",
        "How do LV-ViT's settings and accuracy compare with CaiT's?",
        ("comparison_cait.csv",),
        cheap=True,
        possible=lambda study: compared_row(study) is not None,
    ),
    "so_far": Other(ABOUT_FOLDER, "Progress", "How far is every table?", ("so_far/index.csv",), cheap=True),
}


@dataclass(frozen=True)
class Result:
    """The files of one job, as the report shows them.

    Attributes:
        name: of the page that shows its table, and of the job's result.
        category: folder of the report's menu.
        label: what it is among other results of that folder; "" where it is alone.
        question: that it answers.
        paper: where the paper has it; "" where that says nothing.
        files: all that the job leaves and the report shows. Snakemake fails where it is to show a job of which one is missing.
        table: the CSV among them, which gets a page; "" without.
        so_far: the CSV that stands in while some runs are missing, "" without.
        selected: whether this study makes it.
        cheap: whether it needs no run, so that the report makes it.
    """

    name: str
    category: str
    label: str
    question: str
    paper: str
    files: tuple[str, ...]
    table: str
    so_far: str
    selected: bool
    cheap: bool = False

    @property
    def command(self) -> str:
        """What makes it."""
        return f"snakemake {self.files[0]}"

    @property
    def state_of_table(self) -> str:
        """What its page shows now."""
        found = damage(Path(self.table))
        if found is None:
            return "table"
        if self.so_far and damage(Path(self.so_far)) is None:
            return "table so far"
        return "planned" if found == "missing" else "damaged"

    def shown_as(self, kind: str) -> str:
        """Name of one of its files in the report's list."""
        return f"{self.label}: {kind}" if self.label else kind[0].upper() + kind[1:]


def report_results(study: Study) -> tuple[Result, ...]:
    """Everything that the study's report may show, in reading order."""
    found = []
    for name, other in OTHERS.items():
        if other.possible(study):
            paths = tuple(str(RESULTS / file) for file in other.files)
            chosen = other.experiment in study.config.select.experiments
            about = (other.category, other.label, other.question, "")
            found.append(Result(name, *about, paths, paths[0], "", selected=chosen, cheap=other.cheap))
    if study.used_labels:
        paths = (str(RESULTS / "label_fidelity.csv"), str(RESULTS / "figures" / "label_fidelity.png"))
        question = "Are the stored labels what their annotator says of the same crop?"
        found.append(Result("label_fidelity", LABELS, "Fidelity", question, "", paths, paths[0], "", selected=True))
        maps = (str(RESULTS / "figures" / "label_maps.png"),)
        question = "Do the maps lie where the named things are?"
        found.append(Result("label_maps", LABELS, "Maps over photographs", question, "", maps, "", "", selected=True))
    selected = {table.name for table in study.selected_tables}
    for table in study.tables.values():
        about = (category_of(table), "", table.experiment.question, table.experiment.paper)
        so_far = str(RESULTS / "so_far" / f"{table.name}.csv")
        chosen = table.name in selected
        found.append(Result(table.name, *about, (table.csv, table.figure), table.csv, so_far, selected=chosen))
        if table.curves:
            found.append(Result(f"curves_{table.name}", *about, tuple(table.curves), "", "", selected=chosen))
    for transfer in study.offered_segmentations:
        about = (category_of(transfer), "", transfer.experiment.question, transfer.experiment.paper)
        chosen = transfer.name in study.config.select.segmentation
        # the report shows every evaluation's page of overlays, and Snakemake fails where one is missing
        files = (transfer.csv, transfer.figure, *(run.overlays(seed) for run, seed in transfer.trainings))
        found.append(Result(transfer.name, *about, files, transfer.csv, transfer.so_far[0], selected=chosen))
        found.append(Result(f"curves_{transfer.name}", *about, tuple(transfer.curves), "", "", selected=chosen))
        if transfer.viewed:
            about = (about[0], VIEWS, "Do tokens, segmentation and relevance lie where the things are?", about[3])
            found.append(Result(f"views_{transfer.name}", *about, (transfer.views,), "", "", selected=chosen))
    return tuple(found)


def overlays_place(study: Study, run: str, seed: str) -> tuple[str, str]:
    """Folder of the menu and name of a page of overlays: those of the first table that has the run."""
    for table in study.segmentation_tables.values():
        for row in table.rows:
            if row.run.name == run:
                return category_of(table), f"{row.name}: overlays, seed {seed}"
    return ABOUT_FOLDER, "Overlays"


def category_of(table: Table | SegmentationTable) -> str:
    """Folder of a table in the report's menu: the paper's table or figure, and what it is about.

    Snakemake sorts folders by letters. The second blank before a single digit, of which a browser shows one, puts Table 2
    before Table 10. It also makes each a link target of the captions' markup, which a colon or other signs would break.
    """
    about = table.name.removeprefix("ablation_").replace("_", " ")
    paper = " ".join(re.sub(r"[^\w.,()-]+", " ", table.experiment.paper).split())
    numbered = re.match(r"(Table|Fig\.)s? (\d+)(.*)", paper)
    if numbered:
        return f"{numbered[1]} {int(numbered[2]):2d}{numbered[3]}, {about}"
    own = not paper or paper.startswith("none")
    return f"Not in the paper, {about}" if own else f"{paper[:1].upper()}{paper[1:]}, {about}"


def capped_words(table: Table | SegmentationTable) -> str:
    """What caps changed of a table's runs; "" where nothing."""
    notes = {note for row in table.rows if isinstance(row.run, Training) for note in row.run.capped}
    return ", ".join(sorted(notes))


def inert(text: str) -> str:
    """Text that looks the same but cannot end a script: Snakemake writes labels and parameters into one as they are."""
    return text.replace("<", "<\u2060")


def as_rst(text: str) -> str:
    """Text for a caption in reStructuredText, without any markup of its own."""
    return inert(re.sub(r"([\\*`|_<>:\[\]])", r"\\\1", " ".join(text.split())))


def whole_evaluations(paths: Iterable[str]) -> bool:
    """Whether those evaluations that exist are whole JSON without a NaN; a table so far is made of no others."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    for path in paths:
        try:
            json.loads(Path(path).read_bytes(), parse_constant=refuse)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RecursionError):
            return False
    return True


def damage(path: Path) -> str | None:
    """Why a result cannot be shown, in a few words; None where it can."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if not content.strip():
        return "empty"
    if path.suffix == ".png" and not (content.startswith(PNG_START) and content.endswith(PNG_END)):
        return "no whole PNG file"
    return _csv_damage(content) if path.suffix == ".csv" else None


def _csv_damage(content: bytes) -> str | None:
    try:
        lines = list(csv.reader(io.StringIO(content.decode("utf-8"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        return f"no CSV file ({error})"
    if b"\0" in content:
        return "no CSV file (zero bytes)"
    if not content.endswith(b"\n"):
        return "cut off in its last line"
    for number, line in enumerate(lines, 1):
        if len(line) != len(lines[0]):
            return f"line {number} has {len(line)} cells, the heading {len(lines[0])}"
    return None


def whole(files: Sequence[str]) -> bool:
    """Whether all files of a job can be shown."""
    return all(damage(Path(file)) is None for file in files)
