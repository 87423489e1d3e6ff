"""Opens what Hugging Face's `datasets` reads: a dataset of the hub, a folder, a file or a glob."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from types import ModuleType
from typing import Any

from huggingface_hub import constants
from huggingface_hub.utils._validators import validate_repo_id

from lightning_mllm.checkpoint_files import ask_hub_no_more, find_hub_obstacle
from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.progress import console

_LONGEST = 400  # characters of a library's message: some list all configs
_GLOB = re.compile(r"[*?\[]")
_SAVED = ("dataset_dict.json", "state.json")  # what `save_to_disk` writes
_SCRIPT = "scripts are no longer supported"


@dataclass(frozen=True)
class HFSource:
    """Where a dataset is.

    Attributes:
        path: Hub id, folder, file, or glob of files.
        config: One of the configs of a dataset that has several.
        revision: Branch, tag or commit of a hub id.
        files: Split -> file or glob of files in the dataset; by default all, sorted into splits by
            their names.
    """

    path: str
    config: str | None = None
    revision: str | None = None
    files: Mapping[str, str] | None = None

    @property
    def is_on_hub(self) -> bool:
        """Whether the path can only be a hub id."""
        if Path(self.path).exists() or _GLOB.search(self.path):
            return False
        try:
            validate_repo_id(self.path)
        except ValueError:
            return False
        return True

    @property
    def root(self) -> Path:
        """The folder that pictures outside of the table are in."""
        if self.is_on_hub:
            return Path(constants.HF_HOME)
        return self._split_path()[0]

    def open(self) -> dict[str, Any]:
        """Return split -> memory-mapped `datasets.Dataset`.

        Files that are not Arrow files are converted once, into the library's cache; other processes
        wait for it.

        Raises:
            ConfigError: The package `datasets` is not installed.
            DataError: There is no such dataset, or it can't be read; the message says why.
        """
        library = import_datasets()
        if not console.is_terminal:  # bars would fill a log
            library.disable_progress_bars()
        try:
            found = self._load_from_hub(library) if self.is_on_hub else self._load_files(library)
        except DataError:
            raise
        except Exception as error:  # of the library, its readers of files and the hub's client
            raise DataError(self._explain(error), "dataset") from error
        if isinstance(found, library.Dataset):
            found = {str(found.split or "train"): found}
        return {str(name): dataset for name, dataset in found.items()}

    def _load_from_hub(self, library: ModuleType) -> Any:
        if (obstacle := find_hub_obstacle()) is not None:
            library.config.HF_HUB_OFFLINE = True  # read when the library was imported
        try:
            found = self._load(library, self.path, self.files)
        except (ConnectionError, FileNotFoundError) as error:
            if obstacle is None:
                raise
            why, way_out = obstacle
            raise DataError(
                f"Dataset {self.path!r} is neither a file nor a folder on this machine, not in the "
                f"cache of the Hugging Face hub, and {why}. Check the spelling; to use a dataset "
                "of the hub, fetch it where there is a network (`hf download --repo-type dataset "
                f"{self.path}`, then give the folder as `path`), or {way_out}.",
                "dataset",
            ) from error
        if obstacle is not None:
            ask_hub_no_more(obstacle[0], self.path)
        return found

    def _load_files(self, library: ModuleType) -> Any:
        folder, pattern = self._split_path()
        if not folder.is_dir():
            raise DataError(
                f"There is no file or folder {self.path}. Set `path` to one, to a glob of files, "
                "or to a hub id such as owner/name.",
                "dataset",
            )
        is_saved = any((folder / name).is_file() for name in _SAVED)
        if is_saved and not pattern and not self.files:
            return library.load_from_disk(str(folder), keep_in_memory=False)
        return self._load(library, str(folder), {"train": pattern} if pattern else self.files)

    def _load(self, library: ModuleType, path: str, files: Mapping[str, str] | None) -> Any:
        return library.load_dataset(
            path,
            self.config,
            data_files=dict(files) if files else None,
            revision=self.revision,
            keep_in_memory=False,
        )

    def _split_path(self) -> tuple[Path, str]:
        """Return the folder, and the file or glob in it that is meant; empty for all of it."""
        path = Path(self.path)
        if path.is_dir():
            return path, ""
        parts = path.parts
        fixed = next((k for k, part in enumerate(parts) if _GLOB.search(part)), len(parts) - 1)
        folder = Path(*parts[:fixed])
        if path.is_file() or _GLOB.search(self.path):
            return folder, str(path.relative_to(folder))
        return path, ""

    def _explain(self, error: Exception) -> str:
        """Return what went wrong in a sentence, with the way out."""
        said = shorten(" ".join(str(error).split()), _LONGEST).rstrip(". ")
        if _SCRIPT in said:
            return (
                f"Dataset {self.path!r} is made by a script of its own, which is not run. Most "
                "datasets of the hub have a copy in parquet: set `data_revision` to "
                "refs/convert/parquet."
            )
        if "Config name is missing" in said or "BuilderConfig" in said:
            return f"Dataset {self.path!r} can't be opened: {said}. Set `config` to one of them."
        return (
            f"Dataset {self.path!r} can't be opened ({type(error).__name__}: {said}). Expected a "
            "hub id, a folder that `save_to_disk` wrote, or files of one kind: parquet, arrow, "
            "jsonl, csv, or tar in the layout of WebDataset."
        )


def import_datasets() -> ModuleType:
    """Return the package `datasets`.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        datasets = import_module("datasets")  # heavy, and optional
    except ImportError as error:
        raise ConfigError(
            "HFDataset needs the package `datasets`, which is not installed: pip install "
            f'"lightning-mllm[datasets]" ({error}).'
        ) from error
    return datasets
