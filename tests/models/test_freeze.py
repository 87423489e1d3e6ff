from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import LlavaConfig, LlavaForConditionalGeneration

from lightning_mllm.errors import ConfigError
from lightning_mllm.models import freeze
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.loss import answer_loss
from tests.models.conftest import batch_of
from tests.support.loaded import load_copy

POLICIES: list[tuple[freeze.FreezePolicy, set[Part]]] = [
    (freeze.ProjectorOnly(), {Part.PROJECTOR}),
    (freeze.ProjectorAndLLM(), {Part.PROJECTOR, Part.LLM}),
    (freeze.LLMOnly(), {Part.LLM}),
    (freeze.ProjectorAndVision(), {Part.PROJECTOR, Part.VISION}),
    (freeze.Everything(), {Part.PROJECTOR, Part.VISION, Part.LLM}),
    (freeze.Lora(rank=2), {Part.LLM_LORA}),
    (freeze.Lora(rank=2, target="vision"), {Part.VISION_LORA}),
    (
        freeze.Lora(rank=2, target="both", projector=True),
        {Part.LLM_LORA, Part.VISION_LORA, Part.PROJECTOR},
    ),
    (freeze.LastLayers(1, projector=True), {Part.LLM, Part.PROJECTOR}),
    (
        freeze.Combined([freeze.ProjectorAndVision(), freeze.Lora(rank=2)]),
        {Part.LLM_LORA, Part.VISION, Part.PROJECTOR},
    ),
    (freeze.ByPattern(["linear_1", r"layers\.0\.mlp"]), {Part.PROJECTOR, Part.VISION, Part.LLM}),
]


def _name(value: object) -> str:
    # in the same order in every process
    return "+".join(sorted(value)) if isinstance(value, set) else str(value)


@pytest.fixture(params=["llava", "llava_next"])
def checkpoint(request: pytest.FixtureRequest, tiny_checkpoint: Callable[..., str]) -> str:
    return tiny_checkpoint(request.param, "vicuna")


@pytest.mark.parametrize(("policy", "parts"), POLICIES, ids=_name)
def test_a_step_moves_all_that_is_trainable_and_nothing_else(
    checkpoint: str, policy: freeze.FreezePolicy, parts: set[Part]
) -> None:
    backbone = load_copy(checkpoint)
    report = policy.apply(backbone)
    before = {name: parameter.detach().clone() for name, parameter in backbone.parameters()}
    optimizer = torch.optim.SGD([p for _, p in backbone.parameters() if p.requires_grad], lr=1.0)

    # LoRA's second matrix starts at zero, so its first moves from the second step on
    for _ in range(2):
        optimizer.zero_grad()
        answer_loss(backbone, batch_of(checkpoint)).mean.backward()
        optimizer.step()

    moved = {
        name
        for name, parameter in backbone.parameters()
        if not torch.equal(parameter, before[name])
    }
    # a shift of all keys
    never_in_loss = {name for name in report.trainable_names if "k_proj.bias" in name}
    assert moved - never_in_loss == set(report.trainable_names) - never_in_loss
    assert report.trainable_parts == parts


def test_zero_shot_trains_nothing(tiny_llava: str) -> None:
    report = freeze.ZeroShot().apply(load_copy(tiny_llava))

    assert report.trainable_names == ()
    assert report.rows()[-1][2] == 0


def test_the_report_counts_every_parameter_once(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)

    report = freeze.ProjectorOnly().apply(backbone)

    *parts, total = report.rows()
    assert (
        total[1]
        == sum(p.numel() for p in backbone.model.parameters())
        == sum(n for _, n, _, _ in parts)
    )
    assert total[2] == sum(p.numel() for p in backbone.projector.parameters())


def test_ft_proj_of_llava_next_trains_its_row_separator(tiny_llava_next: str) -> None:
    report = freeze.ProjectorOnly().apply(load_copy(tiny_llava_next))

    assert "model.image_newline" in report.trainable_names


