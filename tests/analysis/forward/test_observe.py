"""States as they stream by are those that a forward by hand has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mllm.analysis.forward.observe import ObservedState, observe_states, observe_stream
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from tests.support.alignment_by_hand import residuals
from tests.support.decoders import LAYERS, count_hooks, make_backbone, make_batch

Seen = dict[tuple[ObservedState, int], Tensor]


def stream(
    backbone: Backbone, batch: MultimodalBatch, *states: ObservedState, **options: Any
) -> Seen:
    seen: Seen = {}
    observe_stream(
        backbone,
        batch,
        states,
        lambda s, k, values: seen.__setitem__((s, k), values.clone()),
        **options,
    )
    return seen


@pytest.mark.parametrize("attention", ["sdpa", "exact"])
def test_block_outputs_are_un_normed_from_the_embedding_to_the_last(
    tiny_llava: str, attention: str
) -> None:
    backbone, batch = make_backbone(tiny_llava, attention), make_batch(tiny_llava)

    seen = stream(backbone, batch, ObservedState.RESIDUAL)

    expected = residuals(backbone, batch)
    assert list(seen) == [(ObservedState.RESIDUAL, layer) for layer in range(LAYERS + 1)]
    real = batch.attention_mask.bool()
    for layer in range(LAYERS + 1):
        assert torch.equal(seen[ObservedState.RESIDUAL, layer][real], expected[layer][real])
    norm: nn.Module = backbone.decoder.norm  # type: ignore[assignment]
    with torch.no_grad():
        logits = backbone.model(**batch.model_inputs()).logits
        assert torch.equal(
            backbone.lm_head(norm(seen[ObservedState.RESIDUAL, LAYERS]))[real], logits[real]
        )


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2", "granite"])
def test_states_inside_a_block_make_up_the_next_one(tiny_llava: str, decoder: Any) -> None:
    """Granite scales what it adds: of that, the scaled is shown."""
    scales: dict[str, Any] = {"residual_multiplier": 0.5} if decoder == "granite" else {}
    backbone, batch = make_backbone(tiny_llava, decoder=decoder, **scales), make_batch(tiny_llava)

    seen = stream(backbone, batch, *ObservedState)

    layers: Any = backbone.decoder.layers
    assert len(seen) == LAYERS + 1 + 5 * LAYERS
    for number, layer in enumerate(layers, 1):
        before, after = (
            seen[ObservedState.RESIDUAL, number - 1],
            seen[ObservedState.RESIDUAL, number],
        )
        middle = before + seen[ObservedState.SA, number]
        torch.testing.assert_close(
            middle + seen[ObservedState.FC2, number], after, rtol=1e-12, atol=1e-12
        )
        with torch.no_grad():
            torch.testing.assert_close(
                seen[ObservedState.LN1, number], layer.input_layernorm(before)
            )
            torch.testing.assert_close(
                seen[ObservedState.LN2, number], layer.post_attention_layernorm(middle)
            )
            added = layer.mlp.down_proj(seen[ObservedState.FC1, number]) * scales.get(
                "residual_multiplier", 1.0
            )
            torch.testing.assert_close(added, seen[ObservedState.FC2, number])


def test_what_enters_can_be_exchanged_and_is_what_is_seen(tiny_llava: str) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava)

    seen = stream(backbone, batch, ObservedState.RESIDUAL, enter=torch.zeros_like)

    assert not seen[ObservedState.RESIDUAL, 0].any()
    assert seen[ObservedState.RESIDUAL, 0].shape == residuals(backbone, batch)[0].shape


def test_no_hook_is_left_also_after_an_exception(tiny_llava: str) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava)
    stream(backbone, batch, ObservedState.RESIDUAL)
    before = count_hooks(backbone)  # transformers has some of its own

    def fail(*_: Any) -> None:
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        observe_stream(backbone, batch, tuple(ObservedState), fail)

    assert count_hooks(backbone) == before


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_sample_whose_states_are_not_finite_is_named(tiny_llava: str, value: float) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava)
    layers: Any = backbone.decoder.layers
    place = int(batch.attention_mask[1].nonzero()[-1])

    def overflow(_: Any, __: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed[1, place] = value
        changed[~batch.attention_mask.bool()] = torch.nan  # what stands in padding does not matter
        return changed

    with (
        layers[-1].register_forward_hook(overflow),
        pytest.raises(
            DataError, match=r"states of sample 's1' are not finite\. Load the model in bfloat16"
        ),
    ):
        stream(backbone, batch, ObservedState.RESIDUAL)


def test_statistics_are_out_of_autocast(tiny_llava: str) -> None:
    backbone, batch = make_backbone(tiny_llava, dtype=torch.float32), make_batch(tiny_llava)
    products: list[torch.dtype] = []

    with torch.autocast("cpu", dtype=torch.bfloat16):
        observe_stream(
            backbone,
            batch,
            (ObservedState.RESIDUAL,),
            lambda _, __, x: products.append((x[0] @ x[0].T).dtype),
        )

    assert set(products) == {torch.float32}


def test_blocks_that_are_built_otherwise_are_refused(tiny_llava: str) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava)
    layers: Any = backbone.decoder.layers
    layers[1].pre_feedforward_layernorm = nn.Identity()

    with pytest.raises(
        ConfigError,
        match=r"a LlamaDecoderLayer has .*pre_feedforward_layernorm.*residual states only",
    ):
        stream(backbone, batch, ObservedState.FC1)

    assert len(stream(backbone, batch, ObservedState.RESIDUAL)) == LAYERS + 1


@pytest.mark.parametrize("names", [("residual", "residual"), ("FFN",)])
def test_unknown_states_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="each can be one of residual, LN1, SA, LN2, FC1, FC2"):
        observe_states(names)
