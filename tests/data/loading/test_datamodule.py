from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from lightning_mllm.data import (
    ClassificationPrompt,
    ConversationPrompt,
    Geometry,
    MLLMDataModule,
    PlainPrompt,
    Split,
)
from lightning_mllm.errors import CheckpointError, ConfigError, DataError
from lightning_mllm.types import LazyImage, Sample, Segment, Turn
from tests.data.conftest import chat_sample, picture
from tests.support.datamodule_contract import DataModuleContract

TRAIN = [
    Sample(id=f"train-{k}", images=[picture(30 + k, 20)], label=("two", "red_one")[k % 2])
    for k in range(10)
]
OTHER = [Sample(id=f"other-{k}", images=[picture(30, 20 + k)], label="two") for k in range(6)]


class Memory(MLLMDataModule):
    """Samples given by hand: the whole of a dataset class of one's own."""

    def __init__(
        self, train: Sequence[Sample] = TRAIN, other: Sequence[Sample] = OTHER, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.train, self.other = train, other

    def load(self, split: Split) -> Sequence[Sample]:
        if split == "train":
            return self.train
        return [replace(sample, id=f"{split}-{sample.id}") for sample in self.other]


class TestMemory(DataModuleContract):
    def make(self, checkpoint: str, **options: Any) -> Memory:
        return Memory(checkpoint=checkpoint, **options)


class TestDefaults:
    def test_labels_are_asked_for_and_conversations_taken_as_they_are(
        self, tiny_llava: str
    ) -> None:
        labelled = Memory(checkpoint=tiny_llava)
        labelled.setup("fit")
        chats = Memory([chat_sample()], [chat_sample("val")], checkpoint=tiny_llava)
        chats.setup("fit")

        assert isinstance(labelled.collator.prompt, ClassificationPrompt)
        assert isinstance(chats.collator.prompt, ConversationPrompt)
        assert chats.label_set is None

    def test_training_can_ask_otherwise_than_evaluation(self, tiny_llava: str) -> None:
        module = Memory(
            checkpoint=tiny_llava,
            prompt=ClassificationPrompt(),
            train_prompt=PlainPrompt(),
            geometry="pad",
            train_geometry="crop",
        )
        module.setup("fit")

        training, evaluation = (
            next(iter(module.train_dataloader())),
            next(iter(module.val_dataloader())),
        )

        assert not training.spans[Segment.QUESTION].any()
        assert evaluation.spans[Segment.QUESTION].any(dim=1).all()
        assert module.label_set == module.eval_collator.label_set(TRAIN[0])
        assert (module.collator.geometry, module.eval_collator.geometry) == (
            Geometry.CROP,
            Geometry.PAD,
        )

    def test_prompts_of_an_epoch_are_drawn_for_it(self, tiny_llava: str) -> None:
        module = Memory(checkpoint=tiny_llava, batch_size=10)
        module.setup("fit")
        texts = set()
        for epoch in range(6):
            loader = module.train_dataloader()
            loader.batch_sampler.set_epoch(epoch)
            batch = next(iter(loader))
            row = batch.sample_ids.index("train-0")
            texts.add(tuple(batch.input_ids[row].tolist()))

        assert len(texts) == 2  # two classes, two orders

    def test_lengths_are_guessed_without_the_label(self, tiny_llava: str) -> None:
        """Else a batch would hold only classes with names of like length."""
        module = Memory(checkpoint=tiny_llava, batch_size=5)
        module.setup("fit")
        kinds = [set(batch.targets.tolist()) for batch in module.train_dataloader()]
        assert kinds == [{0, 1}, {0, 1}]


class TestKinds:
    def test_they_are_those_of_the_evaluated_splits_that_are_set_up(self, tiny_llava: str) -> None:
        rows = {
            kind: replace(chat_sample(kind or "none"), kind=kind)
            for kind in ("b", "a", None, "train only")
        }
        module = Memory(
            [rows["train only"]], [rows["b"], rows["a"], rows[None]], checkpoint=tiny_llava
        )
        found = [module.kinds]

        module.setup("fit")
        found.append(module.kinds)
        module.other = [replace(rows["a"], kind="c")]
        module.setup("test")
        found.append(module.kinds)

        assert found == [(), ("a", "b"), ("a", "b", "c")]

    def test_a_batch_carries_them(self, tiny_llava: str) -> None:
        samples = [
            replace(chat_sample(str(k)), kind=kind) for k, kind in enumerate(("b", None, "a"))
        ]
        module = Memory(samples, samples, checkpoint=tiny_llava)
        module.setup("fit")

        (batch,) = module.val_dataloader()

        assert batch.kinds == batch.to("cpu").kinds == batch.prompts().kinds == ("b", None, "a")
        assert [piece.kinds for piece in batch.split(2)] == [("b", None), ("a",)]

    def test_pictures_are_not_drawn_to_find_them(self, tiny_llava: str) -> None:
        def draw() -> Image.Image:
            drawn.append(1)
            return picture(30, 30)

        drawn: list[int] = []
        sample = replace(chat_sample("lazy", images=1), images=[LazyImage((30, 30), draw)])
        many = [replace(sample, id=str(k), kind="a") for k in range(50)]
        without = Memory(
            many[:1], [replace(each, kind=None) for each in many], checkpoint=tiny_llava
        )
        without.setup("fit")
        before = len(drawn)
        drawn.clear()
        Memory(many[:1], many, checkpoint=tiny_llava).setup("fit")

        assert len(drawn) == before < 50  # those that are written out to see whether they fit


class TestErrors:
    def expect(
        self, error: type[Exception], message: str, stage: str = "fit", **options: Any
    ) -> None:
        with pytest.raises(error, match=message):
            Memory(**options).setup(stage)

    def test_duplicate_ids(self, tiny_llava: str) -> None:
        twins = [TRAIN[0], TRAIN[1], TRAIN[0]]
        self.expect(
            DataError,
            "id 'train-0' occurs twice in the 'train' split",
            train=twins,
            checkpoint=tiny_llava,
        )

    @pytest.mark.parametrize(
        ("train", "other", "split"), [([], OTHER, "train"), (TRAIN, [], "val")]
    )
    def test_empty_splits(
        self, tiny_llava: str, train: list[Sample], other: list[Sample], split: str
    ) -> None:
        self.expect(
            DataError,
            f"The '{split}' split of Memory is empty",
            train=train,
            other=other,
            checkpoint=tiny_llava,
        )

    def test_unknown_labels(self, tiny_llava: str) -> None:
        other = [replace(OTHER[0], label="seven")]
        message = (
            "label 'seven' of sample 'test-other-0' in the 'test' split is none of the 2 classes "
            ".*: red one, two"
        )
        self.expect(DataError, message, stage="test", other=other, checkpoint=tiny_llava)

    def test_a_kind_beside_a_label_that_is_asked_for(self, tiny_llava: str) -> None:
        other = [OTHER[0], replace(OTHER[1], kind="colour")]
        message = (
            "'val-other-1' of the 'val' split has the kind 'colour', but is scored by its label"
        )
        self.expect(DataError, message, other=other, checkpoint=tiny_llava)

    @pytest.mark.parametrize(
        ("answer", "kind", "message"),
        [
            ("'.'", "colour", "nothing is left of it"),
            ("red", " ", "the kind ' ', which is not a name"),
        ],
    )
    def test_a_kind_that_cannot_be_scored(
        self, tiny_llava: str, answer: str, kind: str, message: str
    ) -> None:
        sample = replace(
            chat_sample(),
            conversation=[Turn("user", "Which?", images=2), Turn("assistant", answer)],
        )
        other = [replace(sample, kind=kind)]
        self.expect(
            DataError, f"'val-chat' .*{message}", train=[sample], other=other, checkpoint=tiny_llava
        )

    def test_missing_labels(self, tiny_llava: str) -> None:
        train = [*TRAIN, replace(OTHER[0], label=None)]
        self.expect(
            DataError,
            "'other-0' of the 'train' split has no label",
            train=train,
            checkpoint=tiny_llava,
        )

    def test_class_names_of_different_splits_that_cannot_be_told_apart(
        self, tiny_llava: str
    ) -> None:
        other = [replace(OTHER[0], label="red one")]
        self.expect(
            DataError, "'red one' and 'red_one' are the same", other=other, checkpoint=tiny_llava
        )

    def test_a_class_name_longer_than_the_context(self, tiny_llava: str) -> None:
        train = [*TRAIN, replace(OTHER[0], label="leaf " * 600)]
        self.expect(
            DataError,
            "class name 'leaf leaf .* the context ends at 1024",
            train=train,
            checkpoint=tiny_llava,
        )

    def test_a_sample_that_cannot_fit_shows_at_set_up(self, tiny_llava: str) -> None:
        self.expect(
            DataError, "does not fit into max_length 40", checkpoint=tiny_llava, max_length=40
        )

    def test_a_maximum_beyond_the_context(self, tiny_llava: str) -> None:
        self.expect(
            ConfigError,
            r"max_length is 4096, but .* 1024 tokens",
            checkpoint=tiny_llava,
            max_length=4096,
        )

    def test_a_checkpoint_that_is_none(self) -> None:
        self.expect(CheckpointError, "No multimodal checkpoint", checkpoint="./no/such/folder")

    @pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
    def test_batches_that_processes_cannot_share(self, tiny_llava: str, name: str) -> None:
        options: dict[str, Any] = {name: 5}
        module = Memory(checkpoint=tiny_llava, **options)
        module.trainer = SimpleNamespace(world_size=2, global_rank=0)  # type: ignore[assignment]
        with pytest.raises(ConfigError, match=rf"{name} is 5, shared by 2 processes"):
            module.setup("fit")
