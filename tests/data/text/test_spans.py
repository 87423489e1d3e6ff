import pytest
import torch
from transformers import AutoModelForImageTextToText

from lightning_mllm.data import (
    VICUNA_SYSTEM,
    ClassificationPrompt,
    Collator,
    ConversationPrompt,
    PlainPrompt,
    load_processor,
)
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.data.loading.batch import PaddingSide
from lightning_mllm.evaluation import Generation, Likelihood
from lightning_mllm.models.tiny import TinyFamily
from lightning_mllm.types import Segment
from tests.conftest import TinyBuilder
from tests.data.conftest import NAMES, TEXT_ONLY, chat_sample, collate, decode, labelled


class TestSpans:
    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("images", [0, 1, 3])
    def test_every_span_decodes_to_its_text(
        self, processor: CheckpointProcessor, side: PaddingSide, images: int
    ) -> None:
        prompt = ClassificationPrompt(task="plant leaf diseases", system=VICUNA_SYSTEM)
        collator = Collator(processor, prompt, NAMES, padding_side=side)
        sample, other = labelled(images=images, label="Bell pepper leaf"), labelled("b", images=4)

        batch = collate(collator, sample, other)

        question = prompt.dialogue(sample, NAMES, 0).turns[0].text
        assert decode(processor, batch, Segment.QUESTION).strip() == question
        assert decode(processor, batch, Segment.INSTRUCTION).strip() == prompt.instruction
        assert decode(processor, batch, Segment.SYSTEM).strip() == VICUNA_SYSTEM
        answer = batch.input_ids[0][batch.spans[Segment.ANSWER][0]]
        assert str(processor.tokenizer.decode(answer[:-1])).strip() == "Bell pepper leaf"
        assert answer[-1] == batch.end_id
        shown = batch.input_ids == processor.feature_token_id
        assert torch.equal(batch.spans[Segment.IMAGE], shown)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_in_a_conversation_each_span_has_the_texts_of_all_turns(
        self, processor: CheckpointProcessor, side: PaddingSide
    ) -> None:
        batch = collate(
            Collator(processor, ConversationPrompt(), padding_side=side),
            chat_sample(images=3),
            TEXT_ONLY,
        )

        question = decode(processor, batch, Segment.QUESTION)
        assert question.startswith("Which colour? Rot, grün — oder 赤?")
        assert question.rstrip().endswith("And the other one")
        assert decode(processor, batch, Segment.INSTRUCTION).strip() == "Answer with one word."
        assert decode(processor, batch, Segment.QUESTION, row=1).strip() == "Is there any?"
        assert not batch.spans[Segment.IMAGE][1].any()

    def test_segments_do_not_overlap(self, processor: CheckpointProcessor) -> None:
        prompt = ClassificationPrompt(system="Be brief.")
        batch = collate(Collator(processor, prompt, NAMES), labelled())

        whole = (
            "system",
            "image",
            "question",
            "instruction",
            "answer",
        )  # the others are parts of these, or lie across
        parts = [batch.spans[Segment(name)] for name in whole]
        assert torch.stack(parts).sum(dim=0).max() == 1

    def test_last_is_the_position_before_the_last_answer(
        self, processor: CheckpointProcessor
    ) -> None:
        batch = collate(Collator(processor, ConversationPrompt()), chat_sample(), TEXT_ONLY)

        for row in range(2):
            (last,) = batch.spans[Segment.LAST][row].nonzero().flatten().tolist()
            behind = batch.input_ids[row, last + 1 :][batch.attention_mask[row, last + 1 :].bool()]
            assert str(processor.tokenizer.decode(behind[:-1])).strip() == ("blue", "no")[row]
            assert not batch.spans[Segment.ANSWER][row, last]

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_without_a_question_last_is_the_last_image_token(
        self, processor: CheckpointProcessor, side: PaddingSide
    ) -> None:
        batch = collate(
            Collator(processor, PlainPrompt(), NAMES, padding_side=side),
            labelled(),
            labelled("b", images=3),
        )

        assert batch.spans[Segment.LAST].sum(dim=1).tolist() == [1, 1]
        prompts = batch.prompts()
        for row in range(2):
            before = int(batch.spans[Segment.LAST][row].nonzero())
            assert batch.spans[Segment.IMAGE][row, before]
            assert batch.spans[Segment.ANSWER][row, before + 1]
            assert prompts.spans[Segment.IMAGE][row].sum() == batch.spans[Segment.IMAGE][row].sum()

    @pytest.mark.parametrize("family", ["llava", "llava_next"])
    def test_both_scorers_answer_without_a_question(
        self, tiny_checkpoint: TinyBuilder, family: TinyFamily
    ) -> None:
        path = tiny_checkpoint(family, "vicuna")
        processor = load_processor(path)
        collator = Collator(processor, PlainPrompt(), NAMES)
        model = AutoModelForImageTextToText.from_pretrained(path).eval()
        batch, labels = (
            collate(collator, labelled(), labelled("b", images=2)),
            collator.label_set(labelled()),
        )

        for scorer in (Generation(), Likelihood()):
            prediction = scorer.predict(model, processor.tokenizer, batch, labels)
            assert prediction.predicted.shape == (2,)

    def test_the_prompts_of_a_batch_end_where_generation_starts(
        self, processor: CheckpointProcessor
    ) -> None:
        batch = collate(
            Collator(processor, ConversationPrompt()), chat_sample(), TEXT_ONLY
        ).prompts()

        assert batch.spans[Segment.LAST][:, -1].all()
