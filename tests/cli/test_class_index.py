"""The names of classes that are read from files are those that the parser would accept."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback

from lightning_mllm.analysis.core.analysis import Analysis
from lightning_mllm.cli import parser  # noqa: F401  # imports all that can be named
from lightning_mllm.cli.class_index import BASES, explain_class, subclass_names
from lightning_mllm.cli.commands import model  # noqa: F401
from lightning_mllm.cli.stages import WEIGHTS
from lightning_mllm.data import MLLMDataModule, Prompt
from lightning_mllm.evaluation import Scorer
from lightning_mllm.models.freeze import FreezePolicy
from lightning_mllm.testbed import STAGES
from lightning_mllm.testbed.training.checkpoints import ROOT

CLASSES: dict[str, Any] = {
    each.__name__: each
    for each in (Analysis, Callback, FreezePolicy, MLLMDataModule, Prompt, Scorer)
}


@pytest.mark.parametrize("option", BASES)
def test_every_class_that_an_option_takes_is_known(option: str) -> None:
    base, _, example = BASES[option]

    names = _imported_subclasses(CLASSES[base])

    assert names <= subclass_names(base)
    assert example in names


def _imported_subclasses(base: Any) -> set[str]:
    names: set[str] = set()
    for each in base.__subclasses__():
        if each.__module__.startswith(("lightning.", "lightning_mllm.")):
            names |= {each.__name__} | _imported_subclasses(each)
    return names


def test_a_name_without_a_near_one_is_answered_with_all() -> None:
    sentence = explain_class("model.policy", "Zzzzz")

    assert "ByPattern" in sentence and "_WholeParts" not in sentence


def test_the_stages_are_those_that_the_testbed_has() -> None:
    assert WEIGHTS == ROOT
    assert {path.parent.name for path in WEIGHTS.glob("*/config.json")} == set(STAGES)
