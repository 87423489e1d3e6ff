"""What `setup` checks in samples and labels without a model, so that no run fails on it later."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from lightning_mllm.data.loading.bad_rows import BadRows
from lightning_mllm.data.loading.sample_errors import fetch_sample, join_first
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.data.loading.stored import StoredSamples
from lightning_mllm.data.text.labels import collect_labels, normalise_label
from lightning_mllm.errors import DataError
from lightning_mllm.types import LazyImage, Sample

_SHOWN = 10  # classes that one message lists


def check_sample_labels(
    samples: Sequence[Sample],
    split: Split,
    names: Sequence[str],
    train: Sequence[Sample],
    bad_rows: BadRows | None = None,
) -> Sequence[Sample]:
    """Return the samples with their labels normalised.

    Args:
        samples: The samples of the split.
        split: The name of the split.
        names: The class names, normalised.
        train: The training samples, as loaded.
        bad_rows: Collects samples whose label is wrong, which are left out; without it, they are
            an error.

    Raises:
        DataError: A sample has no label or one that is not a class, or a label can't be told from
            another.
    """
    bad = BadRows() if bad_rows is None else bad_rows
    checked = []
    known: dict[str | None, str] = {}  # label -> normalised: few, and of many samples
    for index in range(len(samples)):
        with bad.catch():
            sample = fetch_sample(samples, index)
            check_sample(sample, split)
            if sample.label not in known:
                known[sample.label] = _normalise_known_label(sample, split, names)
            checked.append(replace(sample, label=known[sample.label]))
    if checked:
        collect_labels([*list_sample_labels(train), *list_sample_labels(samples)])
    bad.settle()
    return checked


def list_sample_labels(samples: Sequence[Sample]) -> Iterator[str]:
    """Yield the labels of samples that have one; what is not a sample is skipped."""
    if isinstance(samples, StoredSamples):
        yield from samples.list_labels()
        return
    for sample in samples:
        if isinstance(sample, Sample) and isinstance(sample.label, str):
            yield sample.label


def check_sample(sample: Sample, split: Split) -> None:
    """Refuse what is not a sample, or has texts that can't be encoded.

    Raises:
        DataError: A field has another type, or a text has half of a character in it.
    """
    if not isinstance(sample, Sample):
        raise DataError(
            f"The {split!r} split has a {type(sample).__name__} where a Sample was expected: "
            f"{repr(sample)[:60]}. Return Samples from the dataset's `load`.",
            "sample",
        )
    for field, text in _list_texts(sample):
        _check_text(text, field, sample, split)
    for image in sample.images:
        if not isinstance(image, Path | Image.Image | LazyImage):
            raise DataError(
                f"Sample {sample.id!r} of the {split!r} split has {repr(image)[:60]} among its "
                "images; a Path, a PIL image or a LazyImage was expected. Correct the dataset's "
                "`load`.",
                "sample",
            )


def _check_text(text: object, field: str, sample: Sample, split: Split) -> None:
    """Refuse a text of another type, or with half of a character in it."""
    if not isinstance(text, str):
        raise DataError(
            f"Sample {sample.id!r} of the {split!r} split has {repr(text)[:60]} as its {field}, "
            "where text was expected. Correct the dataset's `load`.",
            "sample",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"The {field} of sample {sample.id!r} in the {split!r} split has "
            f"{text[error.start]!r} at character {error.start}, half of a character that can't be "
            f"written: {text[:60]!r}. Correct the text, or give the file a name in UTF-8.",
            "text",
        ) from error


def _list_texts(sample: Sample) -> Iterator[tuple[str, object]]:
    """Yield each text of a sample with the name of its field."""
    yield "id", sample.id
    for field in ("label", "kind", "picture", "system"):
        text = getattr(sample, field)
        if text is not None:
            yield field, text
    for turn in sample.conversation:
        yield "conversation", turn.text
        yield "conversation", turn.instruction
    if sample.options is not None:
        yield "options", sample.options.true
        yield "options", sample.options.false


def _normalise_known_label(sample: Sample, split: Split, names: Sequence[str]) -> str:
    """Return the normalised label of a sample, which must be one of the class names."""
    if sample.label is None:
        raise DataError(
            f"Sample {sample.id!r} of the {split!r} split has no label, but others have one.",
            "label",
        )
    label = normalise_label(sample.label)
    if label not in names:
        raise DataError(
            f"The label {sample.label!r} of sample {sample.id!r} in the {split!r} split is none of "
            f"the {len(names)} classes of the training split: {join_first(names, _SHOWN)}. "
            "Correct it, or add training samples of that class.",
            "label",
        )
    return label
