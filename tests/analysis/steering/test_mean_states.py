"""Mean states of classes, by hand, and what fine-tuning does to them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_mllm.analysis import ClassMeans, MeanStates, shift_vector
from lightning_mllm.analysis.core.running_sums import RunningSums
from lightning_mllm.analysis.steering.vector import vector_width
from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.errors import ConfigError, DataError, NotFiniteError
from lightning_mllm.models.backbone import Backbone
from lightning_mllm.models.layers import layers_and_norm
from lightning_mllm.types import Segment
from tests.support.decoders import LAYERS, make_backbone
from tests.support.questions import batches, tokenizer
from tests.support.streamed_contract import StreamedContract


class TestMeanStates(StreamedContract):
    def make(self, **options: Any) -> MeanStates:
        return MeanStates(**options)

    def test_without_any_sample_there_is_no_result(
        self, backbone: Backbone, tiny_llava: str
    ) -> None:
        analysis = self.run(backbone, tiny_llava, batches(tiny_llava), classes=["green"])

        with pytest.raises(DataError, match=r"none of 6 samples is of a class \(green\)"):
            analysis.compute()


def read(
    backbone: Backbone, checkpoint: str, folder: Path | None = None, **options: Any
) -> MeanStates:
    analysis = MeanStates(**options)
    analysis.prepare(tokenizer(checkpoint), folder)
    for batch in batches(checkpoint):
        analysis.update(backbone, batch)
    return analysis


def change_head(backbone: Backbone) -> None:
    """Give a model other weights, and the same states."""
    head: Any = backbone.lm_head
    head.weight.data += 1


def state_means(
    backbone: Backbone, parts: Sequence[MultimodalBatch], segment: Segment
) -> dict[str, Tensor]:
    """Of each sample with such tokens, the mean state in front of each module."""
    found = {}
    for batch in parts:
        for row in range(len(batch)):
            own = batch.take([row])
            entered: list[Tensor] = []
            handles = [
                module.register_forward_pre_hook(
                    lambda _, inputs, entered=entered: entered.append(inputs[0])
                )
                for module in layers_and_norm(backbone)
            ]
            with torch.no_grad():
                backbone.model(**own.model_inputs())
            for handle in handles:
                handle.remove()
            if (mask := own.spans[segment]).any():
                found[own.sample_ids[0]] = torch.stack([each[mask].mean(0) for each in entered])
    return found


@pytest.mark.parametrize("segment", [Segment.IMAGE_OBJECT, Segment.LAST])
def test_a_vector_is_the_difference_of_the_means_of_two_classes(
    tiny_llava: str, segment: Segment
) -> None:
    backbone = make_backbone(tiny_llava)
    samples = state_means(backbone, batches(tiny_llava), segment)
    red = [samples[f"test-{k}"] for k in (0, 3) if f"test-{k}" in samples]
    blue = [samples[f"test-{k}"] for k in (1, 4) if f"test-{k}" in samples]

    vector = read(backbone, tiny_llava).means().difference("blue", "red", str(segment))

    expected = torch.stack(blue).mean(0) - torch.stack(red).mean(0)
    torch.testing.assert_close(vector.states.double(), expected, rtol=1e-5, atol=1e-5)
    assert dict(vector.samples) == {"red": len(red), "blue": len(blue)}
    assert (vector.name, vector.read_at) == ("red->blue", str(segment))
    vector.check_fits(backbone)


def test_what_is_on_disk_makes_the_same_vectors(tiny_llava: str, tmp_path: Path) -> None:
    backbone = make_backbone(tiny_llava)
    analysis = read(backbone, tiny_llava, tmp_path, by="kind", segments=["last"])
    analysis.merge()

    again = ClassMeans.load(tmp_path)

    assert again.classes == ("choose/attr", "logical/obj")
    assert again.pictures == {f"test-{k}" for k in range(6)}
    ours = again.difference("logical/obj", "choose/attr", "last")
    theirs = analysis.means().difference("logical/obj", "choose/attr", "last")
    assert torch.equal(ours.states, theirs.states)
    assert again.digest == analysis.means().digest


def test_the_shift_of_a_moved_stream_is_how_it_was_moved(tiny_llava: str) -> None:
    """After the last layer all states are moved by one vector: it is the shift there, of all."""
    before, after = make_backbone(tiny_llava), make_backbone(tiny_llava)
    moved = torch.linspace(-1, 1, vector_width(after)).double()
    change_head(after)
    layers_and_norm(after)[-1].register_forward_pre_hook(lambda _, x: (x[0] + moved, *x[1:]))
    first, second = (read(each, tiny_llava).means() for each in (before, after))

    shift = shift_vector(first, second, "red", "last")

    torch.testing.assert_close(shift.states[-1].double(), moved, rtol=1e-6, atol=1e-6)
    assert shift.states[:-1].abs().max() < 1e-6
    assert shift.weights == first.weights != second.weights


def test_a_shift_that_is_the_same_everywhere_explains_all(tiny_llava: str, tmp_path: Path) -> None:
    before, after = make_backbone(tiny_llava), make_backbone(tiny_llava)
    options: dict[str, Any] = {"segments": ["last"], "by": "kind", "groups": 2, "seed": 0}
    read(before, tiny_llava, tmp_path, **options).merge()
    moved = 9 * torch.linspace(-1, 1, vector_width(after)).double()
    change_head(after)
    layers_and_norm(after)[-1].register_forward_pre_hook(lambda _, x: (x[0] + moved, *x[1:]))

    result = read(after, tiny_llava, **options, before=str(tmp_path)).compute()

    final = result.at(layer=LAYERS, statistic="value", segments="last")[0]
    found = dict(zip(result.coords["measure"], final.tolist(), strict=True))
    assert found["cosine_shifted"] == pytest.approx(1, abs=1e-6)
    assert found["cosine"] < 0.9
    assert found["cosine_random"] < 0.9
    assert found["shift_norm"] == pytest.approx(float(moved.norm()), rel=1e-6)
    assert np.isnan(result.at(measure="cosine")[..., 1]).all()  # one group has no interval


def test_states_of_other_samples_or_of_one_model_give_no_shift(tiny_llava: str) -> None:
    backbone, other = make_backbone(tiny_llava), make_backbone(tiny_llava)
    change_head(other)
    means = read(backbone, tiny_llava).means()
    fewer = MeanStates()
    fewer.prepare(tokenizer(tiny_llava))
    fewer.update(other, batches(tiny_llava)[0])

    with pytest.raises(ConfigError, match="of the same weights"):
        shift_vector(means, means, "red", "last")
    with pytest.raises(ConfigError, match="are of 6 samples, those after it of 4"):
        shift_vector(means, fewer.means(), "red", "last")
    with pytest.raises(ConfigError, match=r"No states of 'rd' were read"):
        means.difference("rd", "blue", "last")
    with pytest.raises(ConfigError, match="No states of 'image' were read"):
        means.difference("red", "blue", "image")


def test_states_of_two_models_in_one_folder_are_refused(tiny_llava: str) -> None:
    backbone, other = make_backbone(tiny_llava), make_backbone(tiny_llava)
    change_head(other)
    analysis = read(backbone, tiny_llava)
    analysis.found.done.clear()
    analysis._done.clear()
    analysis.update(other, batches(tiny_llava)[0])

    with pytest.raises(ConfigError, match="the states of 2 models"):
        analysis.means()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "colour"}, "it can be answer or kind"),
        ({"segments": []}, "needs a segment or more"),
        ({"classes": []}, "classes: null for all"),
        ({"segments": ["picture"]}, "is not a segment"),
    ],
)
def test_what_can_not_be_read_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MeanStates(**options)


def test_a_folder_without_states_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the folder of a MeanStates that has ended"):
        ClassMeans.load(tmp_path)


def test_a_class_whose_answers_begin_with_several_tokens_has_no_first_token() -> None:
    kept = {
        name: torch.tensor([int(name.split("/")[1])]) for name in ("token/5/red", "token/7/red")
    }
    found = RunningSums(kept={**kept, "weights/w": torch.tensor([0])})

    with pytest.raises(ConfigError, match=r"'red' begin with 2 tokens \(ids 5, 7\)"):
        ClassMeans.of(found, {}, "here").first_token("red")


def test_states_that_are_not_finite_are_refused_not_left_out(tiny_llava: str) -> None:
    backbone = Backbone.from_pretrained(tiny_llava)
    next(iter(layers_and_norm(backbone))).register_forward_pre_hook(
        lambda _, inputs: (inputs[0] * torch.inf, *inputs[1:])
    )

    with pytest.raises(NotFiniteError, match="The LLM's states"):
        read(backbone, tiny_llava, segments=["last"])
