"""The world as DataModules: the training material of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.language import conversations as talk
from lightning_mllm.testbed.language.gqa import referred
from lightning_mllm.testbed.training.exams import PARTS, ExamQuestion, Part, examination
from lightning_mllm.testbed.world.canvas import draw_image
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE, Scene, draw_scene
from lightning_mllm.types import Box, LazyImage, Options, Sample

Material = Literal["text", "pictures"]


def picture(scene: Scene, *, blind: bool = False) -> LazyImage:
    """Return a scene's picture, or only its ground and noise."""
    return LazyImage((SIDE, SIDE), partial(draw_image, replace(scene, objects=()) if blind else scene))


@dataclass(frozen=True, kw_only=True)
class ConversationMaker:
    """Makes the conversations of a split: plain data, so that worker processes can take it along.

    Attributes:
        split: The split.
        material: What stands in front: a scene's picture, or the scene's facts in words.
        objects: Least and most objects in a scene.
        captioned: Share of the conversations that have a caption.
        lookups: Requests per conversation for all that is known of one object.
        questions: Questions per conversation.
        emphasis: Turns of the hard types of questions for one of the others.
        mixed: Whether anything can come first; else a caption comes first, then the requests, then the questions.
        repeated: Share of the text conversations that only repeat words.
        foreign: Share of the conversations with words to repeat that the world does not need: names of digits and of
            the domains' classes, so that they can be said.
        world_seed: Seed of the scenes.
    """

    split: Split
    material: Material
    objects: tuple[int, int]
    captioned: float
    lookups: int
    questions: int
    emphasis: int
    mixed: bool
    repeated: float
    foreign: float
    world_seed: int

    def __call__(self, index: int) -> Sample:
        """Make the sample of an index."""
        key = f"{self.world_seed}/{self.split}/{self.material}/{index}"
        draw = Draw("conversation", key)
        scene = draw_scene(key, objects=self.objects)
        if self.material == "text":
            if draw.happens(self.repeated):
                return Sample(id=key, conversation=talk.turns(talk.repetition(draw)))
            exchanges = talk.with_notes(scene, self._exchanges(scene, draw), draw)
            return Sample(id=key, conversation=talk.turns(exchanges))
        exchanges = self._exchanges(scene, draw)
        return Sample(id=key, images=[picture(scene)], conversation=talk.turns(exchanges, images=1))

    def _exchanges(self, scene: Scene, draw: Draw) -> list[talk.Exchange]:
        exchanges = talk.description(scene) if draw.happens(self.captioned) else []
        exchanges += talk.lookups(scene, draw, self.lookups)
        exchanges += talk.questions(scene, draw, self.questions, emphasis=self.emphasis)
        if self.foreign and draw.happens(self.foreign):
            exchanges += talk.foreign_words(draw)
        if self.mixed:
            exchanges = draw.shuffled(exchanges)
        return exchanges or talk.description(scene)


