"""Of a conversation that is too long, whole exchanges are left."""

import csv
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_mllm.batches import MultimodalBatch
from lightning_mllm.data import Collator, ConversationPrompt, PlainPrompt
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.models.module import MLLMModule
from lightning_mllm.run import Run
from lightning_mllm.trainer import Trainer
from lightning_mllm.types import IGNORE_INDEX, Sample, Segment, Turn
from tests.data.conftest import collate, decode, picture, tokens
from tests.data.loading.test_datamodule import Memory

PROMPT = ConversationPrompt(system="Be brief.")
ANSWERS = ("one", "two", "three", "four", "five", "six")


def talk(name: str = "talk", pictures: Sequence[int] = (0, 3, 5)) -> Sample:
    """Six exchanges, those of the numbers in `pictures` with a picture of its own."""
    images: list[Image.Image] = []
    turns = []
    for number, answer in enumerate(ANSWERS):
        shown = number in pictures
        images += [picture(30 + 20 * number, 40)] * shown
        turns += [
            Turn("user", f"Which is number {number}?", images=int(shown)),
            Turn("assistant", answer),
        ]
    return Sample(id=name, images=images, conversation=turns)


def last_exchanges(sample: Sample, first: int) -> Sample:
    before, rest = sample.conversation[: 2 * first], sample.conversation[2 * first :]
    return replace(
        sample, images=sample.images[sum(turn.images for turn in before) :], conversation=rest
    )


def length(processor: CheckpointProcessor, sample: Sample) -> int:
    return len(tokens(collate(Collator(processor, PROMPT), sample), 0))


def assert_same(batch: MultimodalBatch, other: MultimodalBatch) -> None:
    assert torch.equal(batch.input_ids, other.input_ids)
    assert torch.equal(batch.labels, other.labels)
    assert batch.image_counts == other.image_counts
    for segment in Segment:
        assert torch.equal(batch.spans[segment], other.spans[segment]), segment
    for image, same in zip(batch.images, other.images, strict=True):
        for name, value in same.items():
            assert torch.equal(image[name], value), name


@pytest.mark.parametrize("first", range(6))
def test_what_is_left_is_what_its_last_exchanges_are_alone(
    processor: CheckpointProcessor, first: int
) -> None:
    sample = talk()
    rest = last_exchanges(sample, first)
    limit = length(processor, rest)

    for spare in (0, 3):  # an exchange takes more than three tokens
        batch = collate(Collator(processor, PROMPT, max_length=limit + spare), sample)
        assert_same(batch, collate(Collator(processor, PROMPT), rest))


def test_no_answer_in_the_loss_has_lost_its_question(vicuna: CheckpointProcessor) -> None:
    sample = talk(pictures=())
    shortest = length(vicuna, last_exchanges(sample, 5))

    for limit in range(shortest, length(vicuna, sample), 7):
        batch = collate(Collator(vicuna, PROMPT, max_length=limit), sample)
        left = sum(answer in decode(vicuna, batch, Segment.ANSWER) for answer in ANSWERS)
        questions = [f"Which is number {number}?" for number in range(6 - left, 6)]
        assert decode(vicuna, batch, Segment.QUESTION).split() == " ".join(questions).split()
        assert batch.input_ids.shape[1] <= limit


def test_a_sample_without_any_of_its_images_is_left_out(vicuna: CheckpointProcessor) -> None:
    sample = talk(pictures=(0,))
    collator = Collator(vicuna, PROMPT, max_length=length(vicuna, sample) - 1)

    assert collator.fit(sample, [collator.find_image_text((30, 40))]) is None
    with pytest.raises(
        DataError,
        match=r"No exchange of sample 'talk' fits into max_length \d+ with the pictures",
    ):
        collate(collator, sample)


