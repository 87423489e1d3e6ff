"""Both engines compute the same, whatever is blocked, where, in which kind of decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_mllm import testbed
from lightning_mllm.analysis import (
    Block,
    Case,
    KnockoutEngine,
    ReferenceEngine,
    SuffixEngine,
    Window,
    Windows,
    knockout,
)
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.batches import map_image
from lightning_mllm.errors import NotFiniteError
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.tiny import TinyFamily
from lightning_mllm.types import Sample, Segment, Turn
from tests.conftest import TinyBuilder
from tests.support.decoders import (
    LAYERS,
    OTHERS,
    PAPER,
    Decoder,
    Side,
    apart,
    collate,
    count_hooks,
    everywhere,
    last_logits,
    make_backbone,
    make_batch,
    question,
    shipped_backbone,
    sweep,
    windows,
)

IDS = torch.tensor([[5, 9], [7, 5]])
ENGINES = pytest.mark.parametrize(
    "engine", [ReferenceEngine(), SuffixEngine(strict=True)], ids=lambda each: each.name
)
SETUPS = pytest.mark.parametrize(
    ("family", "attention", "dtype", "tolerance"),
    [
        ("llava", "sdpa", torch.float64, 1e-10),
        ("llava", "exact", torch.float64, 1e-10),
        ("llava_next", "sdpa", torch.float64, 1e-10),
        ("llava_next", "exact", torch.float64, 1e-10),
        ("llava", "sdpa", torch.float32, 1e-5),
        ("llava_next", "eager", torch.float32, 1e-5),
    ],
)


@SETUPS
def test_engines_agree_for_every_block_and_width_on_either_side_of_padding(
    tiny_checkpoint: TinyBuilder,
    family: TinyFamily,
    attention: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")
    backbone, cases = make_backbone(checkpoint, attention, dtype), sweep(PAPER, 1, 2, 5, 9)

    reference = ReferenceEngine().run(backbone, make_batch(checkpoint), cases, IDS)

    for side in ("left", "right"):
        suffix = SuffixEngine(strict=True).run(backbone, make_batch(checkpoint, side), cases, IDS)
        assert apart(reference, suffix) < tolerance
        assert torch.equal(reference.top, suffix.top)
    effects = (reference.logprobs - reference.clean_logprobs).abs().amax(dim=(0, 2))
    assert (effects.view(len(PAPER), -1).amax(dim=1) > 1e-3).all()


@ENGINES
def test_a_model_that_gives_no_numbers_flips_no_answer(
    tiny_llava: str, engine: KnockoutEngine
) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava)
    first, second = batch.images
    broken = (first, map_image(lambda values: values * torch.nan, second))

    with pytest.raises(
        NotFiniteError, match=rf"log-probabilities are NaN .* first for {batch.sample_ids[1]!r}"
    ):
        engine.run(backbone, replace(batch, images=broken), sweep(PAPER, 1))


def test_engines_agree_with_the_library_s_own_eager_attention_in_float64(tiny_llava: str) -> None:
    """Its softmax is in float32; a padding row, NaN if it were float64, is not there."""
    backbone, batch = make_backbone(tiny_llava, "eager"), make_batch(tiny_llava, numbers=(0,))
    cases = sweep(PAPER, 1, 2, 5)

    reference = ReferenceEngine().run(backbone, batch, cases)
    suffix = SuffixEngine(strict=True).run(backbone, batch, cases)

    assert apart(reference, suffix) < 1e-5


def test_engines_agree_in_a_deep_decoder_where_every_width_makes_another_window(
    tiny_llava: str,
) -> None:
    depth = 12
    backbone, batch = make_backbone(tiny_llava, layers=depth), make_batch(tiny_llava)
    cases = sweep(PAPER, 1, 4, 5, 9, depth=depth)

    reference = ReferenceEngine().run(backbone, batch, cases, IDS)
    suffix = SuffixEngine(strict=True).run(backbone, batch, cases, IDS)

    assert {len(case.window) for case in cases} >= {1, 4, 5, 9}
    assert apart(reference, suffix) < 1e-10


@pytest.mark.parametrize("layers", [LAYERS, 24])
@pytest.mark.parametrize("memory", [None, 1], ids=["plenty", "scarce"])
def test_in_half_precision_what_a_block_can_not_change_is_not_changed(
    tiny_llava: str, layers: int, memory: int | None
) -> None:
    """The last layers attend to nothing: hiding there has no effect, and none may be reported."""
    backbone, batch = (
        make_backbone(tiny_llava, dtype=torch.bfloat16, layers=layers),
        make_batch(tiny_llava),
    )
    without = layers // 2
    for layer in decoder_layers(backbone)[without:]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)  # type: ignore[union-attr,arg-type]
    some = Windows(1, centres=range(0, layers, max(1, layers // 6))).of(layers)
    cases = [Case(block, window) for block in PAPER for window in some]
    idle = torch.tensor([case.window.start >= without for case in cases])

    for engine in (ReferenceEngine(), SuffixEngine(memory, strict=True)):
        readings = engine.run(backbone, batch, cases)
        changes = readings.logprobs - readings.clean_logprobs
        assert (changes[:, idle] == 0).all()
        assert torch.equal(readings.top[:, idle], readings.clean_top[:, idle])
        assert (changes[:, ~idle] != 0).any()


def test_in_half_precision_logits_are_finer_than_their_grid(tiny_llava: str) -> None:
    """The head is computed in float32, from states and weights in bfloat16."""
    backbone, batch = make_backbone(tiny_llava, dtype=torch.bfloat16), make_batch(tiny_llava)
    prompts = Prompts.of(backbone, batch)
    entering: list[torch.Tensor] = []
    handle = backbone.lm_head.register_forward_pre_hook(lambda _, given: entering.append(given[0]))
    with torch.no_grad():
        logits, _ = prompts.forward(backbone)
    handle.remove()

    expected = entering[0][:, -1].double() @ backbone.lm_head.weight.double().T  # type: ignore[operator]
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.double(), expected, rtol=0, atol=1e-5)
    assert not torch.equal(logits, logits.bfloat16().float())


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
def test_engines_agree_for_other_sets_single_heads_and_other_decoders(
    tiny_llava: str, decoder: Decoder
) -> None:
    backbone, batch = (
        make_backbone(tiny_llava, decoder=decoder, sliding_window=None),
        make_batch(tiny_llava),
    )
    cases = [
        Case(block, window) for block in OTHERS for window in (Window(0, 0, 2), Window(2, 1, 4))
    ]

    reference = ReferenceEngine().run(backbone, batch, cases)
    suffix = SuffixEngine(strict=True).run(backbone, batch, cases)

    assert apart(reference, suffix) < 1e-10


@ENGINES
def test_an_engine_reads_what_the_with_block_shows(tiny_llava: str, engine: KnockoutEngine) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava)
    case = Case(Block.parse("image->question"), Window(1, 0, 3))
    clean = last_logits(backbone, batch).log_softmax(-1)
    with knockout(backbone, batch.prompts(), [case.block], case.window):
        blocked = last_logits(backbone, batch).log_softmax(-1)

    readings = engine.run(backbone, batch, [case], IDS)

    assert readings.engine == engine.name
    assert torch.equal(readings.ids, torch.cat([clean.argmax(1, keepdim=True), IDS], dim=1))
    assert torch.equal(readings.clean_top[:, 0], clean.argmax(1))
    assert torch.equal(readings.top[:, 0], blocked.argmax(1))
    assert torch.allclose(
        readings.clean_logprobs[:, 0], clean.gather(1, readings.ids), rtol=0, atol=1e-12
    )
    assert torch.allclose(
        readings.logprobs[:, 0], blocked.gather(1, readings.ids), rtol=0, atol=1e-12
    )
    assert readings.source_size[:, 0].tolist() == batch.spans[Segment.IMAGE].sum(1).tolist()
    assert readings.target_size[:, 0].tolist() == batch.spans[Segment.QUESTION].sum(1).tolist()


@ENGINES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_question_that_is_blocked_in_the_last_layer_only_changes_nothing_at_all(
    tiny_llava: str, engine: KnockoutEngine, dtype: torch.dtype
) -> None:
    backbone, batch = make_backbone(tiny_llava, dtype=dtype), make_batch(tiny_llava)
    last = Window(LAYERS - 1, LAYERS - 1, LAYERS)
    cases = [
        Case(Block.parse(f"{source}->question"), last)
        for source in ("image", "image object", "question")
    ]

    readings = engine.run(backbone, batch, cases)

    assert readings.logprobs.dtype == torch.float32
    assert torch.equal(readings.logprobs, readings.clean_logprobs)


@ENGINES
def test_an_empty_source_or_target_changes_nothing_at_all_and_has_no_size(
    tiny_llava: str, engine: KnockoutEngine
) -> None:
    backbone = make_backbone(tiny_llava, dtype=torch.float32)
    text = Sample(
        id="t", conversation=[Turn("user", "Is there any circle in it?"), Turn("assistant", "no")]
    )
    batch = collate(tiny_llava, [text, question(0)])
    blocks = (
        "image->question",
        "image->last",
        "question->image",
        "true option->last",
        "question->last",
    )
    cases = [Case(Block.parse(block), everywhere()) for block in blocks]

    readings = engine.run(backbone, batch, cases)

    same = (readings.logprobs == readings.clean_logprobs).all(2)
    assert same.tolist() == [[True, True, True, True, False], [False, False, True, True, False]]
    assert readings.source_size[:, 0].tolist() == [0, 16]
    assert readings.target_size[0, 2] == readings.source_size[1, 3] == 0


@ENGINES
def test_other_samples_and_padding_change_nothing(
    tiny_llava_next: str, engine: KnockoutEngine
) -> None:
    backbone, cases = (
        make_backbone(tiny_llava_next),
        [Case(block, Window(2, 1, 3)) for block in PAPER[2:5]],
    )
    batch = make_batch(tiny_llava_next, "right", (0, 1, 2))

    together = engine.run(backbone, batch, cases)

    for row in range(3):
        alone = engine.run(backbone, make_batch(tiny_llava_next, "right", (row,)), cases)
        assert torch.equal(alone.ids[0], together.ids[row])
        assert torch.allclose(alone.logprobs[0], together.logprobs[row], rtol=0, atol=1e-12)


@ENGINES
def test_cases_do_not_know_of_each_other(tiny_llava: str, engine: KnockoutEngine) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava)
    cases = [Case(block, window) for window in windows(2) for block in [*PAPER[::2], *OTHERS[-2:]]]

    together = engine.run(backbone, batch, cases)
    backwards = engine.run(backbone, batch, cases[::-1])
    alone = engine.run(backbone, batch, cases[4:5])

    assert torch.allclose(together.logprobs, backwards.logprobs.flip(1), rtol=0, atol=1e-12)
    assert torch.allclose(together.logprobs[:, 4:5], alone.logprobs, rtol=0, atol=1e-12)


@ENGINES
def test_images_are_encoded_once_and_no_hook_is_left(
    tiny_llava: str, engine: KnockoutEngine
) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava)
    clean = last_logits(backbone, batch)
    hooks, calls = count_hooks(backbone), []
    handle = backbone.vision_tower.register_forward_pre_hook(lambda *_: calls.append(1))

    engine.run(backbone, batch, sweep(PAPER[:4], 5))

    handle.remove()
    assert len(calls) == 1
    assert count_hooks(backbone) == hooks
    assert torch.equal(last_logits(backbone, batch), clean)


@ENGINES
def test_an_engine_runs_the_uncompiled_forward(tiny_llava: str, engine: KnockoutEngine) -> None:
    backbone, batch, cases = (
        make_backbone(tiny_llava),
        make_batch(tiny_llava),
        [Case(PAPER[0], everywhere())],
    )
    before = engine.run(backbone, batch, cases)
    backbone.model.compile(backend=_not_to_be_compiled)

    assert apart(before, engine.run(backbone, batch, cases)) == 0


def _not_to_be_compiled(graph: object, inputs: object) -> None:
    raise AssertionError("compiled")


def test_prompts_can_be_taken_apart(tiny_llava: str) -> None:
    backbone, batch = make_backbone(tiny_llava), make_batch(tiny_llava, numbers=(0, 1, 2))
    prompts = Prompts.of(backbone, batch)
    with torch.no_grad():
        whole, _ = prompts.forward(backbone)
        parts = [prompts.take(range(row, row + 1)).forward(backbone)[0] for row in range(3)]

    assert torch.allclose(whole, torch.cat(parts), rtol=0, atol=1e-12)
    assert torch.allclose(whole, last_logits(backbone, batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("attention", "dtype", "tolerance"),
    [("sdpa", torch.float64, 1e-10), ("eager", torch.float32, 1e-5)],
)
def test_engines_agree_on_the_shipped_model(
    side: Side, attention: str, dtype: torch.dtype, tolerance: float
) -> None:
    backbone, batch = shipped_backbone(attention, dtype), make_batch(testbed.checkpoint(), side)
    depth = len(decoder_layers(backbone))
    cases = sweep(PAPER, 1, 2, 5, 9, depth=depth)
    idle = [
        case.block.target != PAPER[0].target and case.window.start == depth - 1 for case in cases
    ]

    reference = ReferenceEngine().run(backbone, batch, cases)
    suffix = SuffixEngine(strict=True).run(backbone, batch, cases)

    assert apart(reference, suffix) < tolerance
    assert any(idle)
    for readings in (reference, suffix):
        assert torch.equal(readings.logprobs[:, idle], readings.clean_logprobs[:, idle])
