"""What a vector does to a forward, and that it does nothing else."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis import Block, Skip, SteeringVector, knockout, skipping, steering
from lightning_mllm.analysis.steering.vector import draw_vectors, vector_width
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import CheckpointError, ConfigError
from lightning_mllm.models.backbone import Backbone, fingerprint_backbone
from lightning_mllm.models.layers import layers_and_norm
from lightning_mllm.types import Segment
from tests.support.decoders import LAYERS, count_hooks, everywhere, generate, make_batch
from tests.support.decoders import make_backbone as make
from tests.support.skipping_cases import logits, states

SIDES = pytest.mark.parametrize("side", ["left", "right"])


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make(tiny_llava)


@pytest.fixture
def batch(tiny_llava: str) -> MultimodalBatch:
    return make_batch(tiny_llava)


def draw(backbone: Backbone, seed: int = 0) -> Tensor:
    own = torch.randn(
        vector_width(backbone), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return 3 * own


def vector_of(backbone: Backbone) -> SteeringVector:
    """A vector of the model, with an entry of its own in front of each layer."""
    entries = torch.stack([draw(backbone, seed) for seed in range(LAYERS + 1)])
    weights = fingerprint_backbone(backbone.model)
    return SteeringVector("a->b", "last", entries.float(), weights, {"a": 3, "b": 4})


@SIDES
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scale_0_is_the_model_itself_to_the_bit(tiny_llava: str, attention: str, side: Any) -> None:
    backbone, batch = make(tiny_llava, attention, torch.float32), make_batch(tiny_llava, side)

    with steering(backbone, batch, draw(backbone), "image+text", range(LAYERS + 1), scale=0.0):
        found = logits(backbone, batch)

    assert torch.equal(found, logits(backbone, batch))


@SIDES
@pytest.mark.parametrize("layers", [(0,), (1, 3), (LAYERS,), tuple(range(LAYERS + 1))])
def test_a_vector_at_all_positions_is_a_plain_hook(
    backbone: Backbone, tiny_llava: str, layers: tuple[int, ...], side: Any
) -> None:
    batch, vector = make_batch(tiny_llava, side), vector_of(backbone)
    modules = layers_and_norm(backbone)

    handles = [
        modules[layer].register_forward_pre_hook(
            lambda _, inputs, layer=layer: (inputs[0] - 1.5 * vector.states[layer], *inputs[1:])
        )
        for layer in layers
    ]
    expected = logits(backbone, batch)
    for handle in handles:
        handle.remove()
    with steering(backbone, batch, vector, "text+image", layers, scale=-1.5):
        found = logits(backbone, batch)

    real = batch.attention_mask.bool()
    assert torch.equal(found[real], expected[real])
    assert not torch.isclose(found[real], logits(backbone, batch)[real]).all()


def test_the_vector_is_added_there_and_nowhere_else(
    backbone: Backbone, batch: MultimodalBatch
) -> None:
    vector, clean = draw(backbone), states(backbone, batch)
    chosen = batch.spans[Segment.IMAGE_OBJECT]
    entered: list[Tensor] = []
    layer = layers_and_norm(backbone)[2]

    with steering(backbone, batch, vector, "image object", [2], scale=0.5):
        handle = layer.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        found = states(backbone, batch)
        handle.remove()

    assert torch.equal(entered[0][chosen], clean[1][chosen] + 0.5 * vector)
    assert torch.equal(entered[0][~chosen], clean[1][~chosen])
    before = batch.attention_mask.bool() & (chosen.cumsum(1) == 0)
    assert before.any()
    assert all(torch.equal(a[before], b[before]) for a, b in zip(clean, found, strict=True))
    assert not torch.isclose(found[-1], clean[-1])[batch.spans[Segment.LAST]].all()


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("at", ["image object", "question+last"])
def test_generation_with_a_cache_is_generation_without(
    backbone: Backbone, batch: MultimodalBatch, at: str, beams: int
) -> None:
    prompts, vector = batch.prompts(), vector_of(backbone)
    options = {"max_new_tokens": 5, "num_beams": beams, "eos_token_id": None}
    clean = generate(backbone, prompts, **options)

    with steering(backbone, prompts, vector, at, [0, 2]):
        cached, anew = (
            generate(backbone, prompts, use_cache=use, **options) for use in (True, False)
        )

    assert torch.equal(cached, anew)
    assert not torch.equal(cached, clean)


def test_blocks_of_steering_add_up_in_any_order(backbone: Backbone, batch: MultimodalBatch) -> None:
    one, two = draw(backbone, 1), draw(backbone, 2)

    with (
        steering(backbone, batch, one, "image", [1]),
        steering(backbone, batch, two, "image", [1], scale=2),
    ):
        nested = logits(backbone, batch)
    with steering(backbone, batch, one + 2 * two, "image", [1]):
        at_once = logits(backbone, batch)

    torch.testing.assert_close(nested, at_once, rtol=0, atol=1e-10)


@pytest.mark.parametrize("other", ["knockout", "skipping"])
def test_it_nests_with_knockout_and_skipping(
    backbone: Backbone, batch: MultimodalBatch, other: str
) -> None:
    def edit() -> Any:
        if other == "knockout":
            return knockout(backbone, batch, [Block.parse("image->question")], everywhere())
        return skipping(backbone, batch, Skip(share=0.5, start=1, stop=3))

    def steer(scale: float = 1.0) -> Any:
        return steering(backbone, batch, draw(backbone), "image+last", [1, 2], scale=scale)

    with edit():
        alone = logits(backbone, batch)
    with edit(), steer():
        inside = logits(backbone, batch)
    with steer(), edit():
        outside = logits(backbone, batch)
    with steer(0.0), edit():
        nothing = logits(backbone, batch)

    assert torch.equal(inside, outside)
    assert torch.equal(nothing, alone)
    real = batch.attention_mask.bool()
    assert not torch.isclose(inside, alone)[real].all()
    with steer():
        assert not torch.isclose(logits(backbone, batch), inside)[real].all()


def test_no_hook_is_left_after_an_exception(backbone: Backbone, batch: MultimodalBatch) -> None:
    clean, before = logits(backbone, batch), count_hooks(backbone)

    with (
        pytest.raises(RuntimeError, match="stop"),
        steering(backbone, batch, draw(backbone), "image", range(LAYERS + 1)),
    ):
        assert count_hooks(backbone) == before + LAYERS + 2  # one on the decoder
        raise RuntimeError("stop")

    assert count_hooks(backbone) == before
    assert torch.equal(logits(backbone, batch), clean)


def test_gradients_pass_through(backbone: Backbone, batch: MultimodalBatch) -> None:
    vector = draw(backbone).requires_grad_()

    with steering(backbone, batch, vector, "image", [1]):
        backbone.model(**batch.model_inputs()).logits.sum().backward()

    assert vector.grad is not None
    assert vector.grad.abs().sum() > 0


def test_a_vector_that_is_added_nowhere_is_told(
    backbone: Backbone, batch: MultimodalBatch, caplog: pytest.LogCaptureFixture
) -> None:
    none = torch.zeros_like(batch.spans[Segment.IMAGE])
    spans = TokenSpans({**batch.spans.masks, Segment.IMAGE_OBJECT: none})

    with (
        caplog.at_level(logging.WARNING),
        steering(backbone, spans, draw(backbone), "image object", [0]),
    ):
        pass

    assert "No position of the 2 samples is in 'image object': nothing is steered." in caplog.text


def test_what_can_not_be_steered_is_refused(backbone: Backbone, batch: MultimodalBatch) -> None:
    own, vector = draw(backbone), vector_of(backbone)
    other = SteeringVector("a->b", "last", vector.states, "other")
    shallow = SteeringVector("a->b", "last", vector.states[1:], vector.weights)
    cases: list[tuple[Any, str, list[int], str]] = [
        (own, "image", [], "can't be added in front of layers"),
        (own, "image", [LAYERS + 1], f"there are 0 to {LAYERS - 1}, and {LAYERS} for the final"),
        (own, "picture", [0], "is not a segment"),
        (own[1:], "image", [0], "Give a tensor of shape"),
        (other, "image", [0], "read from a model with the weights other"),
        (shallow, "image", [0], "is of shape"),
    ]
    for given, at, layers, message in cases:
        with (
            pytest.raises(ConfigError, match=message),
            steering(backbone, batch, given, at, layers),
        ):
            pass


def test_another_batch_is_refused(backbone: Backbone, batch: MultimodalBatch) -> None:
    with (
        pytest.raises(ConfigError, match="Give it the batch that the model gets"),
        steering(backbone, batch, draw(backbone), "image", [0]),
    ):
        logits(backbone, batch.prompts())


def test_a_vector_is_written_and_read(backbone: Backbone, tmp_path: Any) -> None:
    vector = vector_of(backbone)

    vector.save(tmp_path / "v.safetensors")
    again = SteeringVector.load(tmp_path / "v.safetensors")

    assert torch.equal(again.states, vector.states)
    assert (again.name, again.read_at, again.weights) == ("a->b", "last", vector.weights)
    assert again.samples == {"a": 3, "b": 4}
    assert again.digest == vector.digest
    (tmp_path / "broken.safetensors").write_bytes(b"half")
    for name in ("broken", "missing"):
        with pytest.raises(CheckpointError, match="can't be read as a steering vector"):
            SteeringVector.load(tmp_path / f"{name}.safetensors")


def test_random_vectors_have_the_norms_and_differ(backbone: Backbone) -> None:
    vector = vector_of(backbone)

    drawn = draw_vectors(vector.states, 3, seed=0)

    cosines = torch.nn.functional.cosine_similarity(drawn[:, :1], drawn, dim=-1)
    torch.testing.assert_close(cosines, torch.ones_like(cosines))  # one direction in all layers
    norms = vector.states.norm(dim=-1)
    torch.testing.assert_close(drawn.norm(dim=-1), norms.expand(3, -1))
    assert torch.equal(drawn, draw_vectors(vector.states, 3, seed=0))
    assert not torch.isclose(drawn[0], drawn[1]).any()
    assert not torch.isclose(drawn, draw_vectors(vector.states, 3, seed=1)).any()
