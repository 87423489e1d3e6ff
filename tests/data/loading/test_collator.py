import pickle
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

from lightning_mllm.batches import join_images
from lightning_mllm.data import (
    ClassificationPrompt,
    Collator,
    ConversationPrompt,
    PlainPrompt,
    load_processor,
)
from lightning_mllm.data.images import pictures as pictures_module
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.images.geometry import Geometry, apply_geometry, warn_of_no_tiles
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.data.text.prompts import Dialogue
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import IGNORE_INDEX, Sample, Segment, Turn
from tests.conftest import FamilyBuilder, TinyBuilder
from tests.data.conftest import (
    CHECKPOINTS,
    NAMES,
    TEXT_ONLY,
    chat_sample,
    collate,
    decode,
    labelled,
    picture,
    tokens,
)


class TestLoss:
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_loss_is_on_answers_and_their_end_alone(
        self, processor: CheckpointProcessor, side: PaddingSide
    ) -> None:
        batch = collate(
            Collator(processor, ConversationPrompt(), padding_side=side), chat_sample(), TEXT_ONLY
        )

        carrying = batch.labels != IGNORE_INDEX
        assert torch.equal(carrying, batch.spans[Segment.ANSWER])
        assert torch.equal(batch.labels[carrying], batch.input_ids[carrying])
        text = str(processor.tokenizer.decode(batch.labels[0][carrying[0]]))
        end = processor.tokenizer.decode(batch.end_id)
        assert str(text).replace(" ", "") == f"Red.{end}blue{end}"

    def test_the_end_token_stands_once_behind_each_answer(
        self, processor: CheckpointProcessor
    ) -> None:
        batch = collate(Collator(processor, ConversationPrompt()), chat_sample(), TEXT_ONLY)

        in_answers = (batch.labels == batch.end_id).sum(dim=1).tolist()
        assert in_answers == [2, 1]
        assert batch.end_id == processor.tokenizer.eos_token_id

    def test_plain_carries_loss_on_label_and_newline(self, processor: CheckpointProcessor) -> None:
        batch = collate(Collator(processor, PlainPrompt(), NAMES), labelled())

        assert decode(processor, batch, Segment.ANSWER) == "two\n"
        assert batch.input_ids[0, 0] == processor.tokenizer.bos_token_id
        rest = ~(batch.spans[Segment.IMAGE] | batch.spans[Segment.ANSWER])
        assert rest.sum() == 1  # BOS: no question, no system text, no end of sequence


