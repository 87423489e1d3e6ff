"""What a family can't read is refused by name: at set-up, and by the collator."""

from collections.abc import Callable
from typing import Any

import pytest

from lightning_mllm.data import Collator, ConversationPrompt
from lightning_mllm.data.images.checkpoint_processor import CheckpointProcessor
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample, Turn
from tests.data.conftest import collate
from tests.data.loading.test_datamodule import Memory
from tests.support.families import ONE, TURNS, WITHIN

CASES = [
    (
        "llava_onevision",
        WITHIN,
        r"'within' has 2 images, but llava_onevision takes one per sample here: .* one image, or",
    ),
    (
        "paligemma",
        TURNS,
        r"'turns' has 2 exchanges, but paligemma reads one: .* Make a sample of each exchange\.",
    ),
]


@pytest.mark.parametrize(("family", "sample", "message"), CASES)
def test_it_is_refused(
    family_processor: Callable[[Any], CheckpointProcessor],
    family: str,
    sample: Sample,
    message: str,
) -> None:
    collator = Collator(family_processor(family), ConversationPrompt())

    with pytest.raises(DataError, match=message):
        collate(collator, ONE, sample)


@pytest.mark.parametrize(("family", "sample", "message"), CASES)
def test_it_is_refused_at_set_up(
    tiny_family: Callable[[Any], str], family: str, sample: Sample, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Memory([ONE, sample], [ONE], checkpoint=tiny_family(family)).setup("fit")


def test_a_sample_may_have_several_exchanges_about_one_image(
    family_processor: Callable[[Any], CheckpointProcessor],
) -> None:
    more = [Turn("user", "And now?"), Turn("assistant", "no")]
    sample = Sample(id="a", images=ONE.images, conversation=[*ONE.conversation, *more])

    batch = collate(Collator(family_processor("llava_onevision"), ConversationPrompt()), sample)

    assert int(batch.labels.eq(batch.end_id).sum()) == 2
