from __future__ import annotations

import multiprocessing
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt, load_processor
from lightning_mllm.data.loading.sample_sizes import SampleSize
from lightning_mllm.data.loading.sampler import GlobalBatchSampler
from lightning_mllm.errors import ConfigError, DataError, NotFiniteError
from lightning_mllm.models.layers import decoder_layers
from lightning_mllm.models.tiny import TinyFamily
from lightning_mllm.probing.features.extraction import extract
from lightning_mllm.probing.features.points import Point
from lightning_mllm.probing.features.pooling import pool
from lightning_mllm.probing.features.tapping import TappedBatch, Tapper
from lightning_mllm.types import Sample, Segment, Turn
from tests.conftest import TinyBuilder
from tests.support.feature_samples import (
    EVERYWHERE,
    FAMILIES,
    NAMES,
    VISION,
    batches,
    collator,
    count_calls,
    equal,
    samples,
)
from tests.support.loaded import load_copy


@FAMILIES
@pytest.mark.parametrize("images", [1, 2])
@torch.no_grad()
def test_features_are_those_of_the_full_model(
    tiny_checkpoint: TinyBuilder, family: TinyFamily, images: int
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")
    backbone = load_copy(checkpoint)
    (batch,) = batches(checkpoint, samples(4, images), size=4)
    decoder = backbone.decoder
    states: list[Tensor] = []
    handles = [
        module.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        for module in (*decoder.layers, decoder.norm)  # type: ignore[misc]
    ]
    backbone.model(**batch.model_inputs())
    for handle in handles:
        handle.remove()

    found = extract(backbone, [batch], EVERYWHERE, NAMES)

    image, last = batch.spans[Segment.IMAGE], batch.spans[Segment.LAST]

    def mean(layer: int) -> Tensor:
        rows = zip(states[layer], image, strict=True)
        return torch.stack([pool([hidden[mask][None]], "mean") for hidden, mask in rows])

    assert torch.equal(found["post-mean"].features, mean(0))
    assert torch.equal(found["layer1-image-mean"].features, mean(1))
    assert torch.equal(found["layer0-last"].features, states[0][last])
    assert torch.equal(found["layer2-last"].features, states[2][last])
    assert found["pre-mean"].sample_ids == batch.sample_ids
    assert torch.equal(found["pre-mean"].targets, batch.targets)


@torch.no_grad()
def test_the_last_layer_normed_is_what_the_model_makes_its_logits_of(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
    (batch,) = batches(tiny_llava, samples(2))

    found = extract(backbone, [batch], [Point("last", 2)], NAMES)["layer2-last"]

    hidden = backbone.model(**batch.model_inputs(), output_hidden_states=True).hidden_states
    normed = backbone.decoder.norm(found.features)  # type: ignore[operator]
    assert torch.equal(normed, hidden[-1][batch.spans[Segment.LAST]])


def test_the_llm_runs_only_for_its_points(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
    llm, head = count_calls(backbone.decoder), count_calls(backbone.lm_head)
    projector, tower = count_calls(backbone.projector), count_calls(backbone.vision_tower)
    data = batches(tiny_llava, samples(4))

    extract(backbone, data, VISION, NAMES)
    assert (tower(), projector(), llm(), head()) == (2, 2, 0, 0)
    extract(backbone, data, [*VISION, Point("post")], NAMES)
    assert (tower(), projector(), llm(), head()) == (4, 4, 0, 0)
    extract(backbone, data, EVERYWHERE, NAMES)
    assert (tower(), projector(), llm(), head()) == (6, 6, 2, 0)


def test_of_each_batch_only_its_place_among_all_features_is_kept(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small tensors between the large ones of each batch would leave holes in the heap."""
    tapped: list[weakref.ref[Tensor]] = []
    tap = Tapper.tap

    def note(self: Tapper, batch: MultimodalBatch) -> TappedBatch:
        rows = tap(self, batch)
        tapped.extend(weakref.ref(vectors) for vectors in rows.vectors.values())
        return rows

    monkeypatch.setattr(Tapper, "tap", note)
    found = extract(load_copy(tiny_llava), batches(tiny_llava, samples(4), size=1), VISION, NAMES)

    assert len(tapped) == 4 * len(VISION)
    assert all(vectors() is None for vectors in tapped)
    assert all(len(features) == 4 for features in found.values())


def test_extraction_leaves_modes_and_hooks_as_they_were(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
    backbone.projector.train()
    modules = list(backbone.model.modules())
    before = [(module.training, len(module._forward_pre_hooks)) for module in modules]
    data = batches(tiny_llava, samples(2))

    extract(backbone, data, EVERYWHERE, NAMES)
    assert [(module.training, len(module._forward_pre_hooks)) for module in modules] == before
    decoder_layers(backbone)[1].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extract(backbone, data, [Point("last", 0)], NAMES)
    assert sum(len(module._forward_pre_hooks) for module in modules) == 1
    assert backbone.projector.training


def test_features_are_in_float32_and_do_not_hold_on_to_the_graph(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava, dtype=torch.bfloat16)

    found = extract(backbone, batches(tiny_llava, samples(2)), EVERYWHERE, NAMES)

    assert all(
        each.features.dtype == torch.float32 and not each.features.requires_grad
        for each in found.values()
    )


@FAMILIES
def test_padding_and_batching_change_nothing(
    tiny_checkpoint: TinyBuilder, family: TinyFamily
) -> None:
    checkpoint = tiny_checkpoint(family, "vicuna")
    backbone = load_copy(checkpoint)
    data = samples(5)

    one = extract(backbone, batches(checkpoint, data, size=5), EVERYWHERE, NAMES)
    left = extract(backbone, batches(checkpoint, data, size=5, side="left"), EVERYWHERE, NAMES)
    small = extract(backbone, batches(checkpoint, data, size=2), EVERYWHERE, NAMES)

    for name, expected in one.items():
        for found in (left[name], small[name]):
            assert found.sample_ids == expected.sample_ids == tuple(f"s{k}" for k in range(5))
            torch.testing.assert_close(found.features, expected.features, atol=1e-5, rtol=1e-5)


def test_a_sample_that_comes_twice_counts_once(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
    first, second = batches(tiny_llava, samples(4))

    found = extract(backbone, [first, second, first], VISION, NAMES)

    assert equal(found, extract(backbone, [first, second], VISION, NAMES))


def _extract_a_share(checkpoint: str, rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    try:
        backbone, data = load_copy(checkpoint), samples(7)
        sizes = [SampleSize(sample.id, 1, 1) for sample in data]
        shares = list(GlobalBatchSampler(sizes, 2, training=False, rank=rank, world_size=2))
        collate = collator(checkpoint)
        mine = [collate([(0, data[index]) for _, index in share]) for share in shares]
        found = extract(backbone, mine, EVERYWHERE, NAMES)
        ids = {each.sample_ids for each in found.values()}
        assert ids == {tuple(sample.id for sample in data)}
        save_file(
            {name: each.features for name, each in found.items()}, folder / f"{rank}.safetensors"
        )
        broken = [replace(batch, targets=batch.targets - 9) for batch in mine] if rank else mine
        # in both processes, though one is at fault
        with pytest.raises(DataError, match="'s1' has no class"):
            extract(backbone, broken, VISION, NAMES)
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_two_processes_extract_what_one_does(tiny_llava: str, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=_extract_a_share, args=(tiny_llava, rank, tmp_path))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    assert [process.exitcode for process in processes] == [0, 0]
    one = extract(
        load_copy(tiny_llava),
        batches(tiny_llava, samples(7), size=1),
        EVERYWHERE,
        NAMES,
    )
    for rank in range(2):
        two = load_file(tmp_path / f"{rank}.safetensors")
        assert all(torch.equal(two[name], each.features) for name, each in one.items())


def test_bad_samples_are_named(tiny_llava: str) -> None:
    backbone = load_copy(tiny_llava)
    good = samples(2)
    (batch,) = batches(tiny_llava, good)
    talk = Sample(id="talk", conversation=[Turn("user", "Is there any?"), Turn("assistant", "no")])
    text_only = Collator(load_processor(tiny_llava), ConversationPrompt())([(0, talk)])

    with pytest.raises(DataError, match="'s1' has no class"):
        extract(backbone, [replace(batch, targets=torch.tensor([0, -1]))], VISION, NAMES)
    with pytest.raises(DataError, match="'talk' has no image"):
        extract(backbone, [text_only], VISION, NAMES)
    with pytest.raises(DataError, match="no sample was extracted"):
        extract(backbone, [], VISION, NAMES)
    backbone.projector.linear_2.bias.data[3] = torch.nan  # type: ignore[operator,union-attr]
    with pytest.raises(
        NotFiniteError,
        match=r"The features are NaN or infinite for \d of \d samples, first for 's0'.*: "
        r"lower the learning rate, or use bfloat16 or float32 instead of float16\.$",
    ):
        extract(backbone, batches(tiny_llava, good), [Point("post")], NAMES)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "no points to tap"),
        ([Point("pre"), Point("pre")], "given twice"),
        ([Point("last", 3)], r"layer=3.* layers 0 \(its input\) to 2"),
        ([Point("post", pooling="grid", cells=5)], "square of at least 5 x 5"),
    ],
)
def test_points_that_the_model_lacks_are_refused(
    tiny_llava: str, points: list[Point], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        extract(load_copy(tiny_llava), batches(tiny_llava, samples(2)), points, NAMES)


@pytest.mark.parametrize(
    "point", [Point("post", pooling="grid"), Point("image", 1, pooling="grid")], ids=str
)
def test_a_grid_of_packed_views_is_refused(tiny_llava_next: str, point: Point) -> None:
    with pytest.raises(ConfigError, match=r"packs 5 views of an image into 88 tokens"):
        extract(
            load_copy(tiny_llava_next),
            batches(tiny_llava_next, samples(1)),
            [point],
            NAMES,
        )


@pytest.mark.parametrize(
    "options", [("pre", 1), ("image", None), ("last", -1), ("pre", None, "grid", 0)]
)
def test_points_that_make_no_sense_are_refused(options: tuple[object, ...]) -> None:
    with pytest.raises(ConfigError, match="can't be tapped: the places"):
        Point(*options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="only before the projector is there a class token"):
        Point("post", pooling="cls")


def test_points_have_names_of_their_own() -> None:
    points = [*EVERYWHERE, Point("pre", pooling="grid", cells=3), Point("image", 12, pooling="max")]

    assert [point.name for point in points] == [
        *(
            "pre-mean",
            "pre-max",
            "pre-cls",
            "pre-grid2",
            "post-mean",
            "layer1-image-mean",
            "layer0-last",
        ),
        *("layer2-last", "pre-grid3", "layer12-image-max"),
    ]
