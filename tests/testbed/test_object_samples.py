"""Objects as samples: the spec of each is its scene's."""

from __future__ import annotations

from lightning_mllm.testbed import checkpoint
from lightning_mllm.testbed.object_samples import WorldObjects
from lightning_mllm.testbed.training.exams import examination
from lightning_mllm.types import Segment


def test_each_object_of_a_scene_is_a_sample_with_its_words_and_the_others_boxes() -> None:
    data = WorldObjects(checkpoint=checkpoint("instructed"), per_kind=1, eval_batch_size=4)
    batch = next(iter(data.plain_dataloader("test")))
    scenes = [asked.scene for asked in examination("seen", 1)]
    samples = data.samples["test"]

    assert len(samples) == sum(len(scene.objects) for scene in scenes)
    assert {sample.picture for sample in samples} == {scene.id for scene in scenes}
    first = scenes[0].objects[0]
    assert samples[0].fields["color"] == first.color
    assert len(samples[0].distractors) == len(scenes[0].objects) - 1
    others = batch.spans[Segment.IMAGE_DISTRACTORS]
    assert (batch.spans[Segment.IMAGE_DISTRACTOR] & ~others).sum() == 0
    assert (batch.spans[Segment.IMAGE_OBJECT] & ~others).any(1).all()