def test_a_frozen_tower_builds_no_graph(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
    freeze.ProjectorAndLLM().apply(backbone)
    needs_grad: list[bool] = []
    backbone.vision_tower.register_forward_hook(
        lambda _module, _inputs, output: needs_grad.extend(
            state.requires_grad for state in output.hidden_states if state is not None
        )
    )

    answer_loss(backbone, batch_of(tiny_llava))

    assert needs_grad and not any(needs_grad)


@pytest.mark.parametrize("target", ["llm", "vision", "both"])
def test_lora_stays_in_its_part(checkpoint: str, target: str) -> None:
    backbone = load_copy(checkpoint)

    report = freeze.Lora(rank=2, target=target).apply(backbone)  # type: ignore[arg-type]

    adapted = {"vision": "vision_tower", "llm": "language_model"}
    expected = set(adapted.values()) if target == "both" else {adapted[target]}
    assert {
        word for name in report.trainable_names for word in adapted.values() if word in name
    } == expected
    assert not any("projector" in name or "lm_head" in name for name in report.trainable_names)


def test_lora_takes_only_the_named_layers_of_its_part(tiny_llava: str) -> None:
    report = freeze.Lora(rank=2, modules=["q_proj", "v_proj"]).apply(load_copy(tiny_llava))

    assert len(report.trainable_names) == 2 * 2 * 2  # layers x modules x (A, B)
    assert all("language_model" in name for name in report.trainable_names)


def test_the_last_layers_are_all_of_the_last_layers_and_nothing_else(checkpoint: str) -> None:
    backbone = load_copy(checkpoint)

    report = freeze.LastLayers(1).apply(backbone)

    last = len(decoder_layers(backbone)) - 1
    prefix = f"model.language_model.layers.{last}."
    names = [name for name, _ in backbone.parameters() if name.startswith(prefix)]
    assert sorted(report.trainable_names) == sorted(names)


def test_all_layers_are_the_last_layers_but_not_more(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
    count = len(decoder_layers(backbone))

    report = freeze.LastLayers(count).apply(backbone)

    assert all("language_model.layers." in name for name in report.trainable_names)
    with pytest.raises(ConfigError, match=rf"the LLM has {count} layers.*from 1 to {count}"):
        freeze.LastLayers(count + 1).apply(backbone)
    with pytest.raises(ConfigError, match="layers must be at least 1"):
        freeze.LastLayers(0)


@pytest.mark.parametrize("first", [True, False])
def test_policies_together_train_what_each_trains(tiny_llava: str, first: bool) -> None:
    policies = [freeze.ProjectorAndVision(), freeze.Lora(rank=2)]

    combined = freeze.Combined(policies if first else policies[::-1])

    report = combined.apply(load_copy(tiny_llava))
    alone = [each.apply(load_copy(tiny_llava)) for each in policies]
    names = {name for each in alone for name in each.trainable_names}
    assert set(report.trainable_names) == names
    assert all("language_model" in name for name in names if ".lora_" in name)


def test_policies_together_know_the_names_that_adapters_change(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)

    report = freeze.Combined([freeze.LastLayers(1), freeze.Lora(rank=2)]).apply(backbone)

    assert report.trainable[Part.LLM] == sum(
        each.numel()
        for name, each in decoder_layers(backbone)[-1].named_parameters()
        if ".lora_" not in name
    )


@pytest.mark.parametrize(
    ("policies", "message"),
    [
        ([], "at least one policy"),
        ([freeze.Lora(), freeze.Lora(rank=2)], "of one Lora"),
        ([freeze.Combined([freeze.Lora()]), freeze.Lora(target="vision")], "of one Lora"),
    ],
)
def test_policies_that_cannot_be_together_are_refused(
    policies: list[freeze.FreezePolicy], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze.Combined(policies)


def test_untrained_adapters_change_nothing(tiny_llava: str) -> None:
    plain, adapted = load_copy(tiny_llava), Backbone.from_pretrained(tiny_llava)
    freeze.Lora(rank=2, target="both").apply(adapted)

    batch = batch_of(tiny_llava)

    assert torch.equal(answer_loss(plain, batch).total, answer_loss(adapted, batch).total)


def test_a_policy_applied_twice_is_a_policy_applied_once(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)

    assert freeze.Lora(rank=2).apply(backbone) == freeze.Lora(rank=2).apply(backbone)


def test_a_pattern_that_matches_nothing_is_an_error(tiny_llava: str) -> None:
    with pytest.raises(ConfigError, match="'mm_projector' matches nothing"):
        freeze.ByPattern(["mm_projector"]).apply(load_copy(tiny_llava))


def test_a_pattern_that_matches_only_what_gets_no_gradient_is_an_error(tiny_llava: str) -> None:
    with pytest.raises(ConfigError, match="only parameters of the tower that get no gradient"):
        freeze.ByPattern(["post_layernorm"]).apply(load_copy(tiny_llava))


def test_a_pattern_that_is_no_expression_is_an_error() -> None:
    with pytest.raises(ConfigError, match="not a regular expression"):
        freeze.ByPattern(["("])


def test_lora_refuses_layers_that_are_not_there(tiny_llava: str) -> None:
    with pytest.raises(ConfigError, match=r"\['wq'\] are not linear layers"):
        freeze.Lora(modules=["wq"]).apply(load_copy(tiny_llava))


@pytest.mark.parametrize(
    ("options", "message"), [({"rank": 0}, "rank"), ({"dropout": 1.0}, "dropout")]
)
def test_lora_refuses_impossible_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        freeze.Lora(**options)  # type: ignore[arg-type]


def test_the_counts_of_llava_1_5_7b_are_the_published_ones() -> None:
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={"model_type": "llama", "vocab_size": 32064},
    )
    with torch.device("meta"):
        backbone = Backbone(LlavaForConditionalGeneration(config))

    report = freeze.ProjectorAndLLM().apply(backbone)

    assert report.trainable[Part.PROJECTOR] == 20_979_712
    assert report.trainable[Part.LLM] == 6_738_939_904
    assert report.parameters[Part.VISION] == 303_507_456
