"""Layers on several devices: the same numbers, however they are placed, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.freeze import Everything, Lora, ProjectorOnly
from lightning_mllm.models.holding import Holding
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.models.placement import (
    Placement,
    find_offloaded,
    place_evaluated,
    share_layers,
)
from lightning_mllm.models.sharding import Sharding
from lightning_mllm.models.source import Source
from tests.conftest import FamilyBuilder
from tests.support.tiny_families import open_backbone, unequal_pictures

CPU = torch.device("cpu")
HALF = Holding(placement=Placement({"cpu": 1, "disk": 1}, CPU))
GIB = 2**30


def test_all_layers_are_placed_and_devices_are_filled_alike() -> None:
    shared = share_layers(32, GIB, rest=4 * GIB, free={0: 40 * GIB, 1: 40 * GIB, "cpu": 99 * GIB})

    assert shared == {0: 14, 1: 18}  # with the rest, 18 GiB on each


def test_what_no_gpu_holds_goes_to_the_memory_of_the_cpu_and_then_to_the_disk() -> None:
    free: dict[int | str, int] = {0: 10 * GIB, 1: 10 * GIB, "cpu": 10 * GIB}

    assert share_layers(32, GIB, rest=2 * GIB, free=free) == {0: 6, 1: 8, "cpu": 8, "disk": 10}
    assert share_layers(4, GIB, rest=GIB, free={"cpu": 5 * GIB}) == {"cpu": 3, "disk": 1}


def test_a_device_that_does_not_hold_what_is_no_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"takes 9\.0 GiB, and one layer 1\.0 more, but 0 has"):
        share_layers(4, GIB, rest=9 * GIB, free={0: 10 * GIB})


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "gemma3"])
def test_layers_on_the_disk_change_nothing(tiny_family: FamilyBuilder, family: str) -> None:
    checkpoint = tiny_family(family)
    whole = open_backbone(checkpoint)
    count = len(decoder_layers(whole))
    placement = Placement({"cpu": 1, "disk": count - 1}, CPU)
    inputs = unequal_pictures(checkpoint).model_inputs()

    placed = open_backbone(checkpoint, holding=Holding(placement=placement))

    assert list(find_offloaded(placed.model))
    assert placed.fingerprint == whole.fingerprint
    assert torch.equal(placed.model(**inputs).logits, whole.model(**inputs).logits)


def test_what_is_read_in_another_dtype_is_so_on_the_disk_too(tiny_llava: str) -> None:
    whole, placed = (
        Backbone.from_pretrained(tiny_llava, dtype=torch.bfloat16, holding=holding)
        for holding in (Holding(), HALF)
    )
    ids = torch.arange(20)[None] + 5

    with torch.no_grad():
        assert torch.equal(placed.model(input_ids=ids).logits, whole.model(input_ids=ids).logits)


@pytest.mark.parametrize("policy", [Everything(), Lora(rank=2)], ids=str)
def test_trained_weights_on_the_disk_are_refused(tiny_llava: str, policy: Any) -> None:
    with pytest.raises(ConfigError, match=r"trains .* tensors in layers that"):
        AdaptedModel.load(Source(tiny_llava), policy, dtype=torch.float32, holding=HALF)


def test_a_trained_projector_is_put_into_a_placed_model(tiny_llava: str) -> None:
    options: dict[str, Any] = {"dtype": torch.float32, "holding": HALF}
    adapted = AdaptedModel.load(Source(tiny_llava), ProjectorOnly(), **options)
    changed = {name: each + 1 for name, each in adapted.trained_state().items()}

    adapted.load_trained_state(changed)

    assert all(map(torch.equal, adapted.trained_state().values(), changed.values()))


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"cpu": 1}, "places 1 layers, but the LLM has 2"),
        ({"cpu": 3, "disk": -1}, "places 2 layers"),
        ({"cuda:7": 2}, "names 'cuda:7', which is not here"),
        ({"gpu": 2}, "names 'gpu', which is not here"),
    ],
)
def test_a_device_map_that_fits_neither_model_nor_machine_is_refused(
    tiny_llava: str, device_map: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        holding = Holding(placement=Placement(device_map, CPU))
        Backbone.from_pretrained(tiny_llava, holding=holding)


def test_a_placed_model_is_not_compiled(tiny_llava: str) -> None:
    module = MLLMModule(tiny_llava, device_map="auto", compile=True)

    with pytest.raises(ConfigError, match="do not go together"):
        module.configure_model()


def test_a_placed_model_is_not_sharded(tiny_llava: str) -> None:
    module = MLLMModule(tiny_llava, device_map="auto")
    strategy = SimpleNamespace(sharding=Sharding(CPU), root_device=CPU)
    state = SimpleNamespace(fn="validate")
    module._trainer = SimpleNamespace(strategy=strategy, state=state)  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"fsdp2 and model\.device_map both divide"):
        place_evaluated(module, CPU)


def test_moving_a_module_leaves_its_placed_model_where_it_is(
    tiny_llava: str, tmp_path: Path
) -> None:
    module = MLLMModule(tiny_llava, device_map={"cpu": 1, "disk": 1})
    module.configure_model()

    module.to("cpu")

    assert not list(module.parameters())
    assert list(find_offloaded(module.backbone.model))
