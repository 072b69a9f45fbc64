"""The model that a run's spec describes, as training starts it. What a finished run's is stands in its config.json."""

from __future__ import annotations

from typing import Any

from ..models import TokenModel, create_model, settings_of_spec
from ..models.model_config import learns_tokens


def model_of_spec(spec: dict[str, Any]) -> TokenModel:
    """Makes the model of a run in random weights, in training mode; a token head that no loss reads takes no gradient.

    Args:
        spec: of stage train or finetune.

    Raises:
        ConfigError: architecture and settings do not fit together.
    """
    model = create_model(
        spec["model"]["architecture"],
        num_classes=spec["dataset"]["num_classes"],
        image_px=spec["image_px"],
        stochastic_depth=spec["model"]["stochastic_depth"],
        **settings_of_spec(spec),
    )
    if not learns_tokens(spec["recipe"]):
        model.get_submodule(model.head_names[-1]).requires_grad_(False)
    return model
