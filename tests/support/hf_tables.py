"""Tables as Hugging Face's `datasets` and pyarrow write them, with pictures inside."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

NAMES = ["black_cat", "dog"]


def stored_picture(number: int, kind: str = "PNG") -> bytes:
    """Return the bytes of a small picture, another one for each number."""
    colour = (number * 37 % 256, number * 11 % 256, number // 7 % 256)
    stream = BytesIO()
    Image.new("RGB", (20 + number % 5, 16), colour).save(stream, kind)
    return stream.getvalue()


def table(columns: dict[str, Sequence[Any]], **features: Any) -> Any:
    """Return a dataset of columns; the types of some may be given, others are found."""
    import datasets

    found = datasets.Dataset.from_dict(columns).features
    return datasets.Dataset.from_dict(columns, features=datasets.Features({**found, **features}))


def classes(start: int, count: int, **columns: Sequence[Any]) -> Any:
    """Return a table of pictures in two classes."""
    import datasets

    pictures = [{"bytes": stored_picture(start + k), "path": None} for k in range(count)]
    return table(
        {"image": pictures, "label": [k % 2 for k in range(count)], **columns},
        image=datasets.Image(),
        label=datasets.ClassLabel(names=NAMES),
    )


def questions(start: int, count: int, **columns: Sequence[Any]) -> Any:
    """Return a table of pictures with a question and an answer each."""
    import datasets

    pictures = [{"bytes": stored_picture(start + k), "path": None} for k in range(count)]
    columns = {
        "question": [f"What is number {k}?" for k in range(count)],
        "answer": [f"it is {k}" for k in range(count)],
        **columns,
    }
    return table({"image": pictures, **columns}, image=datasets.Image())


def save_splits(folder: Path, **splits: Any) -> str:
    """Write splits as `save_to_disk` does."""
    import datasets

    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return str(folder)


@contextmanager
def private_caches(folder: Path) -> Iterator[None]:
    """Let the library and the package write into a folder of the test, and ask no hub."""
    import datasets

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        datasets.disable_progress_bars()
        yield
        datasets.enable_progress_bars()
