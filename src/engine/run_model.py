"""The model that a run's spec describes; the same for training, validation, evaluation and prediction."""

from __future__ import annotations

from typing import Any

from ..models import TokenModel, create_model


def model_of_spec(spec: dict[str, Any]) -> TokenModel:
    """Makes the model of a run in random weights, in training mode.

    A run without token loss leaves its token head untrained, so the head has no say in the class logits there; with it,
    half of the best token logit is added, as the released code does.

    Args:
        spec: of stage train or finetune.

    Raises:
        ConfigError: architecture and settings do not fit together.
    """
    recipe, settings = spec["recipe"], spec["model"]["settings"]
    if recipe["supervision"] != "token" or recipe["token_weight"] == 0:
        settings = {**settings, "token_score_weight": 0.0}
    return create_model(
        spec["model"]["architecture"],
        num_classes=spec["dataset"]["num_classes"],
        image_px=spec["image_px"],
        stochastic_depth=spec["model"]["stochastic_depth"],
        **{key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()},
    )