class TestSequence:
    def test_a_sample_has_the_same_tokens_on_either_side_and_in_any_company(
        self, processor: CheckpointProcessor
    ) -> None:
        right, left = (
            Collator(processor, ConversationPrompt(), padding_side=side)
            for side in ("right", "left")
        )
        sample = chat_sample()

        alone = collate(right, sample)
        together = collate(left, TEXT_ONLY, chat_sample("longer", images=4), sample)

        assert tokens(alone, 0) == tokens(together, 2)
        for segment in Segment:
            real = together.attention_mask[2].bool()
            assert torch.equal(alone.spans[segment][0], together.spans[segment][2][real])

    def test_ids_and_pixels_equal_those_of_transformers(
        self, processor: CheckpointProcessor
    ) -> None:
        geometry = Geometry.NATIVE if processor.family.native else Geometry.SQUASH
        sample = Sample(
            id="a",
            images=[picture(28, 28), picture(64, 64)],
            conversation=[Turn("user", "What is it?", images=2), Turn("assistant", "two")],
        )
        content = [{"type": "image", "image": image} for image in sample.images] + [
            {"type": "text", "text": "What is it?"}
        ]

        batch = collate(
            Collator(processor, ConversationPrompt(), geometry=geometry), sample
        ).prompts()

        messages: list[Any] = [{"role": "user", "content": content}]
        theirs: Any = processor.hf.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert torch.equal(batch.input_ids, theirs["input_ids"])
        for name, value in join_images(batch.images).items():
            assert torch.equal(value, theirs[name]), name

    def test_there_is_one_bos(self, processor: CheckpointProcessor) -> None:
        batch = collate(
            Collator(processor, ConversationPrompt(system="Be brief.")), chat_sample(), TEXT_ONLY
        )

        assert (batch.input_ids == processor.tokenizer.bos_token_id).sum(dim=1).tolist() == [1, 1]

    @pytest.mark.parametrize(("family", "chat"), CHECKPOINTS)
    def test_the_model_takes_mixed_batches(
        self, tiny_checkpoint: TinyBuilder, family: str, chat: str
    ) -> None:
        path = tiny_checkpoint(family, chat)  # type: ignore[arg-type]
        collator = Collator(load_processor(path), ConversationPrompt(), padding_side="left")
        model = AutoModelForImageTextToText.from_pretrained(path)

        batch = collate(collator, TEXT_ONLY, chat_sample(images=3), chat_sample("wide", images=1))
        text_batch = collate(collator, TEXT_ONLY)

        with torch.no_grad():
            logits = model(**batch.model_inputs()).logits
            assert model(**text_batch.model_inputs()).logits.isfinite().all()
        assert logits.shape[:2] == batch.input_ids.shape
        assert text_batch.images == ()

    def test_tiles_are_padded_to_the_batch(self, tiny_llava_next: str) -> None:
        collator = Collator(load_processor(tiny_llava_next), PlainPrompt(), NAMES)
        narrow = Sample(id="n", images=[picture(28, 56)], label="two")
        wide = Sample(id="w", images=[picture(200, 210)], label="two")

        batch = collate(collator, narrow, wide)

        assert batch.model_inputs()["pixel_values"].shape == (2, 5, 3, 28, 28)
        assert batch.model_inputs()["image_sizes"].tolist() == [[56, 28], [210, 200]]

    @pytest.mark.parametrize("family", ["llava", "llava_next"])
    def test_pictures_processed_one_by_one_equal_a_batch_of_them(
        self, tiny_checkpoint: TinyBuilder, family: str
    ) -> None:
        processor = load_processor(tiny_checkpoint(family, "vicuna"))  # type: ignore[arg-type]
        sizes = [(28, 56), (200, 210), (90, 30), (28, 28)]
        samples = [
            Sample(id=str(k), images=[picture(*size)], label="two") for k, size in enumerate(sizes)
        ]
        geometry = Geometry.NATIVE if family == "llava_next" else Geometry.CROP

        batch = collate(Collator(processor, PlainPrompt(), NAMES, geometry=geometry), *samples)

        theirs = processor.image_processor([picture(*size) for size in sizes], return_tensors="pt")
        assert set(join_images(batch.images)) == set(theirs)
        for name, value in join_images(batch.images).items():
            assert torch.equal(value, theirs[name]), name

    def test_one_picture_is_open_at_a_time(
        self, vicuna: CheckpointProcessor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: list[weakref.ref[Image.Image]] = []

        def watched(*_: object) -> Image.Image:
            assert (
                sum(image() is not None for image in opened) <= 1
            )  # the one before is let go with the next
            image = picture(40, 40)
            opened.append(weakref.ref(image))
            return image

        monkeypatch.setattr(pictures_module, "open_image_file", watched)
        collate(Collator(vicuna, PlainPrompt(), NAMES), *(labelled(str(k)) for k in range(5)))
        assert len(opened) == 5


class TestGeometry:
    def test_padding_reaches_the_model(self, vicuna: CheckpointProcessor) -> None:
        image = picture(60, 20)
        batch = collate(
            Collator(vicuna, PlainPrompt(), NAMES), Sample(id="a", images=[image], label="two")
        )

        padded = apply_geometry(image, Geometry.PAD, vicuna.image_processor)
        expected = vicuna.image_processor([padded], return_tensors="pt")["pixel_values"]
        assert torch.equal(batch.model_inputs()["pixel_values"], expected)

    def test_tiles_need_a_family_that_makes_them(self, vicuna: CheckpointProcessor) -> None:
        with pytest.raises(ConfigError, match=r"'native' .* needs a family whose processor takes"):
            Collator(vicuna, PlainPrompt(), geometry=Geometry.NATIVE)

    def test_that_tiles_are_native_pictures_where_none_are_made_is_said_once(
        self, tiny_family: FamilyBuilder, tiny_llava_next: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        warn_of_no_tiles.cache_clear()
        for path in (tiny_llava_next, tiny_family("qwen2_vl"), tiny_family("qwen2_vl")):
            Collator(load_processor(path), PlainPrompt(), geometry="tiles")

        assert [text.partition(",")[0] for text in caplog.messages] == [
            "geometry 'tiles' is another word for 'native'"
        ]

    def test_a_square_geometry_with_llava_next_makes_the_picture_square_first(
        self, tiny_llava_next: str
    ) -> None:
        collator = Collator(
            load_processor(tiny_llava_next), PlainPrompt(), NAMES, geometry=Geometry.PAD
        )

        batch = collate(collator, Sample(id="a", images=[picture(90, 30)], label="two"))

        assert batch.model_inputs()["image_sizes"].tolist() == [[90, 90]]


class TestLength:
    def test_of_a_question_that_lists_classes_nothing_is_left_out(
        self, processor: CheckpointProcessor
    ) -> None:
        collator = Collator(processor, ClassificationPrompt(), NAMES, max_length=40)

        with pytest.raises(
            DataError, match=r"'a', which lists 3 classes, does not fit into max_length 40"
        ):
            collate(collator, labelled())

    def test_a_class_name_longer_than_the_context_is_refused(
        self, vicuna: CheckpointProcessor
    ) -> None:
        collator = Collator(vicuna, PlainPrompt(), ("leaf " * 300, "two"), max_length=200)

        with pytest.raises(
            DataError, match=r"class name 'leaf leaf .* tokens, but the context ends at 200"
        ):
            collator.label_set(labelled())

    def test_max_length_and_padding_side_are_checked(self, vicuna: CheckpointProcessor) -> None:
        with pytest.raises(ConfigError, match="max_length is 0"):
            Collator(vicuna, PlainPrompt(), max_length=0)
        with pytest.raises(ConfigError, match="padding_side is 'middle'"):
            Collator(vicuna, PlainPrompt(), padding_side="middle")  # type: ignore[arg-type]


class TestLabels:
    @pytest.mark.parametrize(
        "prompt", [ClassificationPrompt(), PlainPrompt()], ids=["classification", "plain"]
    )
    def test_label_tokens_are_those_behind_the_prompt(
        self, processor: CheckpointProcessor, prompt: ClassificationPrompt | PlainPrompt
    ) -> None:
        collator = Collator(processor, prompt, NAMES)

        labels = collator.label_set(labelled())

        assert labels.names == NAMES
        for name, ids in zip(NAMES, labels.token_ids, strict=True):
            batch = collate(collator, labelled("other", label=name, images=2))
            assert tuple(batch.labels[batch.labels != IGNORE_INDEX].tolist()) == ids
            assert ids[-1] == batch.end_id
            assert batch.targets.tolist() == [NAMES.index(name)]

    def test_label_tokens_take_one_question_with_one_name_each(
        self, vicuna: CheckpointProcessor
    ) -> None:
        listed = []

        class Counting(ClassificationPrompt):
            def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
                listed.append(tuple(label_names))
                return super().dialogue(sample, label_names, epoch)

        Collator(vicuna, Counting(), NAMES).label_set(labelled())

        assert listed == [(name,) for name in NAMES]  # all names in each question would take C x C

    def test_without_labels_there_are_no_targets(self, vicuna: CheckpointProcessor) -> None:
        assert collate(Collator(vicuna, ConversationPrompt()), chat_sample()).targets.tolist() == [
            -1
        ]

    def test_an_unknown_label_is_refused(self, vicuna: CheckpointProcessor) -> None:
        with pytest.raises(DataError, match="'seven' of sample 'a' is none of the 3 classes"):
            collate(Collator(vicuna, PlainPrompt(), NAMES), labelled(label="seven"))


class TestRefusals:
    @pytest.mark.parametrize(
        "turns",
        [
            [Turn("user", "See <image> here", images=1), Turn("assistant", "yes")],
            [Turn("user", "Which?", "Say </s>", images=1), Turn("assistant", "yes")],
            [Turn("user", "Which?", images=1), Turn("assistant", "yes<s>")],
        ],
        ids=["question", "instruction", "answer"],
    )
    def test_special_tokens_in_texts_are_refused(
        self, vicuna: CheckpointProcessor, turns: Sequence[Turn]
    ) -> None:
        sample = Sample(id="odd", images=[picture()], conversation=turns)

        with pytest.raises(DataError, match=r"of sample 'odd' contains .* special token"):
            collate(Collator(vicuna, ConversationPrompt()), sample)

    def test_images_and_placeholders_must_match(self, vicuna: CheckpointProcessor) -> None:
        sample = replace(chat_sample(), images=[picture()])

        with pytest.raises(
            DataError, match="have 2 image placeholders, but the sample has 1 images"
        ):
            collate(Collator(vicuna, ConversationPrompt()), sample)

    def test_answers_must_end_alike(self, vicuna: CheckpointProcessor) -> None:
        class Mixed(ConversationPrompt):
            def dialogue(self, sample: Sample, label_names: Sequence[str], epoch: int) -> Dialogue:
                return replace(
                    super().dialogue(sample, label_names, epoch), plain=sample.id == "plain"
                )

        with pytest.raises(DataError, match="'text' and 'plain' end with different tokens"):
            collate(Collator(vicuna, Mixed()), TEXT_ONLY, replace(TEXT_ONLY, id="plain"))

    def test_a_bad_image_is_named(self, vicuna: CheckpointProcessor) -> None:
        collator = Collator(vicuna, PlainPrompt(), NAMES)

        with pytest.raises(DataError, match="Image 1 of sample 'tiny': is 1 x 1 pixels"):
            collate(collator, Sample(id="tiny", images=[Image.new("RGB", (1, 1))], label="two"))
        with pytest.raises(DataError, match=r"gone\.png \(sample 'gone'\): does not exist"):
            collate(collator, Sample(id="gone", images=[Path("gone.png")], label="two"))


def test_a_collator_can_be_sent_to_workers(processor: CheckpointProcessor) -> None:
    collator = Collator(processor, ConversationPrompt())
    batch = collate(collator, chat_sample())

    again = collate(pickle.loads(pickle.dumps(collator)), chat_sample())

    assert torch.equal(batch.input_ids, again.input_ids)
