"""DTD: textures in the wild."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_mllm.data.datasets.published import Published, PublishedDataset
from lightning_mllm.data.datasets.rows import FileRow, read_file_rows
from lightning_mllm.data.loading.datamodule import MLLMDataModule
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.types import Sample

OFFICIAL_SPLITS = 10


class DTD(PublishedDataset, MLLMDataModule):
    """The Describable Textures Dataset (Cimpoi et al., CVPR 2014), release 1.0.1.

    The layout is that of the archive: images are `root/images/<class>/<file>`, and each row of
    `root/labels/<train|val|test><1 to 10>.txt` is `<class>/<file>`.

    Args:
        root: Folder `dtd` of the unpacked archive.
        split: Which of the ten official splits is used; the projection study takes the first.
        **kwargs: Options that all datasets have (see `MLLMDataModule`).
    """

    published = Published(
        images={"train": 1_880, "val": 1_880, "test": 1_880},
        classes={"train": 47, "val": 47, "test": 47},
        source="the dataset's page: 47 classes of 120 images, a third to each split",
    )

    def __init__(self, *, root: str, split: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 1 <= split <= OFFICIAL_SPLITS:
            raise ConfigError(
                f"split is {split}; DTD has the official splits 1 to {OFFICIAL_SPLITS}."
            )
        self.root, self.split = Path(root), split

    def load(self, split: Split) -> Sequence[Sample]:
        """Return the samples of a split in the order of its file; ids are its rows.

        Raises:
            DataError: A file or folder is missing, or a row is malformed, repeated, or names no
                image.
        """
        for folder in ("images", "labels"):
            if not (self.root / folder).is_dir():
                raise DataError(
                    f"{self.root} has no folder {folder!r}. Set `root` to the folder 'dtd' of the "
                    "unpacked archive."
                )
        seen: dict[str, int] = {}
        samples = []
        file = self.root / "labels" / f"{split}{self.split}.txt"
        for row in read_file_rows(file, way_out="Correct `root`, or the path"):
            with self.bad_rows.catch():
                sample = self._read_row(row)
                if sample.id in seen:
                    problem = f"{sample.id!r} is in row {seen[sample.id]} already"
                    raise row.error(f"{problem}. Remove one of them", "id")
                seen[sample.id] = row.number
                samples.append(sample)
        self.bad_rows.settle()
        return samples

    def _read_row(self, row: FileRow) -> Sample:
        name = row.text.strip()
        parts = name.split("/")
        if len(parts) != 2 or not all(parts):
            raise row.error(f"{name!r} is not of the form <class>/<file>. Correct it")
        root = (self.root / "images").resolve()
        label = parts[0]
        folder = root / label
        if label not in (".", "..") and not folder.is_dir():
            problem = f"there is no class folder {folder}. Correct the row, or fetch the folder"
            raise row.error(f"{problem} again", "class folder")
        return Sample(id=name, images=[row.find_image(root, name)], label=label)
