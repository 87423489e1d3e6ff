"""The laws of patching, by hooks and by both engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_mllm.analysis import Block, Window, knockout
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.analysis.patching.engine.base import DIRECTIONS, PromptPair
from lightning_mllm.analysis.patching.engine.reference import ReferencePatching
from lightning_mllm.analysis.patching.engine.rows import PatchedRows, RecordedRun
from lightning_mllm.analysis.patching.engine.suffix import SuffixPatching
from lightning_mllm.analysis.patching.patch import Patch, PatchKind
from lightning_mllm.analysis.patching.patching import patching
from lightning_mllm.analysis.patching.source import PatchSource
from lightning_mllm.analysis.skipping.skip import Skip
from lightning_mllm.analysis.skipping.skipping import skipping
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.types import Segment
from tests.analysis.patching.pairs import (
    OUTPUTS,
    RESIDUAL,
    cases,
    ids_of,
    picture_pair,
    word_pair,
)
from tests.support.decoders import LAYERS, count_hooks, generate, last_logits, make_backbone

KINDS = tuple(PatchKind)
PATCHES = ("image object @ residual", *OUTPUTS)
Pair = Callable[[str], tuple[MultimodalBatch, MultimodalBatch]]


@pytest.fixture
def backbone(tiny_llava: str) -> Backbone:
    return make_backbone(tiny_llava, "exact")


def source_of(backbone: Backbone, batch: MultimodalBatch) -> PatchSource:
    return PatchSource.of(backbone, batch, KINDS)


@pytest.mark.parametrize("text", PATCHES)
def test_a_run_patched_with_itself_changes_no_bit(tiny_llava: str, text: str) -> None:
    backbone = make_backbone(tiny_llava, "sdpa", torch.float32)
    clean, _ = picture_pair(tiny_llava)
    source, before = source_of(backbone, clean), last_logits(backbone, clean)

    with patching(backbone, clean.prompts(), source, Patch.parse(text), Window(1, 0, LAYERS)):
        patched = last_logits(backbone, clean)

    assert torch.equal(patched, before)


@pytest.mark.parametrize("pair", [picture_pair, word_pair])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_all_positions_at_a_layer_give_the_sources_logits(
    backbone: Backbone, tiny_llava: str, pair: Pair, layer: int
) -> None:
    clean, corrupted = pair(tiny_llava)
    whole = Patch.parse("text+image @ residual")

    with patching(
        backbone,
        corrupted.prompts(),
        source_of(backbone, clean),
        whole,
        Window(layer, layer, layer + 1),
    ):
        patched = last_logits(backbone, corrupted)

    torch.testing.assert_close(patched, last_logits(backbone, clean), rtol=0, atol=1e-10)
    assert (last_logits(backbone, corrupted) - patched).abs().max() > 1e-3


@pytest.mark.parametrize("pair", [picture_pair, word_pair])
@pytest.mark.parametrize("width", [1, 2])
def test_both_engines_agree(backbone: Backbone, tiny_llava: str, pair: Pair, width: int) -> None:
    clean, corrupted = pair(tiny_llava)
    swept = cases(*(f"{at} @ residual" for at in (*RESIDUAL, "swapped")), *OUTPUTS, width=width)

    exact, fast = (
        engine.run(backbone, clean, corrupted, swept, ids_of(clean))
        for engine in (ReferencePatching(), SuffixPatching(strict=True))
    )

    assert fast.engine == "suffix"
    for name in ("base", "logprobs"):
        torch.testing.assert_close(getattr(fast, name), getattr(exact, name), rtol=0, atol=1e-10)
    for name in ("base_top", "top", "size"):
        assert torch.equal(getattr(fast, name), getattr(exact, name))


@pytest.mark.parametrize("decoder", ["mistral", "qwen2"])
def test_both_engines_agree_in_other_decoders(tiny_llava: str, decoder: Any) -> None:
    backbone = make_backbone(tiny_llava, "exact", decoder=decoder)
    clean, corrupted = picture_pair(tiny_llava)
    swept = cases("image object @ residual", "image @ residual", "last @ head[1.0,2.3]")

    exact, fast = (
        engine.run(backbone, clean, corrupted, swept, ids_of(clean))
        for engine in (ReferencePatching(), SuffixPatching(strict=True))
    )

    torch.testing.assert_close(fast.logprobs, exact.logprobs, rtol=0, atol=1e-10)


def test_the_image_is_patched_by_the_sources_keys_and_no_row_of_it_is_computed(
    backbone: Backbone, tiny_llava: str
) -> None:
    (clean, corrupted), swept = picture_pair(tiny_llava), cases("image @ residual")
    engine = SuffixPatching(strict=True)
    fast = engine.run(backbone, clean, corrupted, swept, ids_of(clean))

    pair = pair_of(backbone, clean, corrupted)
    runs = [RecordedRun.of(backbone, each, swept) for each in (pair.corrupted, pair.clean)]
    rows = PatchedRows(backbone, runs[0].clean, runs[1], pair.positions(swept), swept)
    ((at, group),) = rows.groups().items()

    image = pair.clean.batch.spans[Segment.IMAGE]
    assert at.from_source
    assert at.start == min(int(own.nonzero().max()) for own in image) + 1
    assert group == list(range(LAYERS))
    patched = by_hooks(backbone, corrupted, source_of(backbone, clean), swept[2].patch, 2)
    expected = patched.log_softmax(-1).gather(1, ids_of(clean))
    torch.testing.assert_close(fast.logprobs[0, :, 2], expected, rtol=0, atol=1e-10)


def test_directions_are_what_hooks_in_either_run_give(backbone: Backbone, tiny_llava: str) -> None:
    clean, corrupted = picture_pair(tiny_llava)
    swept = cases("image object @ residual")[1:2]
    read = ReferencePatching().run(backbone, clean, corrupted, swept, ids_of(clean))

    runs = {"denoising": (corrupted, clean), "noising": (clean, corrupted)}
    for number, direction in enumerate(DIRECTIONS):
        base, other = runs[direction]
        own = last_logits(backbone, base).log_softmax(-1).gather(1, ids_of(clean))
        patched = by_hooks(backbone, base, source_of(backbone, other), swept[0].patch, 1)
        expected = patched.log_softmax(-1).gather(1, ids_of(clean))
        torch.testing.assert_close(read.base[number], own, rtol=0, atol=1e-10)
        torch.testing.assert_close(read.logprobs[number, :, 0], expected, rtol=0, atol=1e-10)


def test_a_patch_nests_with_a_knockout_and_with_skipped_computations(
    backbone: Backbone, tiny_llava: str
) -> None:
    clean, corrupted = picture_pair(tiny_llava)
    source, prompts = source_of(backbone, clean), corrupted.prompts()
    patch, window = Patch.parse("image object @ residual"), Window(1, 1, 2)
    alone = by_hooks(backbone, corrupted, source, patch, 1)

    def edits(first: Any, second: Any) -> torch.Tensor:
        with first(), second():
            return last_logits(backbone, corrupted)

    def patch_it() -> Any:
        return patching(backbone, prompts, source, patch, window)

    for other in (
        lambda: knockout(backbone, prompts, [Block.parse("image->last")], window),
        lambda: skipping(backbone, prompts, Skip(computation="ffn", share=0.5)),
    ):
        outside, inside = edits(other, patch_it), edits(patch_it, other)
        assert torch.equal(outside, inside)
        assert not torch.equal(outside, alone)


def test_the_inner_of_two_patches_at_one_place_counts(backbone: Backbone, tiny_llava: str) -> None:
    clean, corrupted = picture_pair(tiny_llava)
    theirs, own = source_of(backbone, clean), source_of(backbone, corrupted)
    patch, window = Patch.parse("image object @ residual"), Window(1, 1, 2)

    with (
        patching(backbone, corrupted.prompts(), theirs, patch, window),
        patching(backbone, corrupted.prompts(), own, patch, window),
    ):
        patched = last_logits(backbone, corrupted)

    assert torch.equal(patched, last_logits(backbone, corrupted))


def test_no_hook_is_left_after_an_exception(backbone: Backbone, tiny_llava: str) -> None:
    clean, corrupted = picture_pair(tiny_llava)
    source, hooks = source_of(backbone, clean), count_hooks(backbone)

    for text in PATCHES:
        with (
            pytest.raises(RuntimeError, match="stop"),
            patching(
                backbone, corrupted.prompts(), source, Patch.parse(text), Window(1, 0, LAYERS)
            ),
        ):
            assert count_hooks(backbone) > hooks
            raise RuntimeError("stop")

    assert count_hooks(backbone) == hooks


def test_generation_goes_on_from_what_is_patched(tiny_llava: str) -> None:
    backbone = make_backbone(tiny_llava, "sdpa", torch.float32)
    clean, corrupted = (each.take([1]).prompts() for each in picture_pair(tiny_llava))
    whole = Patch.parse("text+image @ residual")

    with patching(backbone, corrupted, source_of(backbone, clean), whole, Window(0, 0, 1)):
        found = generate(backbone, corrupted, max_new_tokens=4)

    assert torch.equal(found, generate(backbone, clean, max_new_tokens=4))


def test_in_half_precision_rounding_is_no_effect(tiny_llava: str) -> None:
    backbone = make_backbone(tiny_llava, "sdpa", torch.bfloat16)
    clean, _ = picture_pair(tiny_llava)
    swept = cases("image object @ residual", "question @ residual", "last @ residual")

    read = SuffixPatching(strict=True).run(backbone, clean, clean, swept, ids_of(clean))

    base = read.base[:, :, None].expand_as(read.logprobs)
    torch.testing.assert_close(read.logprobs, base, rtol=0, atol=0.02)


def test_a_model_that_sees_masks_in_its_own_way_goes_by_reference(
    tiny_llava: str, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = make_backbone(tiny_llava, "blind")
    (clean, corrupted), swept = picture_pair(tiny_llava), cases("last @ residual")[:1]

    read = SuffixPatching().run(backbone, clean, corrupted, swept, ids_of(clean))

    assert read.engine == "reference"
    assert "The reference engine, which is slower, does the work instead" in caplog.text
    with pytest.raises(ConfigError, match="Use engine=auto or engine=reference"):
        SuffixPatching(strict=True).run(backbone, clean, corrupted, swept, ids_of(clean))


def test_what_can_not_be_patched_is_refused(backbone: Backbone, tiny_llava: str) -> None:
    clean, corrupted = picture_pair(tiny_llava)
    prompts, source = corrupted.prompts(), PatchSource.of(backbone, clean)

    def refuse(text: str, window: Window | None, message: str) -> None:
        with (
            pytest.raises(ConfigError, match=message),
            patching(backbone, prompts, source, Patch.parse(text), window),
        ):
            pass

    refuse("last @ residual", Window(4, 4, 5), "the decoder has the layers 0 to 3")
    refuse("last @ residual", None, "needs the layers in which it acts. Give a window")
    refuse("last @ ffn", Window(1, 1, 2), r"does not have. Record them: .*PatchKind.FFN")
    refuse("last @ head[1.4]", None, "head 1.4, which does not exist: .* the heads 0 to 3")
    refuse("last @ head[1.0,3.0]", Window(1, 1, 2), "head 3.0, which is not in the window")
    with (
        patching(backbone, prompts, source, Patch.parse("last @ residual"), Window(1, 1, 2)),
        pytest.raises(ConfigError, match=r"for 2 prompts of .* but the model is run on 3"),
    ):
        last_logits(backbone, clean.take([0, 1, 0]))
    backbone.model.train()
    with pytest.raises(ConfigError, match=r"Call model\.eval\(\) first"):
        PatchSource.of(backbone, clean)


def test_rows_that_are_skipped_inside_a_layer_can_not_be_patched(
    backbone: Backbone, tiny_llava: str
) -> None:
    clean, corrupted = picture_pair(tiny_llava)
    source, prompts = source_of(backbone, clean), corrupted.prompts()

    with (
        skipping(backbone, prompts, Skip(computation="ffn", share=0.5)),
        patching(backbone, prompts, source, Patch.parse("last @ ffn"), Window(1, 1, 2)),
        pytest.raises(ConfigError, match=r"so some are skipped\. Patch residual states"),
    ):
        last_logits(backbone, corrupted)


def test_prompts_that_do_not_correspond_are_refused_with_the_first_difference(
    backbone: Backbone, tiny_llava: str
) -> None:
    clean, corrupted = picture_pair(tiny_llava)
    swept = cases("last @ residual")[:1]

    def refuse(other: MultimodalBatch, message: str) -> None:
        with pytest.raises(DataError, match=message):
            SuffixPatching().run(backbone, clean, other, swept, ids_of(clean))

    refuse(
        corrupted.take([1, 0]), r"Samples 's0' and \"?'?s1'.* tokens, and differ from token \d+ on"
    )
    refuse(corrupted.take([0]), "2 prompts can't be patched with the states of 1")
    ids = corrupted.input_ids.clone()
    place = int(corrupted.spans[Segment.SYSTEM][0].nonzero()[-1])
    ids[0, place] += 1
    refuse(replace(corrupted, input_ids=ids), "token .* outside the question, differs. Swap words")
    system = corrupted.spans[Segment.SYSTEM].roll(1, 1)
    masks = {**corrupted.spans.masks, Segment.SYSTEM: system}
    moved = replace(corrupted, spans=TokenSpans(masks))
    refuse(moved, "is in 'system' in one of them only")


def by_hooks(
    backbone: Backbone, batch: MultimodalBatch, source: PatchSource, patch: Patch, layer: int
) -> torch.Tensor:
    with patching(backbone, batch.prompts(), source, patch, Window(layer, layer, layer + 1)):
        return last_logits(backbone, batch)


def pair_of(backbone: Backbone, clean: MultimodalBatch, corrupted: MultimodalBatch) -> PromptPair:
    return PromptPair(Prompts.of(backbone, clean), Prompts.of(backbone, corrupted))
