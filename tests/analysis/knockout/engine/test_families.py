"""Knockouts in families whose tokens see later ones, whose positions have axes, or without keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lightning_mllm.analysis import (
    Case,
    InformationFlow,
    ReferenceEngine,
    SuffixEngine,
    Window,
    knockout,
)
from lightning_mllm.analysis.forward.hidden_keys import find_horizons
from lightning_mllm.analysis.forward.prompts import Prompts
from lightning_mllm.batches import MultimodalBatch, TokenSpans
from lightning_mllm.errors import ConfigError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import decoder_layers, run_layers_uncompiled
from lightning_mllm.types import Segment
from tests.conftest import FamilyBuilder
from tests.support.decoders import apart
from tests.support.family_questions import ask, load, parse

IN_IMAGES = parse("question->image", "image->image", "image object->image other")
PLAIN = parse("image->last", "question->last", "image->question", "image+image frame->question")
FALLING_BACK = ("paligemma", "gemma3_narrow", "gemma4")


def halve_images(batch: MultimodalBatch) -> MultimodalBatch:
    """Call the second half of each image its object's."""
    image = batch.spans[Segment.IMAGE]
    later = image & (2 * image.cumsum(1) > image.sum(1, keepdim=True))
    regions = {Segment.IMAGE_OBJECT: later, Segment.IMAGE_OTHER: image & ~later}
    return replace(batch, spans=TokenSpans({**batch.spans.masks, **regions}))


@pytest.mark.parametrize(
    "name", ["qwen2_vl", "qwen3_vl", "gemma3", "aya_vision", "idefics3", *FALLING_BACK]
)
def test_engines_agree_and_fall_back_by_name(tiny_family: FamilyBuilder, name: str) -> None:
    backbone, batch = load(tiny_family(name)), halve_images(ask(tiny_family(name), "right"))
    depth = len(decoder_layers(backbone))
    windows = (Window(0, 0, 1), Window(1, 0, depth))
    cases = [Case(block, window) for block in (*IN_IMAGES, *PLAIN) for window in windows]

    reference = ReferenceEngine().run(backbone, batch, cases)
    suffix = SuffixEngine().run(backbone, batch, cases)

    assert suffix.engine == ("reference" if name in FALLING_BACK else "suffix")
    assert torch.equal(reference.acts, suffix.acts)
    assert apart(reference, suffix) < 1e-6
    if name in FALLING_BACK:
        with pytest.raises(ConfigError, match=r"The suffix engine can't be used .*engine=auto"):
            SuffixEngine(strict=True).run(backbone, batch, cases)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gemma3", {}),
        ("gemma4", {}),
        ("gemma4", {"use_bidirectional_attention": "vision"}),
        ("paligemma", {}),
        ("qwen2_vl", {}),
    ],
)
def test_a_block_acts_where_it_changes_a_state_and_nowhere_else(
    tiny_family: FamilyBuilder, name: str, options: dict[str, str]
) -> None:
    """In a prefix LM an image sees the question; of Gemma 4 the small models are causal."""
    backbone, batch = load(tiny_family(name)), halve_images(ask(tiny_family(name), count=2))
    backbone.model.config.get_text_config().update(options)
    backbone = Backbone(backbone.model)
    depth = len(decoder_layers(backbone))
    prompts, whole = batch.prompts(), Window(0, 0, depth)
    clean = run_layers_uncompiled(backbone, prompts).last_hidden_state
    blocks = [*IN_IMAGES, *PLAIN]

    readings = ReferenceEngine().run(backbone, batch, [Case(each, whole) for each in blocks])

    expected = []
    for block in blocks:
        with torch.no_grad(), knockout(backbone, prompts, [block], whole):
            blocked = run_layers_uncompiled(backbone, prompts).last_hidden_state
        real = prompts.attention_mask.bool()[..., None]
        changes = ((blocked - clean) * real).abs().amax((1, 2))
        expected.append(changes > 1e-4)
    assert torch.equal(readings.acts, torch.stack(expected, dim=1))
    into_image = readings.acts[:, : len(IN_IMAGES)].any(0).tolist()
    assert into_image == [
        backbone.family.sees == "prompt whole",
        True,
        backbone.family.sees != "causal",
    ]


