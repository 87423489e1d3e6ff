from __future__ import annotations

import importlib.util
from pathlib import Path

import lightning as L
import pytest

import lightning_mllm.callbacks
from lightning_mllm.callbacks.trainer_state import trainer_mllm
from lightning_mllm.errors import ConfigError


def test_another_module_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"runs a LightningModule\. Use MLLMModule"):
        trainer_mllm(L.LightningModule())


def test_the_folder_can_be_imported_under_one_name_only() -> None:
    path = Path(lightning_mllm.callbacks.__file__)
    spec = importlib.util.spec_from_file_location("callbacks", path)
    assert spec is not None
    assert spec.loader is not None

    with pytest.raises(ImportError, match=r"as lightning_mllm\.callbacks, not as callbacks"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
