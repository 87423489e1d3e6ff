"""Keeps the features of a frozen vision tower on disk: computed once for all epochs and policies.

There is one safetensors file per image, in half precision, read by memory-mapping. It says in which
dtype the features were computed. Its name is a hash of everything that they depend on, so an entry
never has to be invalidated. Entries of other checkpoints are never hit; they only count towards the
size. A file gets its name once it is whole and on the disk: a run that is killed leaves a partial
file, which is never read and is removed later.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lightning_mllm.errors import ConfigError, DataError
from lightning_mllm.store.files import PARTIAL, write_bytes
from lightning_mllm.store.fingerprint import fingerprint_tensors

HalfName = Literal["float16", "bfloat16"]

_ABANDONED = 3600  # seconds after which a partial file belongs to a process that is gone
_STEP = (
    0.01  # share of the limit that is written before the folder is measured again: others write too
)
_DTYPES = {
    str(dtype): dtype for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
}

logger = logging.getLogger(__name__)


class FeatureCache:
    """A folder of tower features. Several processes can share it.

    When it is full, or the folder can't be written to (a full disk), nothing more is added, with
    one warning. What it has is still read, and the rest is computed.

    Args:
        root: The folder; it is created with the first entry.
        max_gigabytes: Largest size of the folder, in 10^9 bytes; several processes that fill it at
            once can each exceed it by 1 %. An image of LLaVA-1.5 takes 1.2 MB.
        dtype: Dtype of the entries: float16 is more precise, bfloat16 can't overflow.

    Raises:
        ConfigError: The size is not positive, or the dtype is not one of 16 bits.
    """

    def __init__(
        self, root: Path, max_gigabytes: float = 20.0, dtype: HalfName = "float16"
    ) -> None:
        if max_gigabytes <= 0:
            raise ConfigError(
                f"max_gigabytes is {max_gigabytes}; a cache needs room. Leave the cache out "
                "instead."
            )
        if dtype not in ("float16", "bfloat16"):
            raise ConfigError(f"The cache's dtype is {dtype!r}; it can be 'float16' or 'bfloat16'.")
        self.root = Path(root)
        self._limit = int(max_gigabytes * 1e9)
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._writes = True
        self._used: int | None = (
            None  # bytes in the folder when it was measured, and those written since
        )
        self._unmeasured = 0

    @property
    def key(self) -> tuple[Path, torch.dtype]:
        """What decides which features it gives: folder and dtype."""
        return self.root.resolve(), self._dtype

    def fetch(
        self, source: str, image: Mapping[str, Tensor], compute: Callable[[], Tensor]
    ) -> tuple[Tensor, torch.dtype]:
        """Return an image's features; compute and store them if they are not in the cache.

        Args:
            source: Identifies the tower and the precision it runs in.
            image: The image's own tensors, after all processing, best on the CPU; their content is
                hashed.
            compute: Computes the features. To agree bit for bit with what is stored, it must not
                depend on other images.

        Returns:
            The features, in the cache's dtype on the CPU, and the dtype that they were computed in.

        Raises:
            DataError: The features overflow the cache's dtype.
        """
        path = self._path(source, image)
        found = _read(path, self._dtype)
        if found is not None:
            return found
        computed = compute()
        features = self._round(computed)
        self._add(path, features, computed.dtype)
        return features, computed.dtype

    def _path(self, source: str, image: Mapping[str, Tensor]) -> Path:
        key = fingerprint_tensors(sorted(image.items()), f"{source} {self._dtype}")[:40]
        return self.root / key[:2] / f"{key}.safetensors"

    def _round(self, features: Tensor) -> Tensor:
        half = features.detach().to("cpu", self._dtype).contiguous()
        if half.isinf().any() and features.isfinite().all():
            raise DataError(
                f"The vision tower's features reach {float(features.abs().max()):.3g}, more than "
                f"the feature cache's dtype {self._dtype} can hold. Use a cache of dtype bfloat16, "
                "or none."
            )
        return half

    def _add(self, path: Path, features: Tensor, computed: torch.dtype) -> None:
        if not self._writes:
            return
        content = save({"features": features}, {"computed": str(computed)})
        try:
            if not self._has_room(len(content)):
                self._stop(
                    f"has reached its limit of {self._limit / 1e9:g} GB; raise max_gigabytes or "
                    "remove it"
                )
                return
            write_bytes(path, content, durable=True)
        except OSError as error:
            self._stop(f"can't be written to ({error}); make room, or choose another folder")

    def _has_room(self, size: int) -> bool:
        if self._used is None or self._unmeasured > self._limit * _STEP:
            self._used, self._unmeasured = _measure(self.root), 0
        self._used += size
        self._unmeasured += size
        return self._used <= self._limit

    def _stop(self, reason: str) -> None:
        self._writes = False
        logger.warning(
            "The feature cache %s %s. Results stay right; what is not in it is computed again.",
            self.root,
            reason,
        )


def _read(path: Path, dtype: torch.dtype) -> tuple[Tensor, torch.dtype] | None:
    """Return the features of an entry and the dtype of their computation; None if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            features: Tensor = file.get_tensor("features")
            computed = _DTYPES[file.metadata()["computed"]]
    except (OSError, SafetensorError, KeyError, TypeError):
        # KeyError and TypeError: its metadata is not ours
        return None
    return (features, computed) if features.dtype == dtype else None


def _measure(root: Path) -> int:
    """Return the bytes of all files, after removing partial ones of processes that are gone."""
    used = 0
    for path in root.glob("??/*"):
        try:
            state = path.stat()
            if path.suffix == PARTIAL and time.time() - state.st_mtime > _ABANDONED:
                path.unlink()
            else:
                used += state.st_size
        except FileNotFoundError:  # another process was faster
            continue
    return used
