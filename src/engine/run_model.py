"""The model that a run's spec describes, as training starts it. What a finished run's is stands in its config.json."""

from __future__ import annotations

from typing import Any

from ..models import TokenModel, create_model, settings_of_spec


def model_of_spec(spec: dict[str, Any]) -> TokenModel:
    """Makes the model of a run in random weights, in training mode.

    Args:
        spec: of stage train or finetune.

    Raises:
        ConfigError: architecture and settings do not fit together.
    """
    return create_model(
        spec["model"]["architecture"],
        num_classes=spec["dataset"]["num_classes"],
        image_px=spec["image_px"],
        stochastic_depth=spec["model"]["stochastic_depth"],
        **settings_of_spec(spec),
    )
