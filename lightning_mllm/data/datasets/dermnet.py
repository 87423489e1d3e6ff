"""DermNet: photographs of skin diseases."""

from __future__ import annotations

from typing import Any

from lightning_mllm.data.datasets.folder_samples import FolderSamples
from lightning_mllm.data.datasets.published import Published, PublishedFolders
from lightning_mllm.data.loading.splits import Split
from lightning_mllm.errors import DataError


class DermNet(PublishedFolders):
    """The images of DermNet as they are on Kaggle (`shubhamgoel27/dermnet`).

    The layout is `root/train/<class>/<file>` and `root/test/<class>/<file>`. Some folders are
    called "Eczema Photos", "Poison Ivy Photos and other Contact Dermatitis": a word about the
    source, not about the disease.

    Args:
        root: Folder that holds `train` and `test`.
        remove: Text that is removed from class names, wherever it stands; if it is empty, the
            folders' names are kept.
        **kwargs: Options of `ImageFolder`, and those that all datasets have.
    """

    published = Published(
        images={"train": 15_557, "test": 4_002},
        classes={"train": 23, "test": 23},
        source="commonly quoted, not confirmed by the publishers",
    )

    def __init__(self, *, root: str, remove: str = " Photos", **kwargs: Any) -> None:
        super().__init__(root=root, **kwargs)
        self.remove = remove

    def load(self, split: Split) -> FolderSamples:
        """Return the samples of a split.

        Raises:
            DataError: A folder can't be used (see `PublishedFolders`), or two folders get the same
                class name.
        """
        samples = super().load(split)
        names: dict[str, str] = {}  # folder -> class name
        folders: dict[str, str] = {}  # class name -> folder
        for folder in sorted(samples.list_labels()):
            name = folder.replace(self.remove, "") if self.remove else folder
            names[folder] = name
            if folders.setdefault(name, folder) != folder:
                raise DataError(
                    f"The class folders {folders[name]!r} and {folder!r} of {self.root} are both "
                    f"{name!r} without {self.remove!r}. Merge them, or set `remove` to ''."
                )
        return samples.with_labels(names)
