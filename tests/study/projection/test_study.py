from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mllm.errors import ConfigError
from lightning_mllm.study import ProjectionStudyRates
from lightning_mllm.study.engine.main import run_study
from tests.study.conftest import Change, FakeLightning

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domains": {}}, "domains is empty, so the study has no cell"),
        ({"seeds": []}, "give one or more"),
        ({"seeds": [1, 1]}, "each once"),
        ({"presets": {"paper": {}}}, r"presets\.paper is empty"),
        ({"presets": {"paper": {"zero_shot": []}}}, "which every study has anyway"),
        ({"domains": {"a.b": []}}, "use letters, digits, _ and - only"),
        ({"domains": {"Leaves": [], "leaves": []}}, "has 'Leaves' twice"),
        (
            {"domains": {"leaves": ["missing.yaml"]}},
            r"domains\.leaves names the config file missing\.yaml",
        ),
        ({"common": ["gone.yaml"]}, "common names the config file"),
        (
            {"sweep": ProjectionStudyRates(preset="matched", rates=[1e-3, 1e-4])},
            "Presets with it: paper",
        ),
        (
            {"sweep": ProjectionStudyRates(preset="paper", rates=[1e-3])},
            "two or more different rates",
        ),
        (
            {"sweep": ProjectionStudyRates(preset="paper", rates=[1e-3, 1e-4], also=["own"])},
            r"sweep\.also has 'own'",
        ),
        ({"resamples": 100}, "need 2000 or more"),
        ({"jobs": 0}, "at least one cell"),
        ({"cells": "9/8"}, "counted from 1"),
        ({"cells": "0/8"}, "SLURM_ARRAY_TASK_ID"),
        ({"cells": "3"}, "e.g. 3/8"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    study: Change, fake: FakeLightning, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_study(study(**changes), fake)

    assert not fake.calls


def test_a_config_that_is_no_yaml_is_named(study: Change, fake: FakeLightning) -> None:
    Path("proj.yaml").write_text("model: {")

    with pytest.raises(ConfigError, match=r"config file proj\.yaml can't be read"):
        run_study(study(), fake)


def test_a_preset_that_stands_for_a_rate_of_the_sweep_differs_in_the_rate_alone(
    study: Change, fake: FakeLightning
) -> None:
    Path("same.yaml").write_text(yaml.safe_dump(with_rate("proj.yaml", 3e-4)))
    Path("other.yaml").write_text(
        yaml.safe_dump({**with_rate("proj.yaml", 3e-4), "trainer": {"max_epochs": 9}})
    )
    presets = study().presets
    more = {**presets, "same": {"ft_proj": ["same.yaml"]}, "other": {"ft_proj": ["other.yaml"]}}
    swept = next(iter(presets))

    rates = [1e-4, 3e-4]
    study(
        presets=more, sweep=ProjectionStudyRates(preset=swept, rates=rates, also=["same"])
    ).check()
    with pytest.raises(ConfigError, match=r"also names the preset 'other'.* in more than model\."):
        study(
            presets=more,
            sweep=ProjectionStudyRates(preset=swept, rates=[1e-4, 3e-4], also=["other"]),
        ).check()


def with_rate(file: str, rate: float) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(Path(file).read_text())
    content.setdefault("model", {}).setdefault("learning_rates", {})["projector"] = rate
    return content
