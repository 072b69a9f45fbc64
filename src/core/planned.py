"""What a plan consists of: jobs with their spec and folder, and the rows of result tables. Made by `study`, read by the rules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, ClassVar

from .config import Experiment
from .identity import digest_of
from .paper import PaperRow

RESULTS = PurePosixPath("results")


@dataclass(frozen=True)
class Planned:
    """Something that is made in a folder of its own, named by what decides it."""

    kind: ClassVar[str]

    name: str
    spec: dict[str, Any]

    @property
    def folder(self) -> str:
        """Folder of the outputs."""
        return f"{RESULTS}/{self.kind}/{self.name}"  # asked for thousands of times a parse; joining paths takes ten times as long

    @property
    def document(self) -> tuple[str, dict[str, Any]]:
        """Path and content of the spec that lies beside the outputs."""
        return f"{self.folder}/spec.json", self.spec


@dataclass(frozen=True)
class ManifestJob(Planned):
    """A manifest."""

    @property
    def marker(self) -> str:
        """Path of the marker that says the manifest is finished."""
        return f"{self.folder}/manifest.done"


@dataclass(frozen=True)
class DataJob(ManifestJob):
    """The manifest of the data set."""

    kind = "data"


@dataclass(frozen=True)
class AnnotatorJob(Planned):
    """An annotator as a classifier of the data set: adapted to its classes where that is asked for, and measured alone."""

    kind = "annotators"

    annotator: str
    evaluation: str
    adapted: bool
    run: Run | None = None
    labels: LabelJob | None = None
    start: None = None
    capped: tuple[str, ...] = ()

    @property
    def marker(self) -> str:
        """Path of the marker that says the adapted weights are there."""
        return f"{self.folder}/adapted.done"

    def result(self, seed: int) -> str:
        """Path of the annotator's evaluation, the same for every seed."""
        return f"{self.folder}/evaluation-{self.evaluation}.json"


@dataclass(frozen=True)
class LabelJob(Planned):
    """All label shards of one annotator."""

    kind = "labels"

    annotator: str
    shards: int
    adapted: AnnotatorJob | None = None

    @cached_property
    def markers(self) -> list[str]:
        """Path of every shard's marker; made once, for every run that learns from them asks."""
        return self.markers_of("train")

    def markers_of(self, split: str) -> list[str]:
        """The same for another split."""
        start = f"{self.folder}/{split}-"
        return [f"{start}{shard:05d}-of-{self.shards:05d}.done" for shard in range(self.shards)]


@dataclass(frozen=True)
class Training(Planned):
    """A training for any number of seeds, in one job or in legs."""

    start: Run | None
    evaluation: str
    capped: tuple[str, ...]

    @property
    def epochs(self) -> int:
        """What legs are cut between and checkpoints are written after."""
        raise NotImplementedError

    def done(self, seed: int) -> str:
        """Path of the marker that says the run is finished."""
        return f"{self.folder}/seed{seed}/done.json"

    def legs(self, leg_epochs: int | None) -> int:
        """How many jobs in a row the run is, when one does at most so many epochs; None: one."""
        return math.ceil(self.epochs / leg_epochs) if leg_epochs else 1

    def leg_end(self, leg: int, legs: int) -> int:
        """Epochs of the run that are done at the end of leg `leg`, from 1; legs differ by one epoch at most."""
        return math.ceil(self.epochs * leg / legs)

    def leg_done(self, seed: int, leg: int, legs: int) -> str:
        """Path of the marker that says leg `leg`, from 1, of the run is finished; the last leg finishes the run."""
        return f"{self.folder}/seed{seed}/leg-{leg:02d}-of-{legs:02d}.done"

    def result(self, seed: int) -> str:
        """Path of the run's evaluation."""
        return f"{self.folder}/seed{seed}/evaluation-{self.evaluation}.json"


@dataclass(frozen=True)
class Run(Training):
    """One training or fine-tuning of a classifier."""

    kind = "runs"

    labels: LabelJob | None

    @property
    def epochs(self) -> int:
        """Epochs with the cool-down's."""
        return int(self.spec["recipe"]["epochs"] + self.spec["recipe"]["cooldown_epochs"])

    @property
    def chain(self) -> list[Run]:
        """This run after those that it starts from, the first training first."""
        return [*(self.start.chain if self.start else []), self]


