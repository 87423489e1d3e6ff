"""Vectors and masks per matrix as safetensors files that say what they are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_mllm.analysis.subnetwork.matrices import Matrix
from lightning_mllm.errors import CheckpointError
from lightning_mllm.store.files import write_tensor_file
from lightning_mllm.store.fingerprint import fingerprint_tensors

_T = TypeVar("_T")
_KEY = "lightning_mllm"  # our entry in a file's metadata


def write_matrix_file(
    path: Path, tensors: Mapping[Matrix, Tensor], holds: str, about: Mapping[str, Any]
) -> None:
    """Write a file; at every moment it is absent, old or complete.

    Args:
        path: The file.
        tensors: On the CPU.
        holds: What they are, in a word.
        about: Plain data.

    Raises:
        CheckpointError: The disk is full or can't be written.
    """
    metadata = {"format": "pt", _KEY: json.dumps({"holds": holds, **about})}
    try:
        write_tensor_file(
            path, {str(matrix): tensor for matrix, tensor in tensors.items()}, metadata
        )
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be written: {error}. Free some space, or choose another disk."
        ) from error


def read_matrix_file(
    path: Path, holds: str, make: Callable[[dict[Matrix, Tensor], dict[str, Any]], _T]
) -> _T:
    """Return what a file holds.

    Args:
        path: The file.
        holds: What it must hold, in a word.
        make: Makes it of the tensors and what the file says about them.

    Raises:
        CheckpointError: The file is missing or damaged, or holds something else.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no {holds} file {path}. Every listed file is required: create it, or name "
            "others."
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
            if about.pop("holds", None) == holds:
                return make(
                    {
                        matrix: file.get_tensor(str(matrix))
                        for matrix in sorted(map(Matrix.parse, file.keys()))
                    },
                    about,
                )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"The {holds} file {path} can't be read ({type(error).__name__}: {error}). "
            "Create it again."
        ) from error
    raise CheckpointError(f"{path} is not a {holds} file of this package.")


def digest_of_matrix_file(tensors: Mapping[Matrix, Tensor], about: Mapping[str, Any]) -> str:
    """Return a short hash of tensors and what they are."""
    named = ((str(matrix), tensor) for matrix, tensor in sorted(tensors.items()))
    return fingerprint_tensors(named, json.dumps(about, sort_keys=True))[:16]
