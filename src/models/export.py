"""A trained model as a folder for others: safetensors and config.json, which timm reads, and ONNX.

Guarantees that the folder is whole or absent, that nothing but an earlier export is replaced, and that the ONNX model gave
torch's numbers before it was kept. Called by `export_command`; writes no TorchScript.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from .. import __version__
from ..core.errors import OutputError, TokenLabelError
from ..core.files import sha256_of, staged_folder, write_text
from ..core.log import logger
from .model_config import CONFIG_FILE, ModelConfig, write_model_config
from .tokens import TokenModel
from .trained import LoadedModel
from .weights import WEIGHTS_FILE, read_metadata, save_weights

ONNX_FILE, README_FILE = "model.onnx", "README.md"
FILES = {WEIGHTS_FILE, CONFIG_FILE, README_FILE, ONNX_FILE}
TOLERANCE = 1e-4  # largest difference of a logit between onnxruntime and torch
CHECKED_BATCHES = (1, 3)  # the tracing sees 2
MARK = "exported_by"  # key of the weights' metadata by which an export knows its own


class ExportError(TokenLabelError):
    """A model that cannot be exported, or whose export does not give its numbers."""


def export_model(loaded: LoadedModel, folder: Path, *, onnx: bool = False) -> None:
    """Writes model.safetensors, config.json, README.md and, if asked for, model.onnx.

    Args:
        loaded: what `load_model` gave.
        folder: new, empty, or an earlier export, which is replaced.
        onnx: write model.onnx too: input `images` (batch, 3, image_px, image_px), outputs `class_logits`
            (batch, classes) by the eval rule and `token_logits` (batch, tokens, classes), any batch size.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
        ExportError: ONNX cannot express the model, its packages are missing, or it gives other numbers than torch.
    """
    folder = folder.resolve()
    if onnx:
        _require_onnx()
    _refuse_foreign(folder)
    source = Path(loaded.report.where)
    metadata = {MARK: f"tokenlabel {__version__}", "source": source.name, "source_sha256": sha256_of(source)}
    if source.suffix == ".safetensors":
        metadata = {**read_metadata(source), **metadata}
    with staged_folder(folder) as staged:
        save_weights(loaded.model, staged / WEIGHTS_FILE, metadata)
        write_model_config(staged, loaded.config)
        if onnx:
            _write_onnx(loaded.model, loaded.config, staged / ONNX_FILE)
        write_text(staged / README_FILE, _readme(loaded, folder.name, onnx))


class _Logits(nn.Module):
    """Class logits by the eval rule and token logits, side by side."""

    def __init__(self, model: TokenModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, 3, image_px, image_px) -> (batch, classes), (batch, tokens, classes)."""
        output = self.model.forward_tokens(images)
        return self.model.score_classes(output.class_logits, output.token_logits), output.token_logits


def _write_onnx(model: TokenModel, config: ModelConfig, path: Path) -> None:
    import onnx

    logits = _Logits(model).eval()
    images = torch.randn(2, 3, config.image_px, config.image_px)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecations inside the exporter
            # The exporter's own optimiser (onnxscript 0.7) changes the Performer's numbers; onnxruntime has one of its own.
            program = torch.onnx.export(
                logits, (images,), dynamo=True, optimize=False, verbose=False, input_names=["images"],
                output_names=["class_logits", "token_logits"], dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
            assert program is not None
            document = program.model_proto
        onnx.helper.set_model_props(document, _facts(model, config))
        onnx.save(document, path)
    except OSError:
        raise  # of the writing
    except Exception as error:  # noqa: BLE001 - the exporter raises whatever its passes meet
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(
            f"{config.architecture}: torch.onnx cannot express it ({reason[:200]}). Export it without --onnx."
        ) from None
    difference = _largest_difference(logits, path, config.image_px)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"{config.architecture}: onnxruntime's logits differ from torch's by {difference:.1e}, more than {TOLERANCE:.0e}. "
            "Export it without --onnx."
        )
    logger.info("onnxruntime and torch: largest difference of a logit %.1e (batches of 1 and 3)", difference)


def _facts(model: TokenModel, config: ModelConfig) -> dict[str, str]:
    """What a user of the ONNX file alone must know, as JSON values."""
    facts = {
        "architecture": config.architecture,
        "classes": config.classes,
        "descriptions": config.descriptions,
        "mean": config.mean,
        "std": config.std,
        "crop": config.crop,
        "interpolation": config.interpolation,
        "image_px": config.image_px,
        "grid": model.grid,
    }
    return {name: json.dumps(value) for name, value in facts.items()}


def _largest_difference(logits: nn.Module, path: Path, image_px: int) -> float:
    """Between onnxruntime and torch, over both outputs and several batch sizes; NaN where either gives one."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    differences = []
    for batch in CHECKED_BATCHES:
        images = torch.randn(batch, 3, image_px, image_px, generator=generator)
        with torch.inference_mode():
            expected = logits(images)
        found = session.run(["class_logits", "token_logits"], {"images": images.numpy()})
        differences += [(torch.from_numpy(a) - b).abs().amax() for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(differences).amax())  # amax hands NaN on


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f"ONNX needs {error.name}, which is not installed: pip install 'tokenlabel[onnx]'") from None


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else None
    ours = (
        names is not None and WEIGHTS_FILE in names and names <= FILES and MARK in read_metadata(folder / WEIGHTS_FILE)
    )
    if names != set() and not ours:
        raise OutputError(
            f"{folder}: exists and is no export of this command; nothing was written. Give another folder."
        )


def _readme(loaded: LoadedModel, name: str, onnx: bool) -> str:
    config, report = loaded.config, loaded.report
    kind = "averaged (EMA) weights" if report.averaged else "weights"
    sections = [
        f"# {name}\n\n{config.architecture}, {config.num_classes} classes, {config.image_px} px: the {kind} of "
        f"`{Path(report.where).name}`. Class names and preprocessing stand in `{CONFIG_FILE}`: a centre crop of "
        f"{config.crop:g} of the shorter side, {config.interpolation}, mean {_numbers(config.mean)}, std {_numbers(config.std)}.",
        "With tokenlabel:\n\n```python\nfrom tokenlabel.models import load_model\n\n"
        'loaded = load_model("THIS_FOLDER")\n'
        "logits = loaded.model(images)  # (batch, classes); loaded.classes[i] is the name of class i\n"
        "tokens = loaded.model.forward_tokens(images).token_logits  # (batch, tokens, classes), row by row\n```",
        "With timm:\n\n```python\nimport timm\nimport tokenlabel.models  # registers the architecture\n\n"
        'model = timm.create_model("local-dir:THIS_FOLDER", pretrained=True).eval()\n```',
    ]
    if loaded.model.token_score_weight == 0:
        sections.append(
            "**The token head has no say in the class logits, so it may be untrained; its token logits mean nothing then.**"
        )
    if onnx:
        sections.append(
            "With onnxruntime, any batch size; class names and preprocessing are in the file's metadata too:\n\n"
            "```python\nimport onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("THIS_FOLDER/{ONNX_FILE}")\n'
            'class_logits, token_logits = session.run(None, {"images": images})  # float32 '
            f"(batch, 3, {config.image_px}, {config.image_px})\n```"
        )
    return "\n\n".join(sections) + "\n"


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:g}" for value in values) + ")"
