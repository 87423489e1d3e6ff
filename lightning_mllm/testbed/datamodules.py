"""The world as DataModules: conversations to train on, and questions to test with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError
from lightning_mllm.testbed.language import conversations
from lightning_mllm.testbed.language.conversations import Exchange
from lightning_mllm.testbed.language.gqa import find_references_for_gqa
from lightning_mllm.testbed.language.questions import QuestionType
from lightning_mllm.testbed.training.exams import PARTS, ExamQuestion, Part, examination
from lightning_mllm.testbed.world.canvas import draw_image
from lightning_mllm.testbed.world.draws import Draw
from lightning_mllm.testbed.world.scenes import SIDE, Scene, SceneObject, draw_scene
from lightning_mllm.types import Box, LazyImage, Options, Sample

Material = Literal["text", "pictures"]


def make_scene_picture(scene: Scene, *, blind: bool = False) -> LazyImage:
    """Return a scene's picture, drawn when needed; if `blind`, only its ground and noise."""
    drawn = replace(scene, objects=()) if blind else scene
    return LazyImage((SIDE, SIDE), partial(draw_image, drawn))


@dataclass(frozen=True, kw_only=True)
class ConversationMaker:
    """Makes the conversations of a split; it is plain data, so that worker processes can copy it.

    Attributes:
        split: Split of the conversations.
        material: Whether a conversation begins with the scene's picture or its facts in words.
        objects: Least and greatest number of objects in a scene.
        captioned: Share of the conversations that have a caption.
        lookups: Number of requests per conversation for all facts about one object.
        questions: Number of questions per conversation.
        emphasis: How many times as often a hard type of question is asked as another.
        mixed: Whether the order is random; else a caption comes first, then the requests, then the
            questions.
        repeated: Share of the text conversations that only repeat words.
        foreign: Share of the conversations that repeat words that the world does not need, so that
            the model can say them: names of digits and of the domains' classes.
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
        """Make the sample with this index."""
        key = f"{self.world_seed}/{self.split}/{self.material}/{index}"
        draw = Draw("conversation", key)
        scene = draw_scene(key, objects=self.objects)
        if self.material == "text":
            if draw.happens(self.repeated):
                exchanges = conversations.converse_on_words(draw)
            else:
                asked = self._make_exchanges(scene, draw)
                exchanges = conversations.add_notes_to_conversation(scene, asked, draw)
            return Sample(id=key, conversation=conversations.write_conversation_turns(exchanges))
        turns = conversations.write_conversation_turns(self._make_exchanges(scene, draw), images=1)
        return Sample(id=key, images=[make_scene_picture(scene)], conversation=turns)

    def _make_exchanges(self, scene: Scene, draw: Draw) -> list[Exchange]:
        exchanges = conversations.converse_on_caption(scene) if draw.happens(self.captioned) else []
        exchanges += conversations.converse_on_lookups(scene, draw, self.lookups)
        exchanges += conversations.converse_on_questions(
            scene, draw, self.questions, emphasis=self.emphasis
        )
        if self.foreign and draw.happens(self.foreign):
            exchanges += conversations.converse_on_foreign_words(draw)
        if self.mixed:
            exchanges = draw.shuffled(exchanges)
        return exchanges or conversations.converse_on_caption(scene)


class WorldConversations(MLLMDataModule):
    """Conversations about scenes, made when needed: the training data of the model's stages.

    Args:
        material: Whether a conversation begins with the scene's picture ("pictures") or its facts
            in words ("text").
        scenes: Number of training scenes.
        val_scenes: Number of validation scenes.
        test_scenes: Number of test scenes.
        objects: Least and greatest number of objects in a scene.
        captioned: Share of the conversations that have a caption.
        lookups: Number of requests per conversation for all facts about one object.
        questions: Number of questions per conversation.
        emphasis: How many times as often a hard type of question is asked as another.
        mixed: Whether the order is random; else a caption comes first, then the requests, then the
            questions.
        repeated: Share of the text conversations that only repeat words.
        foreign: Share of the conversations that repeat words that the world does not need, so that
            the model can say them: names of digits and of the domains' classes.
        world_seed: Seed of the scenes.
        **kwargs: Options of `MLLMDataModule`.

    Raises:
        ConfigError: An option has an invalid value.
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
            choices = " or ".join(map(repr, get_args(Material)))
            raise ConfigError(f"material is {material!r}; it can be {choices}.")
        shares = {"captioned": captioned, "repeated": repeated, "foreign": foreign}
        for option, share in shares.items():
            if not 0 <= share <= 1:
                raise ConfigError(
                    f"{option} is a share of the conversations, from 0 to 1, not {share}."
                )
        numbers = (("lookups", lookups, 0), ("questions", questions, 0), ("emphasis", emphasis, 1))
        for option, number, least in numbers:
            if number < least:
                raise ConfigError(f"{option} must be at least {least}, not {number}.")
        self.counts = check_datamodule_counts(
            {
                "train": ("scenes", scenes),
                "val": ("val_scenes", val_scenes),
                "test": ("test_scenes", test_scenes),
            }
        )
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


