"""The command `tokenlabel`: one verb per stage, no logic; the same code as `python -m tokenlabel.<stage>`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from functools import partial

from . import __version__
from .core.command import run_command
from .core.errors import exit_on_user_error, missing_packages_named

# verb -> (module with add_arguments and run, one line of help); modules are loaded only for the verb that is used
VERBS = {
    "data": ("data.command", "list the photographs of a data set in a manifest"),
    "data scenes": ("data.scenes_command", "pair, check and list photographs and masks for segmentation"),
    "refresh": ("data.refresh_command", "list a study's photographs again and redo the labels of what changed"),
    "annotate": ("annotate.command", "stage 1: write one label shard with a pretrained annotator"),
    "annotate adapt": ("annotate.adapt_command", "make an annotator for a data set's own classes"),
    "annotate evaluate": ("annotate.evaluate_command", "measure an annotator alone on the validation split"),
    "annotate import": ("annotate.import_command", "bring labels of the released layout into shards"),
    "annotate fidelity": ("annotate.fidelity_command", "compare finished labels with their annotator on random crops"),
    "annotate check": (
        "annotate.check_command",
        "compute a sample of finished labels anew, or check their class order",
    ),
    "annotate list": ("annotate.list_command", "show a study's annotators: weights, pixels, licence"),
    "labels": ("labels.command", "inspect, verify, merge and export label shards"),
    "train": ("train.command", "stage 2 and fine-tuning: train a vision transformer on labels"),
    "train explain": (
        "train.explain_command",
        "show a recipe: every value, where it comes from, how it differs from another",
    ),
    "segment": ("segment.command", "train a backbone with a head for semantic segmentation"),
    "segment evaluate": ("segment.evaluate_command", "measure a trained segmenter on the validation scenes"),
    "segment predict": ("segment.predict_command", "give every pixel of own photographs a class: masks and overlays"),
    "evaluate": ("eval.folder_command", "measure a checkpoint on a folder of class folders"),
    "evaluate run": ("eval.command", "measure a trained run on the validation split"),
    "evaluate published": ("eval.published_command", "measure a published checkpoint on the validation split"),
    "table": ("eval.table_command", "make an experiment's CSV, page and figure"),
    "table index": ("eval.index_command", "make the index of all tables so far"),
    "table first_light": ("eval.first_light_command", "make the summary of a first light: seconds and bytes by rule"),
    "table comparison": ("eval.comparison_command", "make Table 12: LV-ViT-M at 384 px against CaiT"),
    "table published": ("eval.published_table_command", "make the CSV and figure of the published checkpoints"),
    "table segmentation": (
        "eval.segmentation_table_command",
        "make the CSV, page and figure of an experiment of segmentation",
    ),
    "table accuracy": ("eval.accuracy_command", "draw accuracy against parameters, Fig. 1, from what exists"),
    "table curves": ("eval.curves_command", "make the training curves of an experiment's runs"),
    "table fidelity": ("eval.fidelity_table_command", "make the CSV and figure of label fidelity"),
    "plan": ("eval.plan_command", "price a study: jobs, GPU hours, wall time, storage, cost"),
    "draw": ("eval.draw_command", "draw label maps over photographs"),
    "status": (
        "eval.status_command",
        "say what is done, running, failed and stale, what lies unused, and how two runs differ",
    ),
    "report": ("eval.report_command", "make the HTML report of what exists"),
    "report pages": ("eval.report_pages_command", "make the report's tables, its configuration and versions"),
    "predict": ("eval.predict_command", "classify a folder of photographs with a checkpoint"),
    "export": ("models.export_command", "write a checkpoint as a folder that timm loads, and as ONNX"),
    "visualise": ("eval.visualise_command", "draw what a checkpoint sees in photographs, and what its classes rest on"),
    "init": ("start.command", "look at a folder of photographs and write a study file for it"),
    "doctor": ("start.doctor", "look whether this site has what a study needs: Slurm, GPUs, data, weights, disk"),
    "fetch": ("start.fetch", "get pretrained weights for nodes without a network"),
    "demo": ("demo.command", "make the demo's data set from the package foolbox"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs one verb; returns its exit code."""
    return exit_on_user_error(partial(_run, argv))


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    for verb, option in (("annotate", "list"), ("train", "explain")):
        if arguments[:1] == [verb] and f"--{option}" in arguments:
            arguments.remove(f"--{option}")
            arguments.insert(1, option)
    if " ".join(arguments[:2]) in VERBS:  # a verb of two words
        arguments[:2] = [" ".join(arguments[:2])]
    parser = argparse.ArgumentParser(prog="tokenlabel", description="Token labeling for vision transformers.")
    parser.add_argument("--version", action="version", version=f"tokenlabel {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    chosen = next((word for word in arguments if word in VERBS), None)
    for verb, (module_name, help_line) in VERBS.items():
        sub = verbs.add_parser(verb, help=help_line)
        if verb == chosen:
            with missing_packages_named():
                module = importlib.import_module(f".{module_name}", __package__)
            sub.description = module.__doc__
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    return run_command(args.run, args)


if __name__ == "__main__":
    sys.exit(main())
