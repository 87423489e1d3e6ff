"""What `setup` looks for in a split, so that no training run ends on it."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lightning_mllm.data.collator import Collator
from lightning_mllm.data.images import Size
from lightning_mllm.data.labels import as_answered, class_names, normalise_label
from lightning_mllm.data.splits import Split
from lightning_mllm.errors import DataError
from lightning_mllm.types import Sample

_TRIED = 3  # samples of a split that are written out: bytes are no exact measure of tokens


def check_ids(samples: Sequence[Sample], split: Split) -> None:
    """Refuse ids that occur twice.

    Raises:
        DataError: One does.
    """
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise DataError(f"The id {sample.id!r} occurs twice in the {split!r} split; ids must be unique.")
        seen.add(sample.id)


def check_labels(
    samples: Sequence[Sample], split: Split, names: Sequence[str], train: Sequence[Sample]
) -> Sequence[Sample]:
    """Return the samples with their labels normalised.

    Args:
        samples: Of the split.
        split: Its name.
        names: Normalised class names.
        train: The training samples, as loaded.

    Raises:
        DataError: A sample has no label, one that is no class, or one that can't be told from another.
    """
    known = set(names)
    for sample in samples:
        if sample.label is None:
            raise DataError(f"Sample {sample.id!r} of the {split!r} split has no label, but others have one.")
        if normalise_label(sample.label) not in known:
            raise DataError(
                f"The label {sample.label!r} of sample {sample.id!r} in the {split!r} split is none of the "
                f"{len(names)} classes of the training split: {', '.join(names[:10])}"
                f"{', ...' if len(names) > 10 else ''}. Correct it, or add training samples of that class."
            )
    class_names(sample.label for part in (train, samples) for sample in part if sample.label is not None)
    return [replace(sample, label=normalise_label(sample.label or "")) for sample in samples]


def check_kinds(samples: Sequence[Sample], split: Split, labelled: bool) -> set[str]:
    """Return the kinds of questions of a split.

    Args:
        samples: Of the split.
        split: Its name.
        labelled: Whether samples are scored by their labels.

    Raises:
        DataError: A sample has a kind but can't be scored by exact match.
    """
    kinds = set()
    for sample in samples:
        if sample.kind is None:
            continue
        where = f"Sample {sample.id!r} of the {split!r} split has the kind {sample.kind!r}"
        if labelled:
            raise DataError(
                f"{where}, but is scored by its label; kinds are for free-form answers. Give it no kind, or evaluate "
                "with a prompt that does not ask for the label."
            )
        if not sample.kind.strip():
            raise DataError(f"{where}, which is no name. Give it one, or None if its answer is not to be scored.")
        if not sample.conversation or not as_answered(sample.conversation[-1].text):
            raise DataError(
                f"{where}, so its last answer is scored by exact match, but nothing is left of it once quotes, full "
                "stops and blanks are removed. Correct the answer, or give the sample no kind."
            )
        kinds.add(sample.kind)
    return kinds


def check_texts(samples: Sequence[Sample], collator: Collator, sizes: Mapping[Path, Size]) -> None:
    """Look for special tokens in all texts, and write out the samples that need most room.

    Errors of template, spans and length show here.

    Args:
        samples: Of a split.
        collator: Its collator.
        sizes: Of the image files.

    Raises:
        DataError: A sample can't be written out, or does not fit.
    """
    needs = []
    for index, sample in enumerate(samples):
        pictures = sum(
            collator.count_image_tokens(sizes[image] if isinstance(image, Path) else image.size)
            for image in sample.images
        )
        fixed, question = _texts(sample, collator)
        needs.append((pictures + fixed, pictures + fixed + question, index))
    most = {index for *_, index in heapq.nlargest(_TRIED, needs)}
    most.add(max(needs, key=lambda need: need[1])[2])
    for index in sorted(most):
        collator.check(samples[index])


def _texts(sample: Sample, collator: Collator) -> tuple[int, int]:
    """Return the bytes of a sample's texts that can't be cut, and of those that can; class names are checked once."""
    if collator.label_names:
        return len((sample.label or "").encode()), 0
    fixed = question = 0
    for turn in collator.check_turns(sample):
        text, instruction = len(turn.text.encode()), len(turn.instruction.encode())
        fixed += instruction + (text if turn.role == "assistant" else 0)
        question += text if turn.role == "user" else 0
    return fixed, question
