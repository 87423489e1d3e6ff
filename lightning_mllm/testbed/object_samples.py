"""Every object of the examination's pictures as a sample of its own, with its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.testbed.datamodules import check_datamodule_counts, make_scene_picture
from lightning_mllm.testbed.language.conversations import (
    converse_on_caption,
    write_conversation_turns,
)
from lightning_mllm.testbed.training.exams import examination
from lightning_mllm.testbed.world.scenes import ATTRIBUTES, Scene, SceneObject
from lightning_mllm.types import Box, Sample


class WorldObjects(MLLMDataModule):
    """Objects of scenes, a sample each, with its box, and its attributes as fields.

    The scene's other objects are its distractors. The scenes are those of the "seen" examination
    (`WorldQuestions`), which training has not seen; each has a caption for its conversation.

    Args:
        per_kind: Number of test scenes per kind of question, of which there are 17.
        val_per_kind: Number of validation scenes per kind of question.
        train_per_kind: Number of training scenes per kind of question. The test-bed's own models
            are trained on `WorldConversations`.
        world_seed: Seed of the scenes.
        **kwargs: Options of `MLLMDataModule`.

    Raises:
        ConfigError: A split would be empty.
    """

    def __init__(
        self,
        *,
        per_kind: int = 8,
        val_per_kind: int = 2,
        train_per_kind: int = 2,
        world_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.counts = check_datamodule_counts(
            {
                "train": ("train_per_kind", train_per_kind),
                "val": ("val_per_kind", val_per_kind),
                "test": ("per_kind", per_kind),
            }
        )
        self.world_seed = world_seed

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the objects of a split, scene by scene."""
        samples = []
        for asked in examination("seen", self.counts[split], seed=self.world_seed, split=split):
            for thing in asked.scene.objects:
                samples.append(_make_object_sample(asked.scene, thing))
        return samples


def _make_object_sample(scene: Scene, thing: SceneObject) -> Sample:
    """Return an object as a sample of the data."""
    others = [other for other in scene.objects if other is not thing]
    return Sample(
        id=f"{scene.id}/{thing.id}",
        images=[make_scene_picture(scene)],
        conversation=write_conversation_turns(converse_on_caption(scene), images=1),
        boxes=[Box(*thing.box)],
        distractors=[Box(*other.box) for other in others],
        picture=scene.id,
        fields={name: thing.value(name) for name in ATTRIBUTES},
    )
