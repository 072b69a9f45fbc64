"""Which of timm's architectures work as token models, and which are refused for what reason.

    python -m bench.timm_architectures run [--record]     of every family a small one, with numbers: both forwards with a
                                                          MixBox, backward, and whether a token looks at its own place
    python -m bench.timm_architectures shapes [--record]  every architecture, shapes only (on the meta device)

Started again it goes on where it was. docs/models.md states the counts.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from typing import Any

import timm
import torch

from bench.record import ResultLines, read_results
from tokenlabel.core.errors import ConfigError
from tokenlabel.models import MixBox, TokenOutput, count_parameters, create_model
from tokenlabel.models.timm_backbones import TimmTokenModel
from tokenlabel.models.timm_names import REGISTERED_IN, TIMM_PREFIX

SHAPES, RUNS = "timm_architectures", "timm_families"
CLASSES = 7
SMALL = re.compile(r"atto|femto|pico|nano|tiny|xxs|xx_small|small|mini|18|_t|_s|_b0|_m0|_0|050|_a")
CANDIDATES = 4
LARGEST_PARAMETERS = 120_000_000  # above it shapes only: gigabytes and minutes
LARGEST_PX = 384  # a family whose own images are larger runs on smaller ones where it can


def families() -> dict[str, list[str]]:
    """Family (timm's module) -> architectures; ours left out."""
    return {family: timm.list_models(module=family) for family in timm.list_modules() if family != REGISTERED_IN}


def own_px(name: str) -> int:
    cfg = timm.get_pretrained_cfg(name)
    return cfg.input_size[-1] if cfg else 224


def box_of(model: TimmTokenModel) -> MixBox:
    rows, cols = model.grid
    return MixBox((0, max(1, rows // 2)), (0, max(1, cols // 3)), model.grid)


def shape_of(name: str) -> dict[str, Any]:
    """What the architecture is as a token model at its own image size."""
    px = own_px(name)
    try:
        with torch.device("meta"):
            model = create_model(TIMM_PREFIX + name, CLASSES, px)
            assert isinstance(model, TimmTokenModel)
            output = model(torch.zeros(2, 3, px, px), box_of(model))
    except ConfigError as error:
        return {"works": False, "reason": str(error), "image_px": px}
    tokens = model.grid[0] * model.grid[1]
    assert isinstance(output, TokenOutput)
    assert output.class_logits.shape == (2, CLASSES)
    assert output.token_logits.shape == (2, tokens, CLASSES)
    return {
        "works": True,
        "image_px": px,
        "tokens": tokens,
        "mixing": "tokens" if model.embedding_layout else "pixels",
        "parameters": count_parameters(model),
    }


def run_of(name: str) -> dict[str, Any]:
    """Both forwards and the backward pass on the CPU; where a token looks: its pixels' gradient, by cells of the grid."""
    if parameters_of(name) > LARGEST_PARAMETERS:
        return {**shape_of(name), "checked": "shapes"}
    torch.manual_seed(0)
    sides = [own_px(name)] if own_px(name) <= LARGEST_PX else [224, 256, own_px(name)]
    start = time.perf_counter()
    for px in sides:
        try:
            model = create_model(TIMM_PREFIX + name, CLASSES, px)
            break
        except ConfigError as error:
            if px == sides[-1]:
                return {"works": False, "reason": str(error), "image_px": px, "checked": "numbers"}
    assert isinstance(model, TimmTokenModel)
    images = torch.randn(2, 3, px, px)
    output = model.train()(images, box_of(model))
    (output.class_logits.square().mean() + output.token_logits.square().mean()).backward()
    finite = all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())
    unused = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    with torch.no_grad():
        logits = model.eval()(images)
    return {
        "works": bool(finite and logits.isfinite().all()),
        "checked": "numbers",
        "mixing": "tokens" if model.embedding_layout else "pixels",
        "image_px": px,
        "unused": unused,
        "cells_off": cells_off(model, images[:1]),
        "elapsed_s": round(time.perf_counter() - start, 2),
    }


def cells_off(model: TimmTokenModel, image: torch.Tensor) -> int:
    """Cells between a token off the diagonal and the cell whose pixels move its logits most; 0 or 1 is its own place."""
    rows, cols = model.grid
    row, col = rows // 4, (3 * cols) // 4
    image = image.clone().requires_grad_()
    logits = model.forward_tokens(image).token_logits[0, row * cols + col]
    (gradient,) = torch.autograd.grad(logits.square().sum(), image)
    cells = torch.nn.functional.adaptive_avg_pool2d(gradient.abs().sum(1), model.grid)[0]
    best_row, best_col = divmod(int(cells.argmax()), cols)
    return max(abs(best_row - row), abs(best_col - col))


def small_one(names: list[str]) -> list[str]:
    """The one with the fewest parameters among some whose names say small; not a test network of timm's."""
    real = [name for name in names if not name.startswith("test_")] or names
    likely = [name for name in real if SMALL.search(name)] or real
    return [min(likely[:CANDIDATES], key=parameters_of)]


def parameters_of(name: str) -> int:
    with torch.device("meta"):
        return count_parameters(timm.create_model(name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "shapes"])
    parser.add_argument("--record", action="store_true", help="add to bench/results")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    file, measure = (SHAPES, shape_of) if arguments.what == "shapes" else (RUNS, run_of)
    lines = ResultLines(file, fresh=False) if arguments.record else None
    done = {row["name"]: row for row in read_results(file)} if arguments.record else {}
    finished = {row["family"] for row in done.values()} if arguments.what == "run" else set()
    for family, names in families().items():
        if family in finished:
            continue
        for name in small_one(names) if arguments.what == "run" else names:
            if name in done:
                continue
            row = {"name": name, "family": family, "timm": timm.__version__, **measure(name)}
            done[name] = row
            print(name, {key: row[key] for key in ("works", "reason", "cells_off") if key in row}, flush=True)
            if lines is not None:
                lines.add(**row)
    refused = [row["reason"] for row in done.values() if "reason" in row]
    print(f"{sum(row['works'] for row in done.values())} of {len(done)} work, {len(refused)} are refused")
    return 0


if __name__ == "__main__":
    sys.exit(main())
