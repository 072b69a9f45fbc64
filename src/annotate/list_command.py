"""Shows a study's annotators: timm's name and tag, weights and where they are, pixels, licence. Loads no weights.

Reads config.yaml of the working directory, else of the checkout that this package lies in. Also `tokenlabel annotate --list`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..core.config import AdaptedAnnotator, Annotator, Config, load_config
from ..core.errors import CheckpointError
from ..core.overlays import read_configuration, study_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the overlays."""
    parser.add_argument("--configfile", type=Path, nargs="+", default=[], help="overlays, as snakemake takes them")


def run(args: argparse.Namespace) -> int:
    """Prints a block of lines for each annotator.

    Raises:
        ConfigError: no configuration, or a mistake in it.
    """
    config = load_config(read_configuration(study_files(args.configfile)))
    for name, annotator in config.annotators.items():
        for key, value in describe_annotator(name, annotator, config).items():
            print(f"{value}" if key == "name" else f"    {key:<14}{value}")  # noqa: T201
    return 0


def describe_annotator(name: str, annotator: Annotator | AdaptedAnnotator, config: Config) -> dict[str, str]:
    """What is known of one annotator, heading -> words."""
    if isinstance(annotator, AdaptedAnnotator):
        return {
            "name": name,
            "made here": f"from {annotator.base} by {annotator.adapt}, for the data set's own classes",
        }
    import timm

    lines = {"name": name, "architecture": annotator.architecture}
    try:
        wants = timm.get_pretrained_cfg(annotator.architecture, allow_unregistered=False)
    except (RuntimeError, ValueError):
        wants = None
    if wants is None:
        return lines | {"problem": "timm knows no such architecture or weights tag"}
    top1 = "not printed" if annotator.paper_top1 is None else f"{annotator.paper_top1:.1f} %"
    return lines | {
        "weights": f"{annotator.weights}, {_presence(annotator, Path(config.weights_root))}",
        "grid": f"{annotator.grid[0]}x{annotator.grid[1]} at {config.labels.image_px} px",
        "pixels": f"mean {_numbers(wants.mean)}, std {_numbers(wants.std)}, {wants.interpolation}",
        "parameters": f"{annotator.parameters_m:g} million",
        "licence": wants.license or "not stated by timm",
        "paper top-1": top1,
    }


def _presence(annotator: Annotator, weights_root: Path) -> str:
    from ..core.weights_files import find_weights_file
    from ..models.pretrained import cached_hub_file, hub_file

    try:
        path = find_weights_file(annotator.weights, weights_root) or cached_hub_file(annotator.architecture)
        if path is not None:
            return f"here: {path}"
        repository, _, file_name = hub_file(annotator.architecture)
    except CheckpointError as error:
        return f"missing: {error}"
    return (
        f"not here yet: fetched as {file_name} of {repository}; without a network put that file under {weights_root} and "
        "set weights: file:NAME"
    )


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{value:g}" for value in values)