@dataclass(frozen=True)
class TableRow:
    """One line of a result table."""

    name: str
    label: str
    differs: dict[str, Any]
    model: str
    run: Run | AnnotatorJob
    paper: PaperRow
    annotator: dict[str, Any] | None

    @property
    def paper_top1(self) -> float | None:
        """The paper's accuracy, percent."""
        return self.paper.top1


class ResultTable(ABC):
    """Where the files of an experiment's table lie."""

    name: str

    @abstractmethod
    def as_json(self) -> dict[str, Any]:
        """What the table job reads: rows, their evaluations, and the paper's numbers."""

    @property
    def csv(self) -> str:
        """Path of the table."""
        return str(RESULTS / f"{self.name}.csv")

    @property
    def markdown(self) -> str:
        """Path of the table as a page."""
        return str(RESULTS / f"{self.name}.md")

    @property
    def figure(self) -> str:
        """Path of the figure."""
        return str(RESULTS / "figures" / f"{self.name}.png")

    @property
    def plan(self) -> str:
        """Path of the document that the table job reads."""
        return str(RESULTS / "tables" / f"{self.name}-{digest_of(self.as_json())}.json")

    @property
    def so_far(self) -> list[str]:
        """Paths of the table, its page and its figure from what exists already."""
        folder = RESULTS / "so_far"
        return [
            str(folder / f"{self.name}.csv"),
            str(folder / f"{self.name}.md"),
            str(folder / f"figures/{self.name}.png"),
        ]


@dataclass(frozen=True)
class Table(ResultTable):
    """One experiment's result table."""

    name: str
    experiment: Experiment
    seeds: tuple[int, ...]
    rows: tuple[TableRow, ...]
    dataset: str
    paper_only: tuple[PaperRow, ...] = ()

    @property
    def trainings(self) -> list[str]:
        """Markers of every run and seed, each once; none where only annotators are measured."""
        runs = (row.run for row in self.rows if isinstance(row.run, Run))
        return list(dict.fromkeys(run.done(seed) for run in runs for seed in self.seeds))

    @property
    def curves(self) -> list[str]:
        """Path of the figure of its training curves; none where nothing is trained."""
        return [str(RESULTS / "figures" / f"curves_{self.name}.png")] if self.trainings else []

    @property
    def inputs(self) -> list[str]:
        """Evaluations of every row and seed, each once."""
        return list(dict.fromkeys(row.run.result(seed) for row in self.rows for seed in self.seeds))

    def as_json(self) -> dict[str, Any]:
        """What the table job reads: rows, their evaluations, and the paper's numbers."""
        return {
            "name": self.name,
            "question": self.experiment.question,
            "paper": self.experiment.paper,
            "figure": self.experiment.figure,
            "dataset": self.dataset,
            "rows": [
                {
                    "name": row.name,
                    "label": row.label,
                    "differs": row.differs,
                    "model": row.model,
                    "run": row.run.name,
                    "chain": [run.name for run in row.run.chain] if isinstance(row.run, Run) else [],
                    "seeds": {str(seed): row.run.result(seed) for seed in self.seeds},
                    "paper_top1": row.paper.top1,
                    "paper_real_top1": row.paper.real_top1,
                    "paper_parameters_m": row.paper.parameters_m,
                    "paper_gmacs": row.paper.gmacs,
                    "paper_source": row.paper.source,
                    "annotator": row.annotator,
                    "capped": list(row.run.capped),
                    "epochs": _epochs(row.run),
                    "image_px": row.run.spec["image_px"],
                    "supervision": row.run.spec["recipe"]["supervision"] if isinstance(row.run, Run) else None,
                    "participation": row.run.spec["recipe"]["participation"] if isinstance(row.run, Run) else None,
                }
                for row in self.rows
            ],
            "paper_only": [
                {
                    "name": row.place[1],
                    "top1": row.top1,
                    "real_top1": row.real_top1,
                    "parameters_m": row.parameters_m,
                    "gmacs": row.gmacs,
                    "train_px": row.train_px,
                    "test_px": row.test_px,
                    "source": row.source,
                }
                for row in self.paper_only
            ],
        }


def _epochs(run: Run | AnnotatorJob) -> int:
    return 0 if isinstance(run, AnnotatorJob) else run.epochs
