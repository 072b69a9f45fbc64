"""Table 12: LV-ViT-M at 384 px against CaiT. Our side is computed from the configuration and the model, never typed.

Called by the command `table comparison`. Both columns of the paper come from core/paper.csv, CaiT's too: no CaiT is built here.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import torch

from ..core import paper
from ..engine.run_model import model_of_spec
from ..models import count_multiply_adds, count_parameters
from ..models.lvvit import LVVIT_PRESETS
from .markdown import format_table
from .tables import ResultRow

OURS_IN_PAPER, CAIT = "lvvit_m_384", "CaiT-S36 ↑384"
LABELS = {
    "depth": "transformer blocks",
    "heads": "heads of self-attention",
    "mlp_ratio": "MLP expansion ratio",
    "width": "embedding dimension",
    "stochastic_depth": "stochastic depth",
    "stochastic_depth_fixed": "the same rate in every block",
    "randaugment": "RandAugment",
    "cutmix": "CutMix",
    "mixup": "Mixup",
    "layer_scale": "LayerScale",
    "class_attention": "class attention",
    "distillation": "knowledge distillation",
    "enhanced_residuals": "enhanced residuals",
    "mixtoken": "MixToken",
    "token_labels": "token labels",
    "test_px": "test resolution, px",
    "params_m": "parameters, M",
    "gflops": "multiply-adds, G",
    "epochs": "training epochs",
    "top1": "ImageNet top-1, %",
}
HEADER = ("setting", "ours", "paper, LV-ViT-M", "paper, CaiT", "ours rounds to the paper's")


@dataclass(frozen=True)
class Setting:
    """One line; None is unknown, True and False print as yes and no."""

    name: str
    ours: float | bool | None
    paper: float | None
    cait: float | None

    @property
    def agrees(self) -> bool | None:
        """Whether ours, rounded to the paper's digits, is what it prints; None where there is nothing to compare."""
        if self.ours is None or self.paper is None:
            return None
        return round(float(self.ours), 1 if self.paper % 1 else 0) == self.paper


def compare(specs: list[dict[str, Any]], row: ResultRow) -> list[Setting]:
    """Our run beside the paper's two columns.

    Args:
        specs: of the run and those that it starts from, the first training first.
        row: the run's measured accuracy; its top-1 is None where nothing ran, and counts only where nothing was capped.
    """
    ours = _measured(specs) | {"top1": row.top1_mean}

    def of(method: str, column: str) -> float | None:
        number = paper.value("12", method, column)
        return number.value if number else None

    return [Setting(name, ours[name], of(OURS_IN_PAPER, name), of(CAIT, name)) for name in LABELS]


def _measured(specs: list[dict[str, Any]]) -> dict[str, float | bool | None]:
    first, last = specs[0], specs[-1]
    architecture, recipe = last["model"]["architecture"], first["recipe"]
    settings = {**LVVIT_PRESETS[architecture], **last["model"]["settings"]}
    with torch.device("meta"):
        model = model_of_spec(last)
    kinds = {type(module).__name__.lower() for module in model.modules()}
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_parameters()}
    return {
        "depth": settings["depth"],
        "heads": settings["heads"],
        "mlp_ratio": settings["mlp_ratio"],
        "width": settings["width"],
        "stochastic_depth": last["model"]["stochastic_depth"],
        "stochastic_depth_fixed": settings["stochastic_depth_rule"] == "fixed",
        "randaugment": recipe["randaugment_count"] > 0,
        "cutmix": "cutmix" in recipe["mix"],
        "mixup": "mixup" in recipe["mix"],
        "layer_scale": any(
            name.startswith("gamma") for name in names
        ),  # timm's and CaiT's name for its learned factors
        "class_attention": any("classatt" in kind for kind in kinds),
        "distillation": "teacher" in recipe,  # no recipe has a network that answers during the training
        "enhanced_residuals": settings["residual_scale"] != 1,
        "mixtoken": "mixtoken" in recipe["mix"],
        "token_labels": recipe["supervision"] == "token",
        "test_px": last["image_px"],
        "params_m": count_parameters(model) / 1e6,
        "gflops": count_multiply_adds(model, last["image_px"]) / 1e9,
        "epochs": recipe["epochs"],
    }


def as_csv(settings: list[Setting]) -> str:
    """Comma-separated text with a header."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["setting", "ours", "paper_lvvit_m", "paper_cait", "agrees"])
    writer.writerows(_cells(setting, setting.name) for setting in settings)
    return out.getvalue()


def as_markdown(settings: list[Setting], row: ResultRow) -> str:
    """The page."""
    measured = "planned" if row.state == "planned" else f"{row.state}, {row.seeds} of {row.seeds_planned} seeds"
    capped = f" Capped: {row.capped}." if row.capped else ""
    return (
        "# How does LV-ViT-M at 384 px compare with CaiT?\n\n"
        "In the paper (arXiv 2104.10858): Table 12. Ours is computed from the configuration and the model, but for the accuracy:\n"
        f"{measured}.{capped}\n\n"
        f"{format_table(HEADER, [_cells(setting, LABELS[setting.name]) for setting in settings])}\n"
    )


def _cells(setting: Setting, title: str) -> list[str]:
    number = paper.value("12", OURS_IN_PAPER, setting.name)
    flag = number is not None and number.unit == "0 or 1"
    shown = [_shown(value, flag) for value in (setting.ours, setting.paper, setting.cait)]
    if setting.name == "top1" and setting.ours is None:
        shown[0] = "planned"
    return [title, *shown, _shown(setting.agrees, flag=True)]


def _shown(value: float | bool | None, flag: bool) -> str:
    if value is None:
        return ""
    if flag:
        return "yes" if value else "no"
    return f"{value:.2f}".rstrip("0").rstrip(".")
