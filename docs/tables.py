"""Fills the tables of README.md and docs/**/*.md from the committed result files, so that no figure there is typed by hand.

usage: python docs/tables.py [--check]; `make docs` calls it. A table stands between `<!-- table NAME -->` and `<!-- end -->`; one
whose measurement is still to come is `<!-- table NAME pending -->`. TABLES says which file and columns a table has.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, this folder is where Python looks

from docs.scale_tables import LARGE, GrowthTable, LargeTable  # noqa: E402
from docs.table_kinds import (  # noqa: E402
    CoefficientTable,
    ExperimentTable,
    FaultTable,
    Line,
    PlanTable,
    RecipeTable,
    Table,
    TableError,
)

_MARKED = re.compile(r"<!-- table (\w+) -->\n.*?<!-- end -->", re.DOTALL)
_PENDING = re.compile(r"<!-- table (\w+) pending -->")


OfConfiguration = RecipeTable | PlanTable | CoefficientTable | ExperimentTable | LargeTable
AnyTable = Table | FaultTable | GrowthTable | OfConfiguration

# one place for every table: the file in bench/results, then heading -> (field of a line, format)
TABLES: dict[str, AnyTable] = {
    "faults": FaultTable(of=""),
    "training_faults": FaultTable(of="training"),
    "slurm_faults": FaultTable(of="slurm"),
    "recipes": RecipeTable(),
    "plan_targets": PlanTable(),
    "plan_excerpt": PlanTable(
        columns=("target", "jobs", "GPU hours", "additional", "wall hours, at least", "labels GB", "USD"),
        targets=("labels nfnet_f6", "main", "ablation_annotators", "total"),
    ),
    "plan_coefficients": CoefficientTable(),
    "scale_growth": GrowthTable(),
    "scale_large": LargeTable(),
    "scale_plan": PlanTable(
        columns=(
            "target",
            "jobs",
            "GPU hours",
            "additional",
            "wall hours, at least",
            "labels GB",
            "weights GB",
            "checkpoints GB",
            "USD",
        ),
        overlay=LARGE,
    ),
    "plan_accuracy": Table(
        "plan",
        {
            "study": ("study", ""),
            "kind of job": ("kind", ""),
            "jobs": ("jobs", ""),
            "estimated s": ("estimated_s", ",.0f"),
            "processor s": ("processor_s", ",.0f"),
            "ratio": ("ratio", ".2f"),
            "largest error after correction": ("error_after", ".0%"),
        },
    ),
    "experiments": ExperimentTable(),
    "annotate_network": Table(
        "annotate_network",
        {
            "annotator": ("annotator", ""),
            "labels": ("storage", ""),
            "way": ("way", ""),
            "images/s": ("images_per_s", ",.1f"),
            "over the bare forward pass": ("over_bare", "+.1%"),
        },
    ),
    "annotate_stand_in": Table(
        "annotate_stand_in",
        {
            "annotator": ("annotator", ""),
            "labels": ("storage", ""),
            "way": ("way", ""),
            "images/s": ("images_per_s", ",.1f"),
            "over the bare forward pass": ("over_bare", "+.1%"),
        },
    ),
    "train_loader": Table(
        "train_loader",
        {
            "way": ("way", ""),
            "until": ("until", ""),
            "images/s of a core": ("images_per_s", ",.0f"),
            "ours is faster by": ("ratio", ".2f"),
        },
        where=lambda line: "way" in line,
    ),
    "train_loader_parts": Table(
        "train_loader",
        {
            "part of a photograph": ("part", ""),
            "µs": ("microseconds", ",.0f"),
            "share of the loader's time": ("share", ".1%"),
        },
        where=lambda line: "part" in line,
    ),
    "scene_loader": Table(
        "scene_loader",
        {
            "way": ("way", ""),
            "a second of a core": ("scenes_per_s", ",.1f"),
            "of classification's rate": ("of_classification", ".2f"),
            "time, of ours": ("time_of_ours", ".2f"),
        },
        where=lambda line: "way" in line,
    ),
    "scene_loader_parts": Table(
        "scene_loader",
        {"part of a scene": ("part", ""), "µs": ("microseconds", ",.0f")},
        where=lambda line: "part" in line,
    ),
    "train_step": Table(
        "train_step",
        {
            "model": ("model", ""),
            "batch": ("batch", ""),
            "precision": ("precision", ""),
            "hard labels, s": ("hard_s", ".3f"),
            "token labels, s": ("token_s", ".3f"),
            "ratio": ("ratio", ".3f"),
            "targets": ("targets_share", ".2%"),
            "token loss": ("token_loss_share", ".2%"),
        },
    ),
    "labels_storage": Table(
        "labels_storage",
        {
            "layout": ("layout", ""),
            "images/s read": ("images_per_s", ",.0f"),
            "ratio to .pt": ("ratio_to_pt", ".1f"),
            "bytes an image": ("bytes_per_image", ",.0f"),
            "write, µs an image": ("write_us_per_image", ",.0f"),
        },
    ),
    "token_loss": Table(
        "token_loss",
        {
            "classes": ("classes", ","),
            "batch": ("batch", ""),
            "targets: released / ours": ("targets", ".1f"),
            "loss + gradient: released / ours": ("loss", ".1f"),
            "time: ours / hard labels": ("vs_labels", ".2f"),
            "memory: ours / hard labels": ("memory", ".2f"),
        },
    ),
    "label_fidelity": Table(
        "label_fidelity",
        {
            "labels": ("labels", ""),
            "cosine": ("cosine", ".3f"),
            "top-1 agreement": ("top1", ".3f"),
            "KL": ("kl", ".2f"),
            "cosine / that of all logits": ("ratio", ".3f"),
        },
        lambda line: line["kind"] == "row",
    ),
    "label_fidelity_pairs": Table(
        "label_fidelity",
        {
            "compared on the same crops": ("pair", ""),
            "measure": ("measure", ""),
            "mean": ("mean", "+.3f"),
            "95 % from": ("low", "+.3f"),
            "to": ("high", "+.3f"),
        },
        lambda line: line["kind"] != "row",
    ),
    "manifest": Table(
        "manifest",
        {
            "what": ("what", ""),
            "photographs": ("photographs", ","),
            "s": ("seconds", ".1f"),
            "photographs/s": ("photographs_per_s", ",.0f"),
            "time / floor": ("ratio", ".1f"),
            "peak MB": ("peak_mb", ",.0f"),
            "s for 1,281,167": ("imagenet_s", ".0f"),
        },
    ),
    "dag": Table(
        "dag",
        {
            "times the experiments": ("times", "d"),
            "trainings of a seed": ("runs", ","),
            "jobs": ("jobs", ","),
            "plan, s": ("plan_s", ".2f"),
            "start, s": ("start_s", ".1f"),
            "DAG, s": ("dag_s", ".1f"),
            "together, s": ("total_s", ".1f"),
            "jobs / jobs": ("jobs_ratio", ".2f"),
            "time / time": ("total_ratio", ".2f"),
        },
    ),
    "label_compression": Table(
        "label_compression",
        {
            "stored": ("stored", ""),
            "bytes": ("bytes", ",.0f"),
            "with tail": ("bytes_with_tail", ",.0f"),
            "write / plain": ("write_ratio", ".2f"),
            "read / plain": ("read_ratio", ".2f"),
            "cosine, exact mass": ("cosine_exact", ".4f"),
            "KL, exact mass": ("kl_exact", ".4f"),
            "cosine, published mass": ("cosine_published", ".4f"),
            "KL, published mass": ("kl_published", ".4f"),
        },
    ),
    "decode": Table(
        "decode",
        {
            "JPEGs of": ("size", ""),
            "way": ("way", ""),
            "images/s": ("images_per_s", ",.0f"),
            "ratio": ("ratio", ".2f"),
            "two threads / one": ("two_threads", ".2f"),
        },
        lambda line: line["way"] != "labels",
    ),
    "decode_labels": Table(
        "decode",
        {
            "photographs": ("size", ""),
            "cells that keep their best class": ("same_best_class", ".2%"),
            "mean logit difference": ("mean_logit_difference", ".4f"),
            "sd of the logits": ("logit_sd", ".2f"),
        },
        lambda line: line["way"] == "labels",
    ),
    "view_overhead": Table(
        "view_overhead",
        {
            "transforms": ("pipeline", ""),
            "alone, ms": ("alone_ms", ".2f"),
            "with its view, ms": ("wrapped_ms", ".2f"),
            "ratio": ("ratio", ".3f"),
        },
    ),
    "segmentation_heads": Table(
        "segmentation_heads",
        {
            "backbone": ("model", ""),
            "head": ("head", ""),
            "channels": ("channels", ""),
            "M parameters": ("total_m", ".2f"),
            "paper": ("paper_m", ".0f"),
            "backbone's": ("backbone_m", ".2f"),
            "head's with rescaling": ("head_m", ".2f"),
            "auxiliary head's": ("auxiliary_m", ".2f"),
            "G multiply-adds at 512 px: backbone": ("backbone_gmacs", ".1f"),
            "its head": ("head_gmacs", ".1f"),
        },
        lambda line: line["kind"] == "size",
    ),
    "segmentation_steps": Table(
        "segmentation_heads",
        {
            "backbone": ("model", ""),
            "head": ("head", ""),
            "precision": ("precision", ""),
            "step, processor s an image": ("step_s", ".1f"),
            "backbone alone": ("backbone_s", ".1f"),
            "share of head and losses": ("share", ".0%"),
            "share of interpolated positions in a forward pass": ("positions_share", ".1%"),
        },
        lambda line: line["kind"] == "step",
    ),
    "segmentation_loss": Table(
        "segmentation_heads",
        {
            "photographs of a micro-batch": ("photographs", ""),
            "classes": ("classes", ""),
            "crop, px": ("crop_px", ""),
            "MB of one head's loss": ("loss_mb", ",.0f"),
        },
        lambda line: line["kind"] == "loss",
    ),
    "models": Table(
        "models",
        {
            "model": ("model", ""),
            "px": ("image_px", ""),
            "tokens": ("tokens", ","),
            "M parameters: ours": ("ours_m", ".3f"),
            "without token head": ("class_head_m", ".3f"),
            "official": ("official_m", ".3f"),
            "counted by": ("official_source", ""),
            "paper": ("paper_m", ""),
            "G multiply-adds": ("gmacs", ".2f"),
            "paper's": ("paper_gmacs", ""),
            "images/s, DeiT-S = 1": ("speed", ".2f"),
        },
        lambda line: line["kind"] == "model",
    ),
    "model_steps": Table(
        "models",
        {
            "step": ("step", ""),
            "precision": ("precision", ""),
            "LV-ViT-S, ms an image": ("ours_ms", ".0f"),
            "timm's ViT-S": ("theirs_ms", ".0f"),
            "time / time": ("time", ".2f"),
            "multiply-adds / multiply-adds": ("work", ".2f"),
            "time per multiply-add, ratio": ("per_multiply_add", ".2f"),
            "lowest": ("low", ".2f"),
            "highest": ("high", ".2f"),
        },
        lambda line: line["kind"] == "step",
    ),
    "model_ablations": Table(
        "models",
        {
            "table": ("table", ""),
            "row": ("row", ""),
            "M printed": ("printed_m", ""),
            "ours": ("ours_m", ".3f"),
            "without token head": ("class_head_m", ".3f"),
            "G multiply-adds": ("gmacs", ".2f"),
            "rounds to what is printed": ("fits", ""),
        },
        lambda line: line["kind"] == "ablation",
    ),
    "train_scaling": Table(
        "train_scaling",
        {
            "model": ("model", ""),
            "px": ("image_px", ""),
            "batch": ("batch", ""),
            "micro-batch": ("micro_batch", ""),
            "two processes by": ("way", ""),
            "images/s, one process": ("one", ".1f"),
            "two": ("two", ".1f"),
            "two / one": ("ratio", ".2f"),
            "lowest": ("low", ".2f"),
            "highest": ("high", ".2f"),
        },
    ),
    "own_photographs": Table(
        "own_photographs",
        {
            "what": ("row", ""),
            "px": ("image_px", ""),
            "epochs": ("epochs", ""),
            "runs": ("runs", ""),
            "top-1 %": ("top1", ".1f"),
            "standard deviation": ("sd", ".1f"),
        },
    ),
    "tinyimagenet20": Table(
        "tinyimagenet20",
        {
            "photographs": ("train_images", ","),
            "student, 1,000 parameters": ("parameters_k", ","),
            "labels": ("row", ""),
            "runs": ("runs", ""),
            "epochs": ("epochs", ""),
            "top-1 %": ("top1_mean", ".1f"),
            "sd": ("top1_sd", ".1f"),
            "class head alone %": ("class_top1_mean", ".1f"),
            "tokens that agree %": ("token_agreement_mean", ".1f"),
            "sd of these": ("token_agreement_sd", ".1f"),
            "if all said the photograph's class": ("image_agreement_mean", ".1f"),
            "KL, nats": ("token_kl_mean", ".2f"),
        },
        lambda line: line["kind"] == "arm",
    ),
    "tinyimagenet20_pairs": Table(
        "tinyimagenet20",
        {
            "photographs": ("train_images", ","),
            "student, 1,000 parameters": ("parameters_k", ","),
            "difference": ("pair", ""),
            "of": ("measure", ""),
            "seeds": ("runs", ""),
            "mean": ("mean", "+.1f"),
            "95 % over seeds from": ("low", "+.1f"),
            "to": ("high", "+.1f"),
            "95 % over photographs from": ("photographs_low", "+.1f"),
            "to ": ("photographs_high", "+.1f"),
        },
        lambda line: line["kind"] == "pair" and (line["field"] == "top1" or line["over"] == "hard"),
    ),
    "camvid": Table(
        "camvid",
        {
            "backbone": ("row", ""),
            "runs": ("runs", ""),
            "steps": ("iterations", ","),
            "mIoU %": ("miou_mean", ".1f"),
            "sd": ("miou_sd", ".1f"),
            "pixel accuracy %": ("pixel_accuracy_mean", ".1f"),
            "sd ": ("pixel_accuracy_sd", ".1f"),
            "multi-scale: mIoU %": ("miou_multi_mean", ".1f"),
            "sd  ": ("miou_multi_sd", ".1f"),
            "pixel accuracy % ": ("pixel_accuracy_multi_mean", ".1f"),
            "sd   ": ("pixel_accuracy_multi_sd", ".1f"),
            "s of training": ("train_seconds", ",.0f"),
        },
        lambda line: line["kind"] == "arm",
    ),
    "camvid_pairs": Table(
        "camvid",
        {
            "difference": ("pair", ""),
            "of": ("measure", ""),
            "seeds": ("runs", ""),
            "mean": ("mean", "+.1f"),
            "95 % over seeds from": ("low", "+.1f"),
            "to": ("high", "+.1f"),
            "seeds above 0": ("above", ""),
        },
        lambda line: line["kind"] == "pair",
    ),
    "camvid_classes": Table(
        "camvid",
        {
            "class, IoU %": ("class", ""),
            "random weights": ("random", ".1f"),
            "own labels": ("hard", ".1f"),
            "token labels": ("token", ".1f"),
            "token - own labels": ("mean", "+.1f"),
            "95 % over seeds from": ("low", "+.1f"),
            "to": ("high", "+.1f"),
        },
        lambda line: line["kind"] == "class",
    ),
}


def filled(page: str, name: str) -> str:
    """A page's text with every table as the result files give it.

    Args:
        page: Markdown.
        name: of the page, for errors.

    Raises:
        TableError: a table that nothing describes, without results, or pending although there are some.
    """
    for table in _PENDING.findall(page):
        if _described(table, name).lines():
            raise TableError(
                f"{name}: table {table} is marked pending and there are results; write <!-- table {table} -->"
            )
    return _MARKED.sub(
        lambda match: f"<!-- table {match[1]} -->\n{render(_described(match[1], name), name)}<!-- end -->", page
    )


def _described(table: str, name: str) -> AnyTable:
    if table not in TABLES:
        raise TableError(f"{name}: no table {table!r}; there are {', '.join(TABLES)}")
    return TABLES[table]


def render(table: AnyTable, name: str) -> str:
    """A table in Markdown, and under it which commits and machines the results are of."""
    lines = table.lines()
    if not lines:
        raise TableError(f"{name}: a table has no results; measure, or mark it pending")
    rows = table.rows()
    text = [_row(rows[0]), _row(["---"] * len(rows[0])), *map(_row, rows[1:])]
    if not isinstance(table, OfConfiguration):  # which is of this very checkout
        text += ["", f"*{provenance(lines)}*"]
    return "\n".join([*text, ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def provenance(lines: Sequence[Line]) -> str:
    """Commits, machines and days of result lines."""
    commits = _distinct(line["commit"] for line in lines)
    machines = _distinct(f"{line['machine']['processor']}, {line['machine']['cores']} cores" for line in lines)
    days = _distinct(line["when"][:10] for line in lines)
    span = days[0] if len(days) == 1 else f"{min(days)} to {max(days)}"
    return f"Commit {', '.join(commits)}; {'; '.join(machines)}; {span}."


def _distinct(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def main() -> int:
    """Rewrites the pages, or with --check names those that differ from the result files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; return 1 if a page differs")
    args = parser.parse_args()
    differing = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text(encoding="utf-8")
        try:
            after = filled(before, str(path.relative_to(ROOT)))
        except TableError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if after == before:
            continue
        differing.append(str(path.relative_to(ROOT)))
        if not args.check:
            path.write_text(after, encoding="utf-8")
    print(f"{'differ from the result files' if args.check else 'rewritten'}: {', '.join(differing) or 'none'}")
    return 1 if args.check and differing else 0


if __name__ == "__main__":
    sys.exit(main())