def test_each_image_is_a_whole_of_its_own() -> None:
    image = torch.tensor([[0, 1, 1, 0, 1, 0]]).bool()
    last = torch.tensor([[0, 0, 0, 0, 1, 0]]).bool()
    spans = TokenSpans({Segment.IMAGE: image, Segment.LAST: last})

    assert find_horizons("causal", spans) is None
    assert find_horizons("images whole", spans).tolist() == [[0, 2, 2, 3, 4, 5]]  # type: ignore[union-attr]
    assert find_horizons("prompt whole", spans).tolist() == [[4, 4, 4, 4, 4, 5]]  # type: ignore[union-attr]


def test_without_its_frame_an_image_can_still_be_read_from_it(tiny_family: FamilyBuilder) -> None:
    """`image` is the visual tokens alone; what stands between them is text that has seen them."""
    backbone, batch = load(tiny_family("mistral3")), ask(tiny_family("mistral3"))
    spans = batch.prompts().spans
    window = Window(0, 0, len(decoder_layers(backbone)))

    readings = ReferenceEngine().run(backbone, batch, [Case(block, window) for block in PLAIN[2:]])

    image, frame = (spans[each].sum(1) for each in (Segment.IMAGE, Segment.IMAGE_FRAME))
    assert (frame > 0).all()
    assert torch.equal(readings.source_size, torch.stack([image, image + frame], dim=1))
    assert ((readings.logprobs[:, 0] - readings.logprobs[:, 1]).abs().amax(1) > 1e-4).all()


def test_layers_without_keys_are_refused_by_name(tiny_family: FamilyBuilder) -> None:
    backbone, batch = load(tiny_family("qwen3_5")), ask(tiny_family("qwen3_5"))
    said = r"knockout does not work with qwen3_5: its LLM mixes tokens without keys in layers 0"

    with pytest.raises(ConfigError, match=said):
        InformationFlow().check_model(backbone)
    with pytest.raises(ConfigError, match=said):
        ReferenceEngine().run(backbone, batch, [Case(PLAIN[0], Window(0, 0, 1))])


def test_eager_attention_in_float64_is_left_to_the_reference_beside_padding(
    tiny_family: FamilyBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    """The library's own mask is then infinite in float32, and rows of padding are NaN."""
    backbone, batch = load(tiny_family("qwen3_vl"), "eager"), ask(tiny_family("qwen3_vl"))

    found = SuffixEngine().run(backbone, batch, [Case(PLAIN[0], Window(0, 0, 1))])

    assert found.engine == "reference"
    assert "its own logits are not finite, as happens in float64 beside padding" in caplog.text


def test_a_prompt_longer_than_a_window_gives_way_to_the_reference_engine(
    tiny_family: FamilyBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    """The first prompts fit into the window, so that only later ones show it."""
    checkpoint = tiny_family("gemma3")
    backbone, short = load(checkpoint), ask(checkpoint, count=1)
    engine, cases = SuffixEngine(), [Case(block, Window(1, 0, 2)) for block in PLAIN]
    first = engine.run(backbone, short, cases)
    length = short.prompts().input_ids.shape[1]
    for layer in backbone.decoder.layers:  # type: ignore[union-attr]
        if layer.self_attn.sliding_window is not None:
            layer.self_attn.sliding_window = length + 1
    backbone.decoder.config.sliding_window = length + 1  # type: ignore[union-attr]

    long = ask(checkpoint).take([1])
    found = engine.run(backbone, long, cases)

    assert long.prompts().input_ids.shape[1] > length + 1
    assert (first.engine, found.engine) == ("suffix", "reference")
    assert "does not keep the keys" in caplog.text
    assert apart(ReferenceEngine().run(backbone, long, cases), found) == 0


def test_the_first_prompt_with_an_image_is_tried_too(tiny_family: FamilyBuilder) -> None:
    """What a text alone allows may be wrong beside an image."""
    checkpoint = tiny_family("gemma3")
    backbone, batch = load(checkpoint), ask(checkpoint, count=1)
    text = replace(batch.prompts(), images=(), image_counts=(0,))
    text = text.gather(torch.arange(2)[None], torch.ones(1, 2, dtype=torch.bool))
    tried: list[tuple[int, ...]] = []

    class Engine(SuffixEngine):
        def check(self, backbone: Backbone, prompts: Prompts) -> None:
            tried.append(prompts.batch.image_counts)
            super().check(backbone, prompts)

    engine = Engine()
    with torch.no_grad():
        for each in (text, batch, batch, text):
            engine._check_once(backbone, Prompts.of(backbone, each))

    assert tried == [(0,), (1,)]
