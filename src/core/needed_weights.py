"""Every set of pretrained weights that a study's jobs load: of its annotators, its students and the published checkpoints.

Called by `tokenlabel doctor`, which looks whether they are there, and `tokenlabel fetch`, which gets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from .config import Published
from .study import Study


@dataclass(frozen=True)
class NeededWeights:
    """One file of weights.

    Attributes:
        names: what in the catalogues needs it.
        architecture: timm's name without the prefix timm/, or ours; decides what `hub` means.
        weights: hub | file:NAME | folder:NAME | package:NAME, as in the configuration.
        sha256: that the file must have; None where nothing states one.
        url: where it is from, where the configuration says so and the address ends in the file's name.
        source: the address that the configuration gives, also one that is a page for people.
    """

    names: tuple[str, ...]
    architecture: str
    weights: str
    sha256: str | None
    url: str | None = None
    source: str | None = None


def needed_weights(study: Study, *, published: bool) -> list[NeededWeights]:
    """Lists them, annotators first, each file once.

    Args:
        study: planned.
        published: also the selected published checkpoints, which `all` does not need.
    """
    found: dict[tuple[str, str], NeededWeights] = {}

    def add(name: str, section: Mapping[str, Any], source: str | None = None) -> None:
        weights, architecture = section["weights"], section["architecture"].removeprefix("timm/")
        key = (weights, architecture if weights == "hub" else "")
        before = found.get(key)
        found[key] = NeededWeights(
            names=tuple(dict.fromkeys([*(before.names if before else ()), name])),
            architecture=architecture,
            weights=weights,
            sha256=section["weights_sha256"] or (before.sha256 if before else None),
            url=_address_of_file(source, weights) or (before.url if before else None),
            source=source or (before.source if before else None),
        )

    labels = {job.name: job for job in [*study.selected_labels, *study.used_labels]}
    if study.reference is not None:
        labels[study.reference.name] = study.reference
    for job in labels.values():
        entry = study.config.annotators[job.annotator]
        add(job.annotator, job.spec["annotator"], entry.source)
    for run in {link.name: link for last in study.selected_runs for link in last.chain}.values():
        if "weights" in run.spec["model"]:
            add(run.name.split("-", 1)[0], run.spec["model"])
    for table in study.selected_segmentations:
        for row in table.rows:
            if "weights" in row.run.spec["model"]:
                source = _source_of(study, row.run.spec["model"]["weights"])
                add(row.model, row.run.spec["model"], source)
    if published:
        for name, checkpoint in study.published.jobs:
            entry_of: Published = checkpoint.entry
            add(name, checkpoint.spec["model"], entry_of.source)
    return list(found.values())


def _source_of(study: Study, weights: str) -> str | None:
    """Where a published checkpoint of the catalogue with these weights is from."""
    return next((entry.source for entry in study.config.published.values() if entry.weights == weights), None)


def _address_of_file(source: str | None, weights: str) -> str | None:
    """The source where it is an address of the very file."""
    kind, _, name = weights.partition(":")
    if source is None or kind != "file":
        return None
    parts = urlsplit(source)
    if parts.scheme not in ("http", "https") or unquote(parts.path).rsplit("/", 1)[-1] != name.rsplit("/", 1)[-1]:
        return None
    return source
