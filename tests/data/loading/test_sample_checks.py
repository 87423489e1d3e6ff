"""What is wrong with a dataset shows at set-up, not in the middle of training."""

from dataclasses import replace
from pathlib import Path

import pytest

from lightning_mllm.data import ClassificationPrompt, Collator, Geometry, load_processor
from lightning_mllm.data.images.inspection import inspect_image_files
from lightning_mllm.data.loading.bad_rows import BadRows
from lightning_mllm.data.loading.check_manifest import check_manifest_folder
from lightning_mllm.data.loading.dry_run import dry_run_suspects
from lightning_mllm.data.loading.lazy import LazySamples
from lightning_mllm.data.loading.sample_checks import check_sample_labels
from lightning_mllm.data.loading.split_scan import SplitScan
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample, Segment, Turn
from tests.data.conftest import collate, picture, tokens
from tests.data.loading.test_datamodule import OTHER, TRAIN, Memory

NO_FILES = inspect_image_files([])


def conversation(name: str, question: str = "Which?", answer: str = "two") -> Sample:
    return Sample(id=name, conversation=[Turn("user", question), Turn("assistant", answer)])


@pytest.mark.parametrize(
    "bad",
    [conversation("bad", "What is <s> in HTML?"), conversation("bad", answer="See <image>")],
    ids=["user", "gpt"],
)
def test_special_tokens_in_any_text_are_found(tiny_llava: str, bad: Sample) -> None:
    samples = [
        conversation("long", "word " * 50),
        bad,
        *(conversation(str(k), "word " * 40) for k in range(5)),
    ]
    with pytest.raises(
        DataError,
        match=r"of sample 'bad' contains '<.*>', which the model reads as a special token",
    ):
        Memory(samples, samples[:1], checkpoint=tiny_llava).setup("fit")


def test_turns_that_do_not_alternate_are_found(tiny_llava: str) -> None:
    bad = Sample(id="bad", conversation=[Turn("assistant", "two")])
    samples = [conversation(str(k), "word " * 40) for k in range(5)]
    with pytest.raises(DataError, match="turns of sample 'bad'"):
        Memory([*samples, bad], samples, checkpoint=tiny_llava).setup("fit")


@pytest.mark.parametrize("as_files", [False, True])
def test_the_picture_of_most_tiles_is_tried(
    tiny_llava_next: str, tmp_path: Path, as_files: bool
) -> None:
    pictures = {"square": picture(28, 28), "many tiles": picture(200, 210)}
    samples = []
    for name, image in pictures.items():
        image.save(tmp_path / f"{name}.png")
        samples.append(
            Sample(id=name, images=[tmp_path / f"{name}.png" if as_files else image], label="two")
        )
    samples += [replace(samples[0], id=str(k)) for k in range(5)]
    collator = Collator(load_processor(tiny_llava_next), ClassificationPrompt(), ("two",))
    limit = len(tokens(collate(collator, samples[0]), 0))

    with pytest.raises(DataError, match=r"Sample 'many tiles' has|question of sample 'many tiles'"):
        Memory(samples, samples[:1], checkpoint=tiny_llava_next, max_length=limit).setup("fit")


def test_image_tokens_are_counted_before_a_picture_is_opened(tiny_llava_next: str) -> None:
    for geometry in Geometry:
        collator = Collator(
            load_processor(tiny_llava_next), ClassificationPrompt(), ("two",), geometry=geometry
        )
        for size in [(28, 28), (90, 30), (30, 200), (200, 210)]:
            batch = collate(collator, Sample(id="a", images=[picture(*size)], label="two"))
            assert collator.find_image_text(size).features == batch.spans[Segment.IMAGE].sum()


def test_a_long_answer_among_longer_questions_is_tried(tiny_llava: str) -> None:
    samples = [conversation(str(k), "word " * 400) for k in range(8)]
    bad = conversation("bad", answer="word " * 300)
    with pytest.raises(DataError, match=r"Sample 'bad' has .* its last answer does not fit"):
        Memory([*samples, bad], samples, checkpoint=tiny_llava, max_length=300).setup("fit")


def test_class_names_are_never_cut_from_the_question(tiny_llava: str) -> None:
    names = [f"class number {k}" for k in range(60)]
    train = [replace(TRAIN[0], id=name, label=name) for name in names]
    with pytest.raises(DataError, match="lists 60 classes does not fit into max_length 300"):
        Memory(train, train[:1], checkpoint=tiny_llava, max_length=300).setup("fit")


def test_a_sound_split_passes(tiny_llava: str) -> None:
    collator = Collator(load_processor(tiny_llava), ClassificationPrompt(), ("red one", "two"))

    samples = check_sample_labels(TRAIN, "train", collator.label_names, TRAIN)
    bad = BadRows()
    scan = SplitScan(samples, "train", collator, bad, labelled=True)
    dry_run_suspects(scan, NO_FILES)

    assert not len(bad)
    assert scan.select_kept()[0] is samples
    assert [sample.label for sample in samples[:2]] == ["two", "red one"]
    assert check_sample_labels(OTHER, "val", collator.label_names, TRAIN) == OTHER


def test_each_sample_is_made_once_for_all_checks(
    tiny_llava: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    check_manifest_folder().mkdir(parents=True)  # there are findings, of other data
    made: list[int] = []

    def make(index: int) -> Sample:
        made.append(index)
        return conversation(str(index))

    module = Memory(LazySamples(40, make), [conversation("val")], checkpoint=tiny_llava)
    module.setup("fit")
    module.train_dataloader()

    assert (
        len(made) < 40 + 10
    )  # and some to see what kind of data it is, and to write out the longest


def test_a_label_among_samples_without_is_found(tiny_llava: str) -> None:
    samples = [conversation("0"), replace(conversation("1"), label="two")]
    with pytest.raises(DataError, match="'1' of the 'train' split has a label, but the first"):
        Memory(samples, samples[:1], checkpoint=tiny_llava).setup("fit")
