"""Laws of the model that hold for every family: its parts, its vision path and its training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.evaluation.decoding import decode_answers
from lightning_mllm.evaluation.prompt_pass import PromptPass
from lightning_mllm.models import freeze
from lightning_mllm.models.adapted import AdaptedModel
from lightning_mllm.models.backbone import Backbone, Part
from lightning_mllm.models.hooks import hook_before_call
from lightning_mllm.models.loss import answer_loss
from lightning_mllm.models.optimisation.schedule import LearningRates, scheduled_parameter_groups
from lightning_mllm.models.tiny import build_tiny_checkpoint
from lightning_mllm.models.vision import ImageStates
from lightning_mllm.types import Segment
from tests.support.tiny_families import (
    TINY_FAMILIES,
    open_backbone,
    unequal_pictures,
    with_and_without_pictures,
)

LORA = freeze.Lora(rank=2, target="both", projector=True)
POLICIES: list[tuple[freeze.FreezePolicy, torch.dtype, set[Part]]] = [
    (freeze.ProjectorOnly(), torch.float32, {Part.PROJECTOR}),
    (freeze.ProjectorAndLLM(), torch.bfloat16, {Part.PROJECTOR, Part.LLM}),
    (freeze.ProjectorAndVision(), torch.bfloat16, {Part.PROJECTOR, Part.VISION}),
    (LORA, torch.bfloat16, {Part.LLM_LORA, Part.VISION_LORA, Part.PROJECTOR}),
]


@pytest.fixture(scope="module", params=TINY_FAMILIES)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("families") / request.param
    return str(build_tiny_checkpoint(folder, request.param))


@pytest.fixture(scope="module")
def batch(checkpoint: str) -> MultimodalBatch:
    return unequal_pictures(checkpoint)


def enters_decoder(backbone: Backbone, batch: MultimodalBatch) -> Tensor:
    """What enters the LLM at all image positions if the model gets pixels, (tokens, width)."""
    entering: list[Tensor] = []
    with hook_before_call(backbone.decoder, lambda given: entering.append(given["inputs_embeds"])):
        backbone.model(**batch.model_inputs())
    return entering[0][batch.spans[Segment.IMAGE]]


def assert_equal_states(found: list[ImageStates], expected: list[ImageStates]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.encoded.features, other.encoded.features)
        assert torch.equal(one.projected_from, other.projected_from)
        assert torch.equal(one.tower, other.tower)
        for deep, of_other in zip(one.encoded.deep, other.encoded.deep, strict=True):
            assert torch.equal(deep, of_other)


@torch.no_grad()
def test_what_is_encoded_enters_the_llm_and_a_replay_repeats_it(
    checkpoint: str, batch: MultimodalBatch
) -> None:
    backbone = open_backbone(checkpoint)
    path = backbone.vision_path

    seen = path.observe(batch.images)
    again = path.replay(batch.images, [states.tower.clone() for states in seen])
    alone = [path.observe([image])[0] for image in batch.images]

    encoded = torch.cat([each.tokens for each in path.encode(batch.images)])
    assert torch.equal(encoded, enters_decoder(backbone, batch))
    assert torch.equal(encoded, torch.cat([states.encoded.tokens for states in seen]))
    assert_equal_states(again, seen)
    for together, by_itself in zip(seen, alone, strict=True):
        torch.testing.assert_close(
            together.encoded.tokens, by_itself.encoded.tokens, rtol=0, atol=1e-5
        )
        assert together.tower.shape == by_itself.tower.shape
        assert_equal_states(path.replay(batch.images[:1], [alone[0].tower]), alone[:1])


@pytest.mark.slow
@torch.no_grad()
def test_a_replay_that_fails_leaves_no_hooks(checkpoint: str, batch: MultimodalBatch) -> None:
    path = open_backbone(checkpoint).vision_path
    expected = path.observe(batch.images)
    wrong = [states.tower[:, :, :-1] for states in expected]

    with pytest.raises(RuntimeError):
        path.replay(batch.images, wrong)

    assert_equal_states(path.observe(batch.images), expected)
    for module in path.model.modules():
        assert "forward" not in module.__dict__
    for module in (path.projector, *path.tower_layers):
        assert not module._forward_pre_hooks


@pytest.mark.slow
def test_idle_parameters_are_those_that_get_no_gradient(
    checkpoint: str, batch: MultimodalBatch
) -> None:
    backbone = open_backbone(checkpoint)
    for _, parameter in backbone.parameters():
        parameter.requires_grad_(True)
    idle = backbone.idle_parameters()

    answer_loss(backbone, batch).total.backward()

    assert idle == {name for name, each in backbone.parameters() if each.grad is None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "dtype", "parts"), POLICIES, ids=[type(policy).__name__ for policy, *_ in POLICIES]
)
def test_a_step_moves_all_that_is_trained_and_nothing_else(
    checkpoint: str,
    batch: MultimodalBatch,
    policy: freeze.FreezePolicy,
    dtype: torch.dtype,
    parts: set[Part],
) -> None:
    backbone = open_backbone(checkpoint, dtype=dtype)
    adapted = AdaptedModel(backbone, policy, dtype)
    adapted.enable_gradient_checkpointing()
    adapted.set_train_modes()
    before = {name: each.detach().clone() for name, each in backbone.parameters()}
    groups = scheduled_parameter_groups(backbone, LearningRates(1, 1, 1, 1))
    optimizer = torch.optim.SGD(groups, lr=1.0)

    for _ in range(2):  # LoRA's first matrix moves only after its second
        optimizer.zero_grad()
        (adapted.loss(batch.take([0, 2])) / 10).backward()
        optimizer.step()

    report = adapted.report
    moved = {name for name, each in backbone.parameters() if not torch.equal(each, before[name])}
    trained = set(report.trainable_names)
    assert moved | {name for name in trained if "k_proj.bias" in name} == trained
    assert report.trainable_parts == parts
    assert report.rows()[-1][1] == sum(each.numel() for each in before.values())
    assert sum(len(group["params"]) for group in groups) == len(report.trainable_names)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["llm", "vision"])
def test_new_adapters_keep_to_their_part_and_change_nothing(
    checkpoint: str, batch: MultimodalBatch, target: str
) -> None:
    backbone = open_backbone(checkpoint)
    expected = answer_loss(backbone, batch).total
    idle = backbone.idle_parameters()

    report = freeze.Lora(rank=2, target=target).apply(backbone)  # type: ignore[arg-type]

    assert report.trainable_parts == {Part.LLM_LORA if target == "llm" else Part.VISION_LORA}
    assert torch.equal(answer_loss(backbone, batch).total, expected)
    live = {name.replace(".base_layer", "") for name in backbone.idle_parameters()}
    assert live == idle


@pytest.mark.slow
def test_a_batch_with_and_without_pictures_is_the_sum_of_its_pieces(checkpoint: str) -> None:
    backbone, batch = open_backbone(checkpoint), with_and_without_pictures(checkpoint)
    adapted = AdaptedModel(backbone, freeze.ProjectorAndVision(), torch.float32)

    losses = [adapted.loss(batch.take(rows)) for rows in ([0, 1, 2], [0], [1, 2])]
    gradients = []
    for loss in losses:
        backbone.model.zero_grad()
        loss.backward()
        gradients.append([p.grad for _, p in backbone.parameters() if p.requires_grad])

    assert batch.image_counts == (1, 0, 0)
    torch.testing.assert_close(losses[0], losses[1] + losses[2])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)
    assert all(each is not None and not each.any() for each in gradients[2])


@pytest.mark.slow
@torch.no_grad()
def test_low_precision_runs_without_autocast(checkpoint: str, batch: MultimodalBatch) -> None:
    backbone = open_backbone(checkpoint, dtype=torch.bfloat16)

    encoded = backbone.encode_images(batch.images)

    assert answer_loss(backbone, batch).total.isfinite()
    assert decode_answers(PromptPass(backbone.model, batch), 2).shape == (len(batch), 2)
    assert {each.tokens.dtype for each in encoded} == {torch.bfloat16}