class TestSetUp:
    limit = 90

    def set_up(self, checkpoint: str, *odd: Sample, **options: object) -> Memory:
        fits = Sample(id="fits", conversation=[Turn("user", "Which?"), Turn("assistant", "two")])
        module = Memory(
            [fits, *odd], [fits], checkpoint=checkpoint, max_length=self.limit, **options
        )
        module.setup("fit")
        return module

    def test_what_is_left_out_is_counted_and_said(
        self, tiny_llava: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        long = Sample(
            id="question", conversation=[Turn("user", "word " * 90), Turn("assistant", "two")]
        )

        with caplog.at_level(logging.WARNING):
            module = self.set_up(tiny_llava, long, talk("some"), talk("none", (0,)))

        assert [sample.id for sample in module.samples["train"]] == ["fits", "some"]
        (exchanges,) = {
            6 - int(batch.labels.eq(batch.end_id).sum()) for batch in self._batches(module, "some")
        }
        assert module.left_out["train"].metrics("train") == {
            "train/samples_left_out": 2.0,
            "train/exchanges_left_out": exchanges,
            "train/answers_truncated": 0.0,
        }
        assert exchanges > 0
        assert (
            f"of 4 samples 2 are left out, 1 lose their first exchanges ({exchanges} in all)"
            in caplog.text
        )
        assert module.left_out["val"].metrics("val") == {}

    def test_a_fit_logs_what_is_left_out(
        self, tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False}
        trainer = Trainer(run=Run(wandb="disabled"), max_steps=2, **quiet)
        long = Sample(
            id="question", conversation=[Turn("user", "word " * 90), Turn("assistant", "two")]
        )
        data = self.set_up(tiny_llava, long, talk("some"), batch_size=1)

        trainer.fit(MLLMModule(tiny_llava, warmup_ratio=0), datamodule=data)

        with Path(trainer.default_root_dir, "metrics.csv").open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["train/samples_left_out"]]
        exchanges = data.left_out["train"].exchanges
        logged = {
            name: float(value) for row in rows for name, value in row.items() if "left_out" in name
        }
        assert logged == {"train/samples_left_out": 1.0, "train/exchanges_left_out": exchanges}
        assert [row["step"] for row in rows] == ["0"]  # where the fit begins

    def _batches(self, module: Memory, name: str) -> list[MultimodalBatch]:
        return [
            collate(module.collator, sample)
            for sample in module.samples["train"]
            if sample.id == name
        ]

    def test_a_split_of_which_nothing_fits_is_refused(self, tiny_llava: str) -> None:
        long = Sample(
            id="question", conversation=[Turn("user", "word " * 90), Turn("assistant", "two")]
        )
        with pytest.raises(
            DataError, match="No sample of the 'train' split fits into max_length 90"
        ):
            Memory([long], [long], checkpoint=tiny_llava, max_length=self.limit).setup("fit")

    def test_long_answers_are_refused_left_out_or_truncated(self, tiny_llava: str) -> None:
        long = Sample(
            id="long", conversation=[Turn("user", "Which?"), Turn("assistant", "one two " * 60)]
        )

        with pytest.raises(
            DataError, match=r"'long' has \d+ tokens .* set `long_answers` to leave_out or truncate"
        ):
            self.set_up(tiny_llava, long)
        assert len(self.set_up(tiny_llava, long, long_answers="leave_out").samples["train"]) == 1
        module = self.set_up(tiny_llava, long, long_answers="truncate")
        fits, cut = module.samples["train"]
        batch = collate(module.collator, fits, cut)
        text = module.processor.tokenizer.decode(batch.labels[1][batch.labels[1] != IGNORE_INDEX])
        assert len(text) > 60
        assert ("one two " * 60).startswith(
            str(text).strip()
        )  # and so without the token that ends an answer
        assert batch.input_ids.shape[1] == self.limit
        assert batch.end_id == module.processor.tokenizer.eos_token_id
        assert module.left_out["train"].answers == 1

    def test_an_answer_that_is_scored_whole_is_not_truncated(self, tiny_llava: str) -> None:
        turns = [Turn("user", "Which?"), Turn("assistant", "one two " * 60)]
        with pytest.raises(
            DataError, match=r"its last answer does not fit.* set `long_answers` to leave_out"
        ):
            self.set_up(
                tiny_llava,
                Sample(id="long", conversation=turns, kind="count"),
                long_answers="truncate",
            )


def test_a_plain_answer_can_be_truncated(vicuna: CheckpointProcessor) -> None:
    sample = Sample(
        id="a",
        images=[picture()],
        conversation=[Turn("user", "?", images=1), Turn("assistant", "o " * 90)],
    )

    batch = collate(Collator(vicuna, PlainPrompt(), max_length=40, long_answers="truncate"), sample)

    assert batch.spans[Segment.ANSWER].sum() == 40 - 1 - 16  # BOS and the image


def test_long_answers_is_checked(vicuna: CheckpointProcessor) -> None:
    with pytest.raises(ConfigError, match="long_answers is 'drop'; it can be"):
        Collator(vicuna, PlainPrompt(), long_answers="drop")  # type: ignore[arg-type]
