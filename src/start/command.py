"""Looks at a folder of photographs, one folder for each class, and writes a small study file for it.

The study adapts an annotator to the folder's classes and compares it with plain fine-tuning and with fine-tuning on token labels.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import re
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from .study_file import StudyFile
    from .survey import Survey

NOT_A_NAME = re.compile(r"[^A-Za-z0-9_]+")
STRONG_IMBALANCE = 10  # largest class over smallest one, from which the summary says so


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("folder", type=Path, help="one folder for each class, or train and val that hold such folders")
    parser.add_argument("--name", default=None, help="of the study: letters, digits, _ (default: the folder's)")
    parser.add_argument("--out", type=Path, default=None, help="study file (default: NAME.yaml here)")
    parser.add_argument("--minutes", type=float, default=60, help="that the study may take (default: %(default)s)")
    parser.add_argument("--annotator", default=None, help="timm name (default: the largest one installed here)")
    parser.add_argument("--student", default=None, help="timm name (default: the smallest one installed here)")
    parser.add_argument(
        "--val-fraction", type=float, default=0.2, help="of each class, set aside (default: %(default)s)"
    )
    parser.add_argument("--val-seed", type=int, default=0, help="which ones (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a study file that exists")


def run(args: argparse.Namespace) -> int:
    """Surveys the folder, times the networks, writes the files and prints a summary."""
    name = _study_name(args.name or args.folder.resolve().name)
    out: Path = args.out or Path(f"{name}.yaml")
    _check(args, out)
    import torch

    from ..core.cost import ANNOTATOR_PX, multiply_adds_at
    from .estimate import choose_plan, network_cost
    from .networks import choose_annotator, choose_student
    from .study_file import StudyFile
    from .survey import survey_folder

    annotator, student = choose_annotator(args.annotator), choose_student(args.student)
    threads = torch.get_num_threads()  # all cores, unless OMP_NUM_THREADS says otherwise
    before = time.perf_counter()
    survey = survey_folder(args.folder, args.val_fraction, args.val_seed, threads)
    survey_s = time.perf_counter() - before
    plan = choose_plan(
        annotator, student, (survey.train, survey.val, len(survey.counts)), survey.examples, survey.smallest_sides[1],
        args.minutes, survey_s, threads,
    )  # fmt: skip
    parameters_m, gmacs = network_cost(annotator, plan.annotator_px)
    snakefile = Path(__file__).resolve().parents[2] / "Snakefile"
    study = StudyFile(
        name=name, path=out, survey=survey, plan=plan,
        annotator=annotator, annotator_cost=(parameters_m, multiply_adds_at(gmacs, plan.annotator_px, ANNOTATOR_PX)),
        student=student, student_cost=network_cost(student, plan.student_px),
        val_fraction=args.val_fraction, val_seed=args.val_seed, threads=threads,
        snakefile=snakefile if snakefile.is_file() else None,
    )  # fmt: skip
    listing = out.with_name(f"{name}_survey.csv")
    _write(out, study.text())
    _write(listing, _listing(survey))
    print("\n".join(_summary(study, listing, args.minutes)))  # noqa: T201 - what the command is for
    return 0


def _study_name(wanted: str) -> str:
    """The name with what no key may hold replaced.

    Raises:
        ConfigError: nothing is left of it.
    """
    name = NOT_A_NAME.sub("_", wanted).strip("_")
    if not name:
        raise ConfigError(f"--name {wanted!r}: no letter or digit that a study's name may hold; give --name NAME")
    return name


def _check(args: argparse.Namespace, out: Path) -> None:
    """Refuses in a second what would be refused after minutes."""
    if not 0 < args.val_fraction < 1:
        raise ConfigError(f"--val-fraction {args.val_fraction}: must be above 0 and below 1")
    if not args.minutes > 0:
        raise ConfigError(f"--minutes {args.minutes:g}: must be above 0")
    if not args.folder.is_dir():
        raise DataError(f"{args.folder}: no such folder; give the folder that holds one folder for each class")
    if out.exists() and not args.force:
        raise OutputError(f"{out}: exists; give --out another file, or --force to replace it")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise OutputError(f"{out.parent}: no folder that can be written; give --out a file in one")


def _write(path: Path, text: str) -> None:
    from ..core.files import write_text

    write_text(path, text)


def _listing(survey: Survey) -> str:
    """CSV of what to look at: finding, group, path; photographs of one group show one picture."""
    lines: list[tuple[str, int | str, str]] = [("broken", "", path) for path in survey.broken]
    for number, group in enumerate(survey.near_duplicates):
        finding = "near-duplicate"
        if group in survey.cross_class:
            finding = "one picture in several classes"
        elif group in survey.across_splits:
            finding = "one picture in train and val"
        lines += [(finding, number, path) for path in group]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("finding", "group", "path"))
    writer.writerows(lines)
    return text.getvalue()


def _summary(study: StudyFile, listing: Path, minutes: float) -> list[str]:
    survey, plan = study.survey, study.plan
    counts = sorted(survey.counts.values())
    least, most = min(survey.counts, key=survey.counts.__getitem__), max(survey.counts, key=survey.counts.__getitem__)
    low, median, high = survey.smallest_sides
    duplicates = sum(map(len, survey.near_duplicates))
    formats = ", ".join(f"{count:,} {name}" for name, count in survey.formats.items())
    split = "its own train and val" if survey.own_split else f"seed {study.val_seed}, near-duplicates on one side"
    lines = [
        f"{survey.folder}: {sum(counts):,} readable photographs in {len(counts)} classes, all decoded",
        f"  per class     {counts[0]:,} ({least}) to {counts[-1]:,} ({most}), median {statistics.median(counts):g}",
        f"  shorter side  {low} to {high} px, median {median}; {formats}",
        f"  broken        {len(survey.broken):,}",
        f"  duplicates    {duplicates:,} photographs in {len(survey.near_duplicates):,} groups show the same picture",
        f"  split         {survey.train:,} to learn from, {survey.val:,} to measure with ({split})",
    ]
    if counts[-1] > STRONG_IMBALANCE * counts[0]:
        lines.append(f"  note          {most} has {counts[-1] / counts[0]:.0f} times the photographs of {least}")
    if survey.cross_class:
        lines.append(
            f"  label errors  {len(survey.cross_class):,} pictures lie in several classes: one folder is wrong"
        )
    if survey.across_splits:
        lines.append(
            f"  leak          {len(survey.across_splits):,} pictures lie in train and in val: accuracy is flattered"
        )
    if survey.broken or survey.near_duplicates:
        lines.append(f"  all of these  {listing}")
    lines += [
        f"annotator {study.annotator.architecture} at {plan.annotator_px} px, "
        f"student {study.student.architecture} at {plan.student_px} px, {plan.epochs} epochs",
        *(f"  {seconds / 60:6.1f} min  {stage}" for stage, seconds in plan.seconds.items()),
        f"  {plan.minutes:6.1f} min  in all, estimated on this machine with {study.threads} threads"
        + (f": more than --minutes {minutes:g}, and nothing smaller is offered" if plan.minutes > minutes else ""),
    ]
    hub = sorted({network.architecture for network in (study.annotator, study.student) if network.weights == "hub"})
    if hub:
        lines.append(
            f"weights of {', '.join(hub)} will be downloaded from the model hub by the first job that needs them"
        )
    if study.snakefile is None:
        lines.append(
            "the workflow is not part of the installed package: clone the repository and name its Snakefile below"
        )
    return [*lines, f"{study.path} is written. Read it, then run", f"  {study.command}"]
