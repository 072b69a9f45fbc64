"""Published checkpoints in the plan: what measuring each depends on, and the rows of results/published.csv. Used by `study`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .config import Config, Published
from .identity import digest_of
from .planned import RESULTS, DataJob, Planned


@dataclass(frozen=True)
class PublishedJob(Planned):
    """The evaluation of one published checkpoint."""

    kind = "published"

    entry: Published

    @property
    def result(self) -> str:
        """Path of the evaluation."""
        return f"{self.folder}/evaluation.json"


@dataclass(frozen=True)
class PublishedTable:
    """The table of the selected checkpoints, in the order of the selection."""

    csv: ClassVar[str] = str(RESULTS / "published.csv")
    markdown: ClassVar[str] = str(RESULTS / "published.md")
    figure: ClassVar[str] = str(RESULTS / "figures" / "published.png")

    dataset: str
    jobs: tuple[tuple[str, PublishedJob], ...]

    @property
    def inputs(self) -> list[str]:
        """Evaluations of all rows."""
        return [job.result for _, job in self.jobs]

    @property
    def plan(self) -> str:
        """Path of the document that the table job reads."""
        return str(RESULTS / "tables" / f"published-{digest_of(self.as_json())}.json")

    def as_json(self) -> dict[str, Any]:
        """What the table job reads; numbers that were printed for another data set are left out."""
        rows = []
        for name, job in self.jobs:
            printed = job.entry.dataset == self.dataset
            rows.append(
                {
                    "name": name,
                    "evaluation": job.result,
                    "image_px": job.entry.image_px,
                    "crop": job.entry.eval_crop,
                    "interpolation": job.spec["interpolation"],
                    "printed_top1": job.entry.top1 if printed else None,
                    "printed_real_top1": job.entry.real_top1 if printed else None,
                    "source": job.entry.source,
                }
            )
        return {"name": "published", "dataset": self.dataset, "rows": rows}


def plan_published(config: Config, data: DataJob, evaluation_spec: Callable[[float], dict[str, Any]]) -> PublishedTable:
    """Plans the evaluation of the selected checkpoints.

    Args:
        config: validated.
        data: the manifest's job.
        evaluation_spec: of a crop, as a share of the shorter side.
    """
    names = config.published if config.select.published == "all" else config.select.published
    jobs = []
    for name in names:
        entry = config.published[name]
        spec = evaluation_spec(share_seen(entry.image_px, entry.eval_crop)) | {
            "dataset": data.spec,
            "model": {
                "architecture": entry.architecture,
                "weights": entry.weights,
                "weights_sha256": entry.weights_sha256,
                "weights_naming": entry.weights_naming,
            },
            "image_px": entry.image_px,
            "use_ema": False,  # the released validation takes the plain weights of a file that has both
        }
        jobs.append((name, PublishedJob(name=f"{name}-{digest_of(spec)}", spec=spec, entry=entry)))
    return PublishedTable(config.dataset.name, tuple(jobs))


def share_seen(image_px: int, crop: float) -> float:
    """Share of the shorter side that the released validation keeps: timm resizes it to whole pixels before it crops."""
    return image_px / math.floor(image_px / crop)