def check_datamodule_counts(options: Mapping[Split, tuple[str, int]]) -> dict[Split, int]:
    """Return the number of samples of each split; refuse splits without samples.

    Args:
        options: Split -> name and value of the option that sets its number of samples.

    Raises:
        ConfigError: A split has no samples; the message names its option.
    """
    for option, count in options.values():
        if count < 1:
            raise ConfigError(
                f"{option} is {count}: each split needs a sample. Set it to 1 or more; to leave a "
                "split out of a run, limit its batches, e.g. --trainer.limit_val_batches 0."
            )
    return {split: count for split, (_, count) in options.items()}


class WorldQuestions(MLLMDataModule):
    """Single questions about scenes, scored by exact match per kind, to test the models.

    A kind is part, type and wording, e.g. "seen/ChooseAttr/0", or "presence/popular". Questions of
    the six types have the boxes and options of a task file (`gqa.py`), and the scene's other
    objects as distractors. They have boxes only where the picture shows the scene. The fields
    of a sample, for probes, are the number of `objects` in its scene and the column and attributes
    of the leftmost one (`leftmost_column` in pixels, `leftmost_color`, ...).

    Args:
        parts: Parts of the examination, see `examination`.
        per_kind: Number of test questions per kind, that is per wording; a multiple of 12 balances
            all answers.
        val_per_kind: Number of validation questions per kind.
        train_per_kind: Number of training questions per kind. The test-bed's own models are trained
            on `WorldConversations`.
        types: Which of the six types are asked, e.g. "QueryAttr"; by default all.
        answers: Right answers of which questions are kept, of as many as are made; by default all.
        world_seed: Seed of the scenes.
        **kwargs: Options of `MLLMDataModule`.

    Raises:
        ConfigError: There is no such part or type, or a split would be empty.
    """

    def __init__(
        self,
        *,
        parts: Sequence[Part] = ("seen", "held_out", "presence", "blind"),
        per_kind: int = 96,
        val_per_kind: int = 24,
        train_per_kind: int = 24,
        types: Sequence[str] | None = None,
        answers: Sequence[str] | None = None,
        world_seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if unknown := set(parts) - set(PARTS):
            raise ConfigError(f"parts has {sorted(unknown)}; there are {', '.join(PARTS)}.")
        known = [str(each) for each in QuestionType]
        if lacking := sorted({*(types or ())} - {*known}):
            raise ConfigError(f"types has {lacking}; there are {', '.join(known)}.")
        self.parts = tuple(parts)
        self.types = tuple(map(QuestionType, known if types is None else types))
        self.answers = None if answers is None else frozenset(answers)
        self.counts = check_datamodule_counts(
            {
                "train": ("train_per_kind", train_per_kind),
                "val": ("val_per_kind", val_per_kind),
                "test": ("per_kind", per_kind),
            }
        )
        self.world_seed = world_seed

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the questions of a split, the kinds in turn: the first batches have all kinds."""
        per_kind = self.counts[split]
        samples: list[Sample] = []
        for part in self.parts:
            asked: Any = {"seed": self.world_seed, "split": split, "types": self.types}
            for question in examination(part, per_kind, **asked):
                samples.append(make_exam_sample(question, part))
        in_turn: list[Sample] = []
        for first in range(per_kind):
            in_turn += samples[first::per_kind]
        if self.answers is None:
            return in_turn
        return [each for each in in_turn if each.conversation[-1].text in self.answers]


def make_exam_sample(question: ExamQuestion, part: Part) -> Sample:
    """Return an exam question as a sample of the data."""
    asked, scene = question.question, question.scene
    options = None
    if asked and asked.other_option:
        options = Options(question.answer, asked.other_option)
    exchanges = [(question.text, question.answer)]
    if part == "text":
        exchanges = conversations.add_notes_to_conversation(
            scene, exchanges, Draw("notes", question.id)
        )
        return Sample(
            id=question.id,
            kind=question.kind,
            conversation=conversations.write_conversation_turns(exchanges),
            options=options,
        )
    things: list[SceneObject] = []
    others: list[SceneObject] = []
    if asked and part != "blind":
        things = [thing for _, thing in find_references_for_gqa(asked, scene) if thing]
        others = [thing for thing in scene.objects if thing not in things]
    return Sample(
        id=question.id,
        kind=question.kind,
        images=[make_scene_picture(scene, blind=part == "blind")],
        conversation=conversations.write_conversation_turns(exchanges, images=1),
        boxes=[Box(*thing.box) for thing in things],
        distractors=[Box(*thing.box) for thing in others],
        options=options,
        fields=scene.fields(),
    )
