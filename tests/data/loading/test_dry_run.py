"""Set-up covers every sample: whatever fails in an epoch has failed before it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoModelForImageTextToText

from lightning_mllm.data import (
    ClassificationPrompt,
    Collator,
    ConversationPrompt,
    PlainPrompt,
    load_processor,
)
from lightning_mllm.data.images.inspection import inspect_image_files
from lightning_mllm.data.loading.bad_rows import BadRows
from lightning_mllm.data.loading.dry_run import dry_run_suspects
from lightning_mllm.data.loading.split_scan import SplitScan
from lightning_mllm.errors import DataError
from lightning_mllm.types import LazyImage, Sample, Turn
from tests.conftest import FamilyBuilder
from tests.data.conftest import collate, picture
from tests.data.loading.test_bad_rows import said
from tests.data.loading.test_datamodule import TRAIN, Memory
from tests.data.text.test_sentencepiece import llama_tokenizer

NO_FILES = inspect_image_files([])
THIN = [(900, 6), (6, 900), (1000, 2), (2, 1000), (2, 2), (3, 997)]


def problems(collator: Collator, *samples: Sample) -> list[str]:
    bad = BadRows()
    dry_run_suspects(SplitScan(samples, "train", collator, bad, labelled=False), NO_FILES)
    return [row.problem for row in bad]


def drawn(size: tuple[int, int], log: list[tuple[int, int]]) -> LazyImage:
    def draw() -> Image.Image:
        log.append(size)
        return picture(*size)

    return LazyImage(size, draw)


def test_an_answer_of_few_bytes_and_many_tokens_is_found_among_longer_ones(tiny_llava: str) -> None:
    long = [
        said(str(k), answer="one two three four five " * 12) for k in range(20)
    ]  # words that are one token each
    bad = said("bad", answer="ÿ" * 120)

    with pytest.raises(DataError, match=r"Sample 'bad' has 2\d\d tokens"):
        Memory([*long, bad], long, checkpoint=tiny_llava, max_length=200).setup("fit")


def test_a_character_that_the_tokenizer_reads_otherwise_is_found_anywhere(tiny_llava: str) -> None:
    processor = load_processor(tiny_llava)
    processor.hf.tokenizer = llama_tokenizer()
    processor.config.image_token_index = 3
    longer = [said(str(k), "Which one is it, and which is none? " * 4) for k in range(9)]

    (problem,) = problems(
        Collator(processor, ConversationPrompt()), *longer, said("blank", "Fill in \u2581.")
    )

    assert "of the question of sample 'blank' decode to" in problem


def test_texts_of_all_kinds_pass_or_are_refused_as_in_an_epoch(tiny_llava: str) -> None:
    collator = Collator(load_processor(tiny_llava), ConversationPrompt(), max_length=200)
    texts = [
        "\0",
        "\x1b[31m",
        "שלום",
        "👩‍👩‍👧",
        "x" * 500,
        "e\u0301",
        "\u200b",
        "\ufeff",
        "½",
        "a\u2028b",
        "\ud7ff",
        "://",
        "\n.",
    ]
    samples = [
        said(f"{k}\n{side}", **{side: text})
        for k, text in enumerate(texts)
        for side in ("question", "answer")
    ]

    scan = SplitScan(samples, "train", collator, BadRows(), labelled=False)
    dry_run_suspects(scan, NO_FILES)

    assert scan.too_long == [samples.index(said("4\nquestion", "x" * 500))]
    for index, sample in enumerate(samples):
        if index in scan.facts:
            collate(collator, sample)
        else:
            with pytest.raises(DataError):
                collate(collator, sample)


def test_an_answer_whose_end_is_another_token_is_found(tiny_llava: str) -> None:
    collator = Collator(load_processor(tiny_llava), PlainPrompt())
    collator._encoder._tokenizer.add_tokens([".\n"])

    (problem,) = problems(collator, said("a"), said("b"), said("dot", answer="two."), said("c"))

    assert "The answers of samples 'a' and 'dot' end with different tokens" in problem
    with pytest.raises(DataError, match="end with different tokens"):
        collate(collator, said("a"), said("dot", answer="two."))


@pytest.mark.parametrize("size", THIN)
def test_a_strip_has_as_many_tokens_as_the_model_makes_features(
    tiny_llava_next: str, size: tuple[int, int]
) -> None:
    model = AutoModelForImageTextToText.from_pretrained(tiny_llava_next)
    collator = Collator(load_processor(tiny_llava_next), ClassificationPrompt(), ("two",))

    batch = collate(collator, replace(TRAIN[0], images=[picture(*size)], label="two"))

    assert model(**batch.model_inputs()).logits.isfinite().all()


def test_one_picture_of_each_number_of_views_is_opened_and_the_extremes(
    tiny_llava_next: str,
) -> None:
    log: list[tuple[int, int]] = []
    sizes = [
        (28, 28),
        (56, 56),
        (84, 28),
        (40, 30),
        (41, 30),
        (42, 31),
        (43, 31),
        (44, 32),
        (300, 3),
        (3, 300),
        (9, 9),
    ]
    samples = [
        replace(TRAIN[0], id=str(k), images=[drawn(size, log)]) for k, size in enumerate(sizes)
    ]
    collator = Collator(load_processor(tiny_llava_next), ClassificationPrompt(), ("two",))
    bad = BadRows()

    dry_run_suspects(SplitScan(samples, "train", collator, bad, labelled=True), NO_FILES)

    assert not len(bad)
    assert {(300, 3), (3, 300), (9, 9)} <= set(log)
    assert {collator.count_views(size) for size in log} == {
        collator.count_views(size) for size in sizes
    }
    assert len(log) < len(sizes)


def test_texts_that_surely_fit_are_not_tokenised(
    tiny_llava: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    fit = Collator.fit

    def counted(self: Collator, sample: Sample, image_tokens: Any) -> Any:
        tried.append(sample.id)
        return fit(self, sample, image_tokens)

    monkeypatch.setattr(Collator, "fit", counted)
    samples = [said(str(k), f"Which of the {k}?") for k in range(200)]

    Memory(samples, samples[:1], checkpoint=tiny_llava).setup("fit")

    assert len(tried) < 10


@pytest.fixture
def three_files(tmp_path: Path) -> Iterator[list[Path]]:
    paths = [tmp_path / f"{k}.png" for k in range(3)]
    for path in paths:
        picture().save(path)
    yield paths


def test_each_sample_of_a_bad_file_is_refused(tiny_llava: str, three_files: list[Path]) -> None:
    three_files[1].write_bytes(b"")
    samples = [replace(TRAIN[k], images=[three_files[k % 3]]) for k in range(9)]
    module = Memory(samples, checkpoint=tiny_llava, on_bad_row="skip")

    module.setup("fit")

    assert [sample.id for sample in module.samples["train"]] == [
        f"train-{k}" for k in range(9) if k % 3 != 1
    ]


def test_a_context_too_short_for_any_sample_is_said_once_even_beside_bad_rows(
    tiny_llava: str, three_files: list[Path]
) -> None:
    three_files[1].write_bytes(b"")
    samples = [replace(TRAIN[k], images=[three_files[k % 3]]) for k in range(9)]

    with pytest.raises(DataError, match=r"^A question that lists 2 classes does not fit") as caught:
        Memory(samples, checkpoint=tiny_llava, max_length=40).setup("fit")

    assert "\n" not in str(caught.value)


def test_a_picture_that_no_processor_takes_is_refused_before_training(
    tiny_family: FamilyBuilder,
) -> None:
    collator = Collator(load_processor(tiny_family("qwen2_vl")), ConversationPrompt())
    log: list[tuple[int, int]] = []
    turns = [Turn("user", "Which?", images=1), Turn("assistant", "one")]
    strip, other = (
        Sample(id=name, images=[drawn(size, log)], conversation=turns)
        for name, size in (("strip", (900, 4)), ("other", (60, 40)))
    )

    (problem,) = problems(collator, strip, other)

    assert "900 x 4 pixels is too long and narrow for Qwen2VLProcessor" in problem
    assert "Sample 'strip' has it" in problem