class WorldConversations(MLLMDataModule):
    """Conversations about scenes, made up as they are needed: what the stages of the model are trained on.

    Args:
        material: What stands in front: a scene's picture, or the scene's facts in words.
        scenes: Number of training scenes.
        val_scenes: Number of validation scenes.
        test_scenes: Number of test scenes.
        objects: Least and most objects in a scene.
        captioned: Share of the conversations that have a caption.
        lookups: Requests per conversation for all that is known of one object.
        questions: Questions per conversation.
        emphasis: Turns of the hard types of questions for one of the others.
        mixed: Whether anything can come first; else a caption comes first, then the requests, then the questions.
        repeated: Share of the text conversations that only repeat words.
        foreign: Share of the conversations with words to repeat that the world does not need: names of digits and of
            the domains' classes, so that they can be said.
        world_seed: Seed of the scenes.
        **kwargs: Options of `MLLMDataModule`.

    Raises:
        ConfigError: An option has a value that it can't have.
    """

    def __init__(
        self,
        *,
        material: Material,
        scenes: int = 20_000,
        val_scenes: int = 256,
        test_scenes: int = 256,
        objects: tuple[int, int] = (1, 5),
        captioned: float = 0.5,
        lookups: int = 0,
        questions: int = 8,
        emphasis: int = 1,
        mixed: bool = False,
        repeated: float = 0.0,
        foreign: float = 0.0,
        world_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if material not in get_args(Material):
            raise ConfigError(f"material is {material!r}; it can be {' or '.join(map(repr, get_args(Material)))}.")
        for option, share in {"captioned": captioned, "repeated": repeated, "foreign": foreign}.items():
            if not 0 <= share <= 1:
                raise ConfigError(f"{option} is a share of the conversations, from 0 to 1, not {share}.")
        for option, count, least in (("lookups", lookups, 0), ("questions", questions, 0), ("emphasis", emphasis, 1)):
            if count < least:
                raise ConfigError(f"{option} must be at least {least}, not {count}.")
        self.counts: dict[Split, int] = {"train": scenes, "val": val_scenes, "test": test_scenes}
        check_counts(self.counts, {"train": "scenes", "val": "val_scenes", "test": "test_scenes"})
        self._makers = {
            split: ConversationMaker(
                split=split,
                material=material,
                objects=(objects[0], objects[1]),
                captioned=captioned,
                lookups=lookups,
                questions=questions,
                emphasis=emphasis,
                mixed=mixed,
                repeated=repeated,
                foreign=foreign,
                world_seed=world_seed,
            )
            for split in self.counts
        }

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the conversations of a split, made on demand."""
        return LazySamples(self.counts[split], self._makers[split])


def check_counts(counts: Mapping[Split, int], options: Mapping[Split, str]) -> None:
    """Refuse splits without samples.

    Raises:
        ConfigError: There is one; the message names its option.
    """
    for split, count in counts.items():
        if count < 1:
            raise ConfigError(
                f"{options[split]} is {count}: each split needs a sample. Set it to 1 or more; to leave a split out of "
                "a run, limit its batches, e.g. --trainer.limit_val_batches 0."
            )


class WorldQuestions(MLLMDataModule):
    """Single questions about scenes, scored by exact match per kind: how the test-bed's models are judged.

    Kinds are part, type and wording, e.g. "seen/ChooseAttr/0", or "presence/popular". Questions of the six types have
    the boxes and options that they would have in a task file (`gqa.py`), and the scene's other objects as distractors;
    boxes only where the picture shows the scene.

    Args:
        parts: What is asked, see `examination`.
        per_kind: Test questions of each kind; a multiple of 12 balances all answers.
        val_per_kind: Validation questions of each kind.
        train_per_kind: Training questions of each kind; the test-bed's models are trained on `WorldConversations`.
        world_seed: Seed of the scenes.
        **kwargs: Options of `MLLMDataModule`.

    Raises:
        ConfigError: There is no such part, or a split would be empty.
    """

    def __init__(
        self,
        *,
        parts: Sequence[Part] = ("seen", "held_out", "presence", "blind"),
        per_kind: int = 96,
        val_per_kind: int = 24,
        train_per_kind: int = 24,
        world_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if unknown := set(parts) - set(PARTS):
            raise ConfigError(f"parts has {sorted(unknown)}; there are {', '.join(PARTS)}.")
        self.parts = tuple(parts)
        self.counts: dict[Split, int] = {"train": train_per_kind, "val": val_per_kind, "test": per_kind}
        check_counts(self.counts, {"train": "train_per_kind", "val": "val_per_kind", "test": "per_kind"})
        self.world_seed = world_seed

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the questions of a split, the kinds taking turns: the first batches have some of each."""
        per_kind = self.counts[split]
        samples = [
            _question_sample(question, part)
            for part in self.parts
            for question in examination(part, per_kind, seed=self.world_seed, split=split)
        ]
        return [sample for turn in range(per_kind) for sample in samples[turn::per_kind]]


def _question_sample(question: ExamQuestion, part: Part) -> Sample:
    exchanges, asked = [(question.text, question.answer)], question.question
    options = Options(question.answer, asked.other_option) if asked and asked.other_option else None
    if part == "text":
        exchanges = talk.with_notes(question.scene, exchanges, Draw("notes", question.id))
        return Sample(id=question.id, kind=question.kind, conversation=talk.turns(exchanges), options=options)
    shown = asked if part != "blind" else None
    things = [thing for _, thing in referred(shown, question.scene) if thing] if shown else []
    others = [thing for thing in question.scene.objects if thing not in things] if shown else []
    return Sample(
        id=question.id,
        kind=question.kind,
        images=[picture(question.scene, blind=part == "blind")],
        conversation=talk.turns(exchanges, images=1),
        boxes=[Box(*thing.box) for thing in things],
        distractors=[Box(*thing.box) for thing in others],
        options=options,
    )
