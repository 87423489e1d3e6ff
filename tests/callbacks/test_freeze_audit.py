from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_mllm.callbacks import FreezeAudit
from lightning_mllm.callbacks.freeze_audit import _checksum, freeze_checksums
from lightning_mllm.models.module import MLLMModule
from tests.callbacks.conftest import make_data, make_trainer


class Vandal(L.Callback):
    """Writes into a frozen parameter, or unfreezes it."""

    def __init__(self, name: str, unfreeze: bool = False) -> None:
        self.name, self.unfreeze = name, unfreeze

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any
    ) -> None:
        (parameter,) = [p for name, p in pl_module.named_parameters() if name.endswith(self.name)]
        parameter.view(-1)[0].nextafter_(torch.tensor(9.0))  # the smallest change there is
        parameter.requires_grad_(self.unfreeze)


@pytest.mark.parametrize("unfreeze", [False, True])
def test_a_changed_frozen_parameter_fails_the_fit_by_name(
    tmp_path: Path, tiny_llava: str, unfreeze: bool
) -> None:
    name = "language_model.layers.1.mlp.down_proj.weight"
    trainer = make_trainer(
        tmp_path, [FreezeAudit(), Vandal(name, unfreeze)], max_steps=2, limit_val_batches=0
    )

    with pytest.raises(RuntimeError, match=rf"1 parameters .* changed or unfrozen .*{name}"):
        trainer.fit(MLLMModule(tiny_llava), datamodule=make_data(tiny_llava))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_changed_bit_changes_the_checksum(dtype: torch.dtype) -> None:
    module = nn.Linear(8, 8).to(dtype).requires_grad_(False)
    before = freeze_checksums(module)
    with torch.no_grad():
        module.weight[3, 5] = (
            torch.nextafter(module.weight[3, 5].float(), torch.tensor(9.0)).to(dtype) + 0.01
        )

    assert freeze_checksums(module)["bias"] == before["bias"]
    assert freeze_checksums(module)["weight"] != before["weight"]


def test_the_checksum_of_shards_is_that_of_the_whole() -> None:
    values = torch.randn(7, 3)

    parts = [_checksum(part, 3 * first) for part, first in ((values[:4], 0), (values[4:], 4))]

    assert sum(parts) == _checksum(values, 0)


def test_values_that_change_places_change_the_checksum() -> None:
    module = nn.Linear(4, 3).requires_grad_(False)
    before = freeze_checksums(module)
    module.weight.copy_(module.weight.flip(0).clone())

    assert freeze_checksums(module)["weight"] != before["weight"]


def test_the_checksum_does_not_depend_on_the_size_of_its_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = nn.Linear(40, 30).requires_grad_(False)
    whole = freeze_checksums(module)
    monkeypatch.setattr("lightning_mllm.callbacks.freeze_audit._CHUNK", 7)

    assert freeze_checksums(module) == whole


def test_nan_and_negative_zero_are_bits_too() -> None:
    module = nn.Linear(2, 1, bias=False).requires_grad_(False)
    nn.init.zeros_(module.weight)
    zero = freeze_checksums(module)
    module.weight[0, 0] = -0.0

    assert freeze_checksums(module) != zero


def test_trainable_parameters_are_not_audited() -> None:
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)

    assert set(freeze_checksums(module)) == {"bias"}
    assert freeze_checksums(nn.Linear(2, 2)) == {}


def test_the_report_is_shown(
    tmp_path: Path, tiny_llava: str, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = make_trainer(tmp_path, [FreezeAudit()], max_steps=2, limit_val_batches=0)
    trainer.fit(MLLMModule(tiny_llava), datamodule=make_data(tiny_llava))

    shown = capsys.readouterr().out
    assert "What ProjectorOnly() trains" in shown
    assert "projector" in shown
