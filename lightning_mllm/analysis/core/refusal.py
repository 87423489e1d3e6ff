"""How analyses refuse a model of whose family they can't say anything."""

from __future__ import annotations

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone


def refusal(backbone: Backbone, feature: str, reason: str, way_out: str) -> ConfigError:
    """Return the error of a feature that does not work with a model.

    Args:
        backbone: The model, whose family is named.
        feature: What does not work, as the subject of a sentence.
        reason: Why, as a clause.
        way_out: How to go on, as a sentence.
    """
    family: str = backbone.model.config.model_type
    return ConfigError(f"{feature} does not work with {family}: {reason}. {way_out}")
