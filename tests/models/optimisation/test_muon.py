from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.freeze import Everything
from lightning_mllm.models.optimisation.muon import MuonAdamW
from lightning_mllm.models.optimisation.schedule import LearningRates, scheduled_parameter_groups


def _groups(seed: int = 0) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    matrix, table = (torch.nn.Parameter(torch.randn(12, 8, generator=generator)) for _ in range(2))
    vector = torch.nn.Parameter(torch.randn(8, generator=generator))
    return [
        {"name": "matrix", "params": [matrix], "lr": 0.1, "matrices": True},
        {"name": "table", "params": [table], "lr": 0.1, "matrices": False},
        {"name": "vector", "params": [vector], "lr": 0.1, "matrices": False, "weight_decay": 0.0},
    ]


def _fill_gradients(groups: list[dict[str, Any]], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def _values(groups: list[dict[str, Any]]) -> list[torch.Tensor]:
    return [parameter.detach().clone() for group in groups for parameter in group["params"]]


def test_a_matrix_takes_a_step_with_about_equal_singular_values() -> None:
    groups = _groups()
    (before, *_) = _values(groups)
    optimizer = MuonAdamW(groups, matrix_scale=2.0)

    _fill_gradients(groups, seed=1)
    optimizer.step()

    # rate times Moonshot's scale
    step = (before - _values(groups)[0]) / (2.0 * 0.1 * 0.2 * 12**0.5)
    singular = torch.linalg.svdvals(step)
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_everything_else_takes_the_step_of_adamw() -> None:
    ours, theirs = _groups(), _groups()
    optimizer = MuonAdamW(ours, weight_decay=0.1, betas=(0.9, 0.95))
    reference = AdamW(theirs[1:], weight_decay=0.1, betas=(0.9, 0.95))

    for seed in range(3):
        _fill_gradients(ours, seed)
        _fill_gradients(theirs, seed)
        optimizer.step()
        reference.step()

    for value, expected in zip(_values(ours)[1:], _values(theirs)[1:], strict=True):
        torch.testing.assert_close(value, expected)


def test_one_schedule_drives_both() -> None:
    groups = _groups()
    optimizer = MuonAdamW(groups, matrix_scale=4.0)
    scheduler = LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.4, 0.1, 0.1])
    _fill_gradients(groups, seed=1)
    optimizer.step()
    scheduler.step()
    before = _values(groups)

    _fill_gradients(groups, seed=2)
    optimizer.step()

    assert all(
        torch.equal(value, kept) for value, kept in zip(_values(groups), before, strict=True)
    )


def test_a_resumed_optimizer_goes_on_as_if_it_had_not_stopped() -> None:
    through, stopped = _groups(), _groups()
    optimizer, first = MuonAdamW(through), MuonAdamW(stopped)
    for each, groups in ((optimizer, through), (first, stopped)):
        _fill_gradients(groups, seed=1)
        each.step()

    second = MuonAdamW(stopped)
    second.load_state_dict(first.state_dict())
    for each, groups in ((optimizer, through), (second, stopped)):
        _fill_gradients(groups, seed=2)
        each.step()

    assert all(
        torch.equal(one, other)
        for one, other in zip(_values(through), _values(stopped), strict=True)
    )


def test_groups_that_do_not_say_where_matrices_are_are_refused() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    for given in ([{"params": [parameter]}], [parameter]):
        with pytest.raises(ConfigError, match="parameter_groups"):
            MuonAdamW(given)  # type: ignore[arg-type]


def test_groups_that_come_late_are_refused() -> None:
    with pytest.raises(ConfigError, match="when it is created"):
        MuonAdamW(_groups()).add_param_group(
            {"params": [torch.nn.Parameter(torch.zeros(2))], "matrices": False}
        )


def test_embeddings_head_and_convolutions_are_not_matrices(tiny_llava: str) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    Everything().apply(backbone)
    names = {id(parameter): name for name, parameter in backbone.parameters()}

    groups = scheduled_parameter_groups(backbone, LearningRates())

    matrices = {
        names[id(each)] for group in groups if group["matrices"] for each in group["params"]
    }
    others = {
        names[id(each)] for group in groups if not group["matrices"] for each in group["params"]
    }
    assert all(name.endswith("weight") for name in matrices)
    assert {name.split(".")[-2] for name in others if name.endswith("weight")} == {
        *("embed_tokens", "lm_head", "patch_embedding", "position_embedding", "norm"),
        *(
            "input_layernorm",
            "post_attention_layernorm",
            "layer_norm1",
            "layer_norm2",
            "pre_layrnorm",
        ),
    }
