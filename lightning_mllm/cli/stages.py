"""The stages that `${testbed:instructed}` can name, without importing what opens them."""

from __future__ import annotations

import re

from lightning_mllm.cli.class_index import PACKAGE
from lightning_mllm.errors import ConfigError, did_you_mean

WEIGHTS = PACKAGE / "testbed" / "weights"


def check_stages(value: object, where: str) -> None:
    """Refuse a value that names a stage of the test-bed's models that there is not.

    Raises:
        ConfigError: It does.
    """
    stages = sorted(path.parent.name for path in WEIGHTS.glob("*/config.json"))
    for stage in re.findall(r"\$\{testbed:([^{}]*)\}", str(value)):
        if stages and stage.strip() not in stages:
            raise ConfigError(
                f"{where}: the test-bed has no model {stage!r}. It has {', '.join(stages)}."
                f"{did_you_mean(stage, stages)}"
            )


def stage_folder(stage: str) -> str:
    """Return the folder of the model that `${testbed:<stage>}` names.

    Raises:
        ConfigError: There is no such stage.
    """
    name = f"${{testbed:{stage}}}"
    check_stages(name, name)
    return str(WEIGHTS / stage)
