"""Shards of a model, by a group of one process: it has all rows, as shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_mllm.analysis.subnetwork.matrices import matrices
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.freeze import ProjectorAndLLM
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.sharding import Sharding
from lightning_mllm.trainer import Trainer
from tests.models.conftest import batch_of, logits
from tests.support.loaded import load_copy


@pytest.fixture(autouse=True)
def _group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def shard(checkpoint: str, *, whole_evaluation: bool, dtype: Any = torch.bfloat16) -> AdaptedModel:
    backbone = load_copy(checkpoint, dtype=dtype)
    for layer in decoder_layers(backbone):
        fully_shard(layer)
    fully_shard(backbone.model)
    sharding = Sharding(torch.device("cpu"), whole_evaluation=whole_evaluation)
    return AdaptedModel(backbone, ProjectorAndLLM(), dtype, sharding=sharding)


def count_shards(model: nn.Module) -> int:
    return sum(isinstance(each, DTensor) for each in model.parameters())


@pytest.mark.parametrize("whole", [True, False])
def test_gathering_changes_no_logits_and_leaves_nothing_behind(
    tiny_llava: str, whole: bool
) -> None:
    batch = batch_of(tiny_llava)
    expected = logits(load_copy(tiny_llava), batch)
    adapted = shard(tiny_llava, whole_evaluation=whole, dtype=torch.float32)
    model, shards = adapted.backbone.model, adapted.shards
    assert shards is not None
    hooks = sum(len(each._forward_pre_hooks) for each in model.modules())

    shards.gather()
    with adapted.autocast("cpu"), torch.no_grad():
        found = logits(adapted.backbone, batch)
    adapted.end_regions()
    first = count_shards(decoder_layers(adapted.backbone)[0])
    shards.scatter()

    assert torch.equal(found, expected)
    assert bool(first) != whole  # the second layer has taken its place
    assert count_shards(model) == len(list(model.parameters()))
    assert sum(len(each._forward_pre_hooks) for each in model.modules()) == hooks


def test_16_bit_copies_are_kept_for_whole_weights_only(tiny_llava: str) -> None:
    kept = {}
    for whole in (True, False):
        adapted = shard(tiny_llava, whole_evaluation=whole)
        assert adapted.shards is not None
        for gathered in (False, True):
            if gathered:
                adapted.shards.gather()
            with adapted.autocast("cpu"):
                kept[whole, gathered] = torch.is_autocast_cache_enabled()

    assert kept == {
        (True, False): False,
        (True, True): True,
        (False, False): False,
        (False, True): False,
    }


def test_a_layer_that_is_run_where_other_processes_do_not_know_of_it_is_refused(
    tiny_llava: str,
) -> None:
    adapted = shard(tiny_llava, whole_evaluation=False, dtype=torch.float32)
    assert adapted.shards is not None
    adapted.shards.gather()

    with pytest.raises(RuntimeError, match=r"outside of `AdaptedModel\.autocast`"):
        logits(adapted.backbone, batch_of(tiny_llava))


def test_what_reads_the_weights_of_layers_needs_them_whole(tiny_llava: str) -> None:
    whole, parts = (shard(tiny_llava, whole_evaluation=each) for each in (True, False))
    for adapted in (whole, parts):
        assert adapted.shards is not None
        adapted.shards.gather()

    assert matrices(whole.backbone)
    with pytest.raises(ConfigError, match=r"only a part of the weights.*Use evaluation: whole"):
        matrices(parts.backbone)


def test_what_no_memory_holds_as_a_whole_is_not_exported(tiny_llava: str, tmp_path: Path) -> None:
    output = str(tmp_path / "exported")
    trainer = Trainer(logger=False)
    with pytest.raises(ConfigError, match=r"Leave model\.device_map out"):
        trainer.export(MLLMModule(tiny_llava, device_map="auto"), output=output)
    trainer.strategy.sharding = Sharding(torch.device("cpu"))  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"none has all of it.*in one process: lightning"):
        trainer.export(MLLMModule(tiny_llava), output=output)
    assert not (tmp_path / "exported").exists()


def test_a_torch_with_other_shards_is_named(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("torch.distributed.fsdp.FSDPModule._get_fsdp_state")

    with pytest.raises(ConfigError, match=r"`fully_shard`, of torch 2.*Install torch 2\.13"):
        shard(tiny_llava, whole_evaluation=True)
