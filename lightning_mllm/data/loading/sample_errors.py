"""Whatever goes wrong with a sample names it: errors of libraries become one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning_mllm.data.images.files import list_image_files
from lightning_mllm.errors import DataError, UserError
from lightning_mllm.types import Sample


@contextmanager
def name_sample_errors(sample: Sample) -> Iterator[None]:
    """Turn what a library raises on a sample into an error that names the sample and its files.

    Raises:
        DataError: Something else than a `UserError` was raised; that is the error's cause.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of processors, templates, tokenizers and users' own classes
        files = ", ".join(map(str, list_image_files(sample)))
        raise DataError(
            f"Sample {sample.id!r}{f' ({files})' if files else ''} can't be prepared for the "
            f"model: {_describe(error)}. Correct it, or remove it from the dataset.",
            "written out",
        ) from error


def fetch_sample(samples: Sequence[Sample], index: int) -> Sample:
    """Return a sample, which may be made only now.

    Raises:
        DataError: It can't be made.
    """
    try:
        return samples[index]
    except UserError:
        raise
    except Exception as error:
        raise DataError(
            f"Sample number {index} (from 0) can't be made: {_describe(error)}. Correct the "
            "dataset's `load`.",
            "sample",
        ) from error


def join_first(names: Sequence[str], shown: int) -> str:
    """Return the first names with commas between them, and "..." if there are more."""
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
